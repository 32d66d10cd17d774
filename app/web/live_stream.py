"""Live cells over HTTP: server-sent events of a layer's cells that change or close, resumable.

A stream is a loop: ask for the changed cells, write them, wait. It holds the rows of one step and
no more, many of them compressed, and some hundreds as events: while a reader is slow nothing is
asked, and one that reads nothing for long is disconnected. Only a few streams make their changes
at once, because these rows are not compressed yet. The id of the last event is the position of a
reader; with it in ``Last-Event-ID`` any worker resumes there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, cast

import msgspec
import orjson
import polars as pl
from aiohttp import hdrs, web

from agents.query.changes import ChangeBatch, Changes, Positions, decode_positions, encode_positions
from agents.query.reader import LiveSource
from app.config.settings import Settings
from app.web.access import CALLER, LIVE, Caller
from app.web.guard import HEADERS, BusyError, damaged_words, encoded, unanswered_words
from app.web.pages import known_ms
from tables.archive.cache import ArchiveCache
from tables.model.errors import ArchiveDamagedError, ArchiveError, QueryError
from tables.model.layer import Layer, Map
from tables.model.window import NEVER_MS
from tables.query.cell_query import cell_rows, find_layer
from tables.query.facts import later_measures, whole_of
from tables.query.family import KeyFilter
from tables.query.parameters import Parameter, filter_parameters, read_parameters
from tables.state.block import decode_block, encode_block
from treasure_map.answers import LiveCell

INTERVAL_MS, INTERVAL_MS_MIN, INTERVAL_MS_MAX = 500, 100, 60_000
SILENT_S_MAX = 15.0
"""The longest time without a comment, which shows both ends that the other is there."""

SLOW_S_MAX = 30.0
"""Time in which a reader may read nothing; then it is disconnected, and may resume by its id."""

CELLS_AT_ONCE = 500

PACKED_ROWS = 5_000
"""Rows that are compressed together, to some 25 bytes each; 24 followers that held frames of
600,000 rows held 2.4 GB."""

LAST_EVENT_ID = Parameter(
    "Last-Event-ID", "The id of the last event, to resume after it.", str, {"type": "string"}
)
STREAM_HEADERS = HEADERS | {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}

log = logging.getLogger(__name__)


def live_parameters(layer: Layer) -> list[Parameter]:
    """Return the parameters of a request for a stream."""
    return [
        *filter_parameters(layer),
        Parameter.choice(
            "since",
            "now: cells that change from now on; open: first all cells that are in live tables.",
            ["now", "open"],
        ),
        Parameter.whole(
            "interval_ms", f"How often at most; left out, {INTERVAL_MS}.",
            INTERVAL_MS_MIN, INTERVAL_MS_MAX,
        ),
    ]  # fmt: skip


class LiveStreams:
    """The streams of one worker; ``settings`` bounds their number, and the rows of one step."""

    def __init__(
        self, themap: Map, live: LiveSource, cache: ArchiveCache, settings: Settings
    ) -> None:
        self._map = themap
        self._live = live
        self._cache = cache
        self._settings = settings
        self._running: set[asyncio.Task[Any]] = set()
        self._making = asyncio.Semaphore(settings.query_concurrency_max)

    async def close(self, _: web.Application) -> None:
        """End all streams; their readers come back to another worker."""
        for task in self._running:
            task.cancel()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Write events until the reader goes, or the worker stops."""
        layer = find_layer(self._map, request.match_info["layer"])
        problems: list[str] = []
        values = read_parameters(live_parameters(layer), request.query.items(), problems)
        if problems:
            raise QueryError(f"cannot follow {layer.name}: {'; '.join(problems)}")
        if request.method == hdrs.METH_HEAD:
            # A stream without end would hold its connection, and nobody reads it.
            if last := request.headers.get(LAST_EVENT_ID.name, ""):
                decode_positions(layer, last)
            return web.Response(headers=STREAM_HEADERS)
        if len(self._running) >= self._settings.query_live_max:
            raise BusyError(
                f"cannot follow {layer.name}: {len(self._running)} readers follow cells already;"
                " want no more at once (query_live_max); ask again later, or another worker"
            )
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._running.add(task)
        try:
            return await self._stream(request, layer, values)
        finally:
            self._running.discard(task)

    async def _stream(
        self, request: web.Request, layer: Layer, values: Mapping[str, Any]
    ) -> web.StreamResponse:
        keys = KeyFilter.of(values)
        changes = Changes(layer, keys, self._live, self._cache, self._settings.query_rows_max)
        positions: Positions = {}
        if last := request.headers.get(LAST_EVENT_ID.name, ""):
            positions = decode_positions(layer, last)
        elif values.get("since") != "open":
            positions = await changes.now()
        response = web.StreamResponse(headers=STREAM_HEADERS)
        await response.prepare(request)
        writer = _Writer(response)
        interval_s = values.get("interval_ms", INTERVAL_MS) / 1_000
        loop = asyncio.get_running_loop()
        caller: Caller = request[CALLER]
        try:
            await writer.write([b"event: told\ndata: {}\n", _id(layer, positions)])
            while caller.may_still(LIVE):
                next_at = loop.time() + interval_s
                positions = await self._step(layer, changes, positions, writer)
                await asyncio.sleep(max(0.0, next_at - loop.time()))
            why = "cannot follow: the token was revoked or has expired; want a valid one"
            await writer.write([_problem(HTTPStatus.UNAUTHORIZED, why)])
        except TimeoutError:
            log.info("a reader that reads nothing is disconnected: %s", layer.name)
            if request.transport is not None:
                # An orderly end would wait until the reader has read everything.
                request.transport.abort()
        except ConnectionError:
            log.info("a reader of live cells has gone: %s", layer.name)
        return response

    async def _step(
        self, layer: Layer, changes: Changes, positions: Positions, writer: _Writer
    ) -> Positions:
        """Write the changed cells; return the reader's position after them."""
        try:
            batch, packed = await self._batch(changes, positions)
        except ArchiveDamagedError as error:
            log.error("live cells need archived rows that are damaged: %s", error)  # noqa: TRY400
            why = f"{damaged_words(error)}; begin anew, without an id"
            await writer.write([_problem(HTTPStatus.INTERNAL_SERVER_ERROR, why)])
            raise ConnectionError("rows that the reader lacks are damaged") from error
        except ArchiveError as error:
            log.warning("live cells wait for the archive: %s", error)
            await writer.write([f": {unanswered_words(error)}; it is asked again\n\n".encode()])
            return positions
        except QueryError as error:
            why = f"{error}; begin anew, without an id"
            await writer.write([_problem(HTTPStatus.GONE, why)])
            raise ConnectionError("the reader is too far behind") from error
        threads = self._cache.threads
        for piece in packed:
            rows = await threads.run(decode_block, piece, batch.rows.schema)
            for some in rows.iter_slices(CELLS_AT_ONCE):
                await writer.write([await threads.run(_events, layer, some)])
        if batch.rows.height:
            await writer.write([_events(layer, batch.rows)])
        if packed or batch.rows.height or writer.is_silent:
            await writer.write([_checkpoint(layer, batch), _id(layer, batch.positions)])
        return batch.positions

    async def _batch(
        self, changes: Changes, positions: Positions
    ) -> tuple[ChangeBatch, list[bytes]]:
        """Return the changes; many rows come as compressed pieces instead of in the batch."""
        async with self._making:
            batch = await changes.since(positions)
            if batch.rows.height <= CELLS_AT_ONCE:
                return batch, []
            packed = await self._cache.threads.run(
                lambda: [encode_block(some) for some in batch.rows.iter_slices(PACKED_ROWS)]
            )
            return dataclasses.replace(batch, rows=batch.rows.clear()), packed


