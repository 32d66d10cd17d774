"""A query endpoint on a free port, over a real embedded archive and a frame for the live table."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import orjson
import polars as pl
from aiohttp import web
from aiohttp.test_utils import TestServer

from app.config.settings import Settings
from app.host.background import Background
from app.host.reloads import Reloads
from app.web.access import Access
from app.web.endpoint import ROUTES, install
from app.web.guard import ssl_context
from app.web.listener import Site
from app.web.routes import Route
from app.web.server import Counts, Runner
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import Archive
from tables.model.cost import QueryCost
from tables.model.layer import Layer, Map
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.query.answer import matching
from tables.query.facts import PartitionFacts
from tables.query.live import LiveJob, LiveRead, LiveRows
from tables.state.cell import archive_schema
from tests.support.common import HOUR_MS, small_map
from treasure_map.status import LayerStatus, WorkerAbout

Result = TypeVar("Result")
CLOCK_MS = 1_400_000_000_000
METRICS = b"# TYPE treasure_map_paused gauge\n"
HOURS = small_map().layer("hour")


def stored(
    origin: str = "JFK",
    carrier: str = "UA",
    *,
    hour: int = 0,
    partition: int = 0,
    version: int = 1,
    delays: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Return the archive row of a cell that holds events of these delays."""
    squares = sum(delay * delay for delay in delays)
    return {
        "key_origin": origin,
        "key_carrier": carrier,
        "window_start": hour * HOUR_MS,
        "events": len(delays),
        "n_delay": len(delays),
        "sum_delay": sum(delays),
        "min_delay": min(delays),
        "max_delay": max(delays),
        "sqlo_delay": squares & (2**64 - 1),
        "sqhi_delay": squares >> 64,
        "version": version,
        "source_partition": partition,
    }


def frame(rows: Sequence[dict[str, Any]], layer: Layer = HOURS) -> pl.DataFrame:
    """Return an archive frame."""
    return pl.DataFrame(rows, schema=archive_schema(layer), orient="row")