class _Writer:
    """Writes to one reader, which must read its events in time."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._written_at = asyncio.get_running_loop().time()

    @property
    def is_silent(self) -> bool:
        """Whether nothing was written for long."""
        return asyncio.get_running_loop().time() - self._written_at > SILENT_S_MAX

    async def write(self, parts: Iterable[bytes]) -> None:
        """Write, and wait until most of it is sent.

        Raises:
            TimeoutError: the reader is slower than ``SLOW_S_MAX``.
            ConnectionError: the reader has gone.
        """
        async with asyncio.timeout(SLOW_S_MAX):
            await self._response.write(b"".join(parts))
        self._written_at = asyncio.get_running_loop().time()


def _events(layer: Layer, rows: pl.DataFrame) -> bytes:
    """Return the events of cells, each with whether its cell is closed."""
    about = zip(
        cell_rows(layer, rows), rows["source_partition"].to_list(), rows["is_closed"].to_list(),
        strict=True,
    )  # fmt: skip
    cells = (LiveCell(*msgspec.structs.astuple(cell), *others) for cell, *others in about)
    return b"".join(b"event: cell\ndata: " + encoded(cell) + b"\n\n" for cell in cells)


def _checkpoint(layer: Layer, batch: ChangeBatch) -> bytes:
    facts = batch.facts.values()
    checkpoint = {
        "watermark_ms": known_ms(min((fact.closed_ms for fact in facts), default=NEVER_MS)),
        "partial": not batch.positions.keys() >= set(range(layer.partitions)),
        "whole_from": later_measures(layer, whole_of(facts)),
    }
    return b"event: told\ndata: " + orjson.dumps(checkpoint) + b"\n"


def _id(layer: Layer, positions: Positions) -> bytes:
    """Return the last lines of an event: the id of a position."""
    return b"id: " + encode_positions(layer, positions).encode() + b"\n\n"


def _problem(status: HTTPStatus, detail: str) -> bytes:
    about = orjson.dumps({"status": status, "detail": detail})
    return b"event: problem\ndata: " + about + b"\n\n"