def given_cells(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the rows of an answer in the form of :func:`expected_cells`."""
    found = []
    for row in rows:
        key, measures = row["key"], row["measures"]
        numbers = [measures[name] for name in ("count", "sum_delay", "min_delay", "max_delay")]
        found.append((row["window_start"], key["origin"], key["carrier"], *numbers, row["version"]))
    return found


class FrameCells:
    """A LiveSource over one frame of the map's first layer; tests set partitions and evictions.

    Cells that are not evicted are all in the frame; by default the archive may have any cell.
    """

    def __init__(self, frame: pl.DataFrame, served: set[int]) -> None:
        self.frame = frame
        self.served = served
        self.evicted_ms = 2**50
        self.archived_ms = NEVER_MS
        self.closed_ms = NEVER_MS
        self.position = 7
        self.fresh_ms = NEVER_MS
        self.first_ms, self.last_ms = NEVER_MS, NEVER_ENDS_MS

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Return rows of each range, from one partition, and facts of all that are served."""
        del cost, until
        return [self.local(read) for read in reads]

    def local(self, read: LiveRead) -> LiveRows:
        """Return the rows in range; none of a layer that the frame is not of."""
        facts = {
            partition: PartitionFacts(
                partition, position=self.position, closed_ms=self.closed_ms,
                floor_ms=self.archived_ms, archived_ms=self.archived_ms,
                evicted_ms=self.evicted_ms, complete_ms=NEVER_MS, cells=1.0, fresh_ms=self.fresh_ms,
                evicted_version=self.position, first_ms=self.first_ms, last_ms=self.last_ms,
            )
            for partition in self.served
            if read.wants(partition)
        }  # fmt: skip
        if list(archive_schema(read.layer)) != self.frame.columns:
            return LiveRows(facts, [])
        start = pl.col("window_start")
        rows = self.frame.filter((start >= read.from_ms) & (start < read.to_ms))
        for partition, told in (read.after or {}).items():
            end = read.layer.window.ends(start)
            closed = (end > told.closed_ms) & (end <= self.closed_ms)
            news = (pl.col("version") > told.version) | closed
            rows = rows.filter((pl.col("source_partition") != partition) | news)
        return LiveRows(facts, [matching(read.layer, rows, read.keys)])


class StandingView:
    """A WorkerView that stands still; tests set its answers."""

    def __init__(self, themap: Map, archive: Archive, live: FrameCells) -> None:
        self.themap = themap
        self.archive = archive
        self.live = live
        self.reasons: list[str] = []
        self.mend: list[str] = []
        self.counts = Counts()

    def local(self, read: LiveRead) -> LiveJob:
        """Return a job that makes the rows of the frame."""
        found = self.live.local(read)
        return LiveJob(found.facts, lambda: found.rows, sum(rows.height for rows in found.rows))

    def layers(self) -> list[LayerStatus]:
        """Return one line a layer."""
        return [
            LayerStatus(
                name=layer.name, open_cells=1, unacknowledged_windows=2, waiting_open_windows=3,
                archived_cells=4, watermark_ms=5, floor_ms=None, partitions=[0],
                whole_from={"0": {"cells": None}},
            )
            for layer in self.themap.layers
        ]  # fmt: skip

    def unselected(self) -> dict[str, dict[str, int]]:
        """Return a type of the only source."""
        return {"flights": {"bird": 3}}

    def lag(self) -> dict[str, dict[str, int | None]]:
        """Return a partition that is behind, and one that is not known."""
        return {"raw": {"0": 7, "1": None}}

    def ledger(self) -> dict[str, Any]:
        """Return a ledger with a partition as an integer."""
        return {"records": {"raw": {0: {"read": 3}}}, "balanced": True}

    def unready(self) -> list[str]:
        """Return the lines that the test set."""
        return self.reasons

    def warnings(self) -> list[str]:
        """Return the lines that the test set."""
        return self.mend

    def serving(self) -> dict[str, list[int]]:
        """Return a partition."""
        return {"raw": [0]}

    def restoring(self) -> dict[str, list[int]]:
        """Return another partition."""
        return {"raw": [1]}

    def paused(self) -> dict[str, list[str]]:
        """Return nothing that is paused."""
        return {}


@contextlib.asynccontextmanager
async def served(
    themap: Map,
    folder: Path,
    live: Sequence[dict[str, Any]] = (),
    archived: Sequence[dict[str, Any]] = (),
    archive: Archive | None = None,
    *,
    workers: Callable[[], list[WorkerAbout]] = list,
    routes: Sequence[Route] = ROUTES,
    **settings: Any,
) -> AsyncIterator[tuple[StandingView, str]]:
    """Serve rows of the map's first layer; give the view and the endpoint's address."""
    layer = themap.layers[0]
    schema = archive_schema(layer)
    archive = archive or EmbeddedArchive(folder, clock_ms=lambda: CLOCK_MS)
    await archive.open(themap)
    if archived:
        rows = pl.DataFrame(archived, schema=schema, orient="row")
        ends = rows.select(layer.window.ends(pl.col("window_start"))).to_series()
        await archive.write(layer, rows, ends * 1_000 + rows["version"])
    cells = FrameCells(
        pl.DataFrame(live, schema=schema, orient="row"), set(range(layer.partitions))
    )
    view = StandingView(themap, archive, cells)
    app = web.Application()
    given = Settings(**settings)
    cache = ArchiveCache(archive, given.query_cache_bytes_max)
    failures: list[BaseException] = []
    reloads = Reloads()
    looking = Background(failures.append, reloads.keep_looking)
    access = Access(given, reloads)
    install(
        app, view, given, live=cells, cache=cache, metrics=lambda: METRICS, access=access,
        workers=workers, routes=routes,
    )  # fmt: skip
    await looking.start()
    runner = Runner(app, given.query_live_max)
    await runner.setup()
    tls = ssl_context(given, reloads)
    await Site(runner, "127.0.0.1", 0, tls=tls, failed=failures.append).start()
    scheme = "http" if tls is None else "https"
    view.counts = runner.counts
    try:
        yield view, f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        await looking.stop()
        await archive.close()
        assert not failures


@contextlib.asynccontextmanager
async def release_before(url: str) -> AsyncIterator[str]:
    """Serve an endpoint's answers as 0.2.0 does: without their range and the rows after them."""
    later = {"from", "to", "asked", "rows_after"}

    def older(page: str | bytes) -> bytes:
        fields = orjson.loads(page)
        return orjson.dumps({name: fields[name] for name in fields if name not in later})

    async def answer(request: web.Request) -> web.Response:
        asked = {"Accept": request.headers["Accept"]}
        async with (
            aiohttp.ClientSession() as session,
            session.get(url + request.path_qs, headers=asked) as response,
        ):
            body, kind, sent = await response.read(), response.content_type, response.headers
        headers = {name: sent[name] for name in sent if name.startswith("Treasure-Map-")}
        if "Treasure-Map-Answer" in headers:
            headers["Treasure-Map-Answer"] = older(headers["Treasure-Map-Answer"]).decode()
        body = older(body) if kind == "application/json" else body
        return web.Response(body=body, status=response.status, headers=headers, content_type=kind)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def get(url: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Return status, decoded JSON and headers of one request."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, orjson.loads(await response.read()), dict(response.headers)


async def in_thread(call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Run a blocking client beside the server."""
    return await asyncio.to_thread(call, *arguments, **named)
