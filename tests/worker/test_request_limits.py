"""No request holds the event loop for long, or much memory, at the limits of each kind.

In the process of the test, beside other requests; ``test_requests_under_load`` asks a whole worker.
The endpoint promises holds below 50 ms. Each is logged (``--log-level info``); five times as much
fails, which no crowded machine makes of one that is kept.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import polars as pl
import pytest

from app.peers.wire import PATH, encode_reads
from tables.model.window import Window
from tables.query.live import LiveRead
from tables.state.cell import archive_schema
from tests.support.common import dataclasses_replace, small_map
from tests.support.loop_meter import WORK_S, Loop, reset_peak, resident, work_s
from tests.support.web_support import FrameCells, served, stored

log = logging.getLogger(__name__)

SECONDS_MAX = 0.25
"""The hold that is clearly broken, on a machine that does the known work in ``WORK_S``."""

TRIES = 3
ROWS = 200_000
STEP_MS = 1_000
END_MS = ROWS * STEP_MS
MEMORY_BYTES_MAX = 1_000 * 2**20

HOURS, DAYS = small_map().layers
SECONDS = dataclasses_replace(HOURS, window=Window(STEP_MS))
MAP = small_map(layers=(SECONDS, dataclasses_replace(DAYS, window=Window(60_000))))
CSV, LINES = {"Accept": "text/csv"}, {"Accept": "application/x-ndjson"}
ARROW = {"Accept": "application/vnd.apache.arrow.stream"}
RANGE = f"from=0&to={END_MS}"
CELLS, FAMILY = f"/v1/layers/hour/cells?{RANGE}", f"/v1/families/hour/cells?{RANGE}"
CURSOR = "&cursor=WyJob3VyIiwxLDE5OTAwMDAwMCwiSkZLIiwiVUEiXQ"
GZIP = {"Accept-Encoding": "gzip"}

REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "map": ("/v1/map", {}),
    "layers": ("/v1/layers", {}),
    "families": ("/v1/families", {}),
    "ledger": ("/v1/ledger", {}),
    "metrics": ("/metrics", {}),
    "openapi": ("/openapi.json", {}),
    "docs": ("/docs", {}),
    "cells, JSON": (f"{CELLS}&limit=10000", {}),
    "cells, JSON again, compressed": (f"{CELLS}&limit=10000", GZIP),
    "cells, CSV": (f"{CELLS}&limit=10000", CSV),
    "cells, lines": (f"{CELLS}&limit=10000", LINES),
    "cells, Arrow": (f"{CELLS}&limit=10000", ARROW),
    "cells, after a cursor": (f"{CELLS}&limit=10000{CURSOR}", {}),
    "cells, one key": (f"{CELLS}&limit=10000&key.origin=JFK&key.carrier=UA", {}),
    "family, all keys": (f"{FAMILY}&group=carrier&limit=10000", {}),
    "family, small steps": (f"{FAMILY}&step=1s&group=-&limit=10000", {}),
    "family, crossing steps": (f"{FAMILY}&step=65s&group=-&limit=10000", CSV),
    "family, many crossing steps": (
        "/v1/families/hour/cells?from=2013-01-01&to=2015-01-01&step=65s&explain=true", {},
    ),
    "family, a prefix": (f"{FAMILY}&prefix.carrier=U&group=carrier&limit=10000", ARROW),
    "family, a century": (
        "/v1/families/hour/cells?from=1970-01-01&to=2070-01-01&step=month&group=-", {},
    ),
    "top": (f"/v1/layers/hour/top?by=variance_delay&n=10000&{RANGE}", {}),
    "top, CSV": (f"/v1/layers/hour/top?by=sum_delay&n=10000&{RANGE}", CSV),
    "live, open cells": ("/v1/layers/hour/live?since=open", {}),
    "live, now": ("/v1/layers/hour/live?since=now", {}),
    "another worker": (PATH, {}),
}  # fmt: skip

STATUSES = {"family, many crossing steps": 400, "family, a century": 400}


def many(hours: range) -> pl.DataFrame:
    """Return cells of a second each, with a thousand different keys among them."""
    (one,) = pl.DataFrame([stored()], schema=archive_schema(SECONDS), orient="row").rows(named=True)
    return (
        pl.DataFrame({"window_start": [second * STEP_MS for second in hours]})
        .with_columns(*(pl.lit(v, dtype=archive_schema(SECONDS)[n]).alias(n)
                        for n, v in one.items() if n != "window_start"))
        .with_columns(("U" + (pl.col("window_start") // STEP_MS % 1_000).cast(pl.String))
                      .alias("key_carrier"))
        .select(list(archive_schema(SECONDS)))
    )  # fmt: skip


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[tuple[FrameCells, str]]:
    """Serve as many rows from the archive, of which half are final, as from live tables."""
    async with served(MAP, tmp_path) as (view, url):
        archived = many(range(ROWS // 2))
        times = archived["window_start"] * 1_000
        await view.archive.write(MAP.layer("hour"), archived, times)
        view.live.frame = many(range(ROWS // 2, ROWS))
        view.live.archived_ms = view.live.evicted_ms = END_MS // 4
        yield view.live, url


async def ask(session: aiohttp.ClientSession, url: str, name: str) -> int:
    """Send a request, read the answer, at most 200 kB of a stream, and return the status."""
    path, headers = REQUESTS[name]
    sent: dict[str, Any] = {"headers": headers}
    method = "GET"
    if path == PATH:
        method, sent["data"] = "POST", encode_reads(MAP, [LiveRead(MAP.layer("hour"), 0, END_MS)])
    async with session.request(method, url + path, **sent) as response:
        if name == "live, now":
            await response.content.readline()
        elif name.startswith("live"):
            await response.content.readexactly(200_000)
        else:
            while await response.content.readany():
                pass
        return response.status


@pytest.mark.slow
async def test_no_request_holds_the_loop_or_much_memory(
    endpoint: tuple[FrameCells, str],
) -> None:
    """Each kind at its limits, while others are answered; the best of some tries counts."""
    _, url = endpoint
    scale = max(1.0, work_s() / WORK_S)
    held_max_s = SECONDS_MAX * scale
    before = resident("VmRSS")
    reset_peak()
    lines, slow = [], []
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def load() -> None:
            while True:
                await ask(session, url, "family, small steps")

        beside = asyncio.create_task(load())
        for name in REQUESTS:
            held_s = float("inf")
            for _ in range(TRIES):
                async with Loop() as loop:
                    status = await ask(session, url, name)
                held_s = min(held_s, loop.held_s)
                if held_s <= held_max_s:
                    break
            lines.append(f"{name:32} {status} {held_s * 1_000:6.1f} ms")
            if held_s > held_max_s or status != STATUSES.get(name, 200):
                slow.append(lines[-1])
        beside.cancel()
        await asyncio.wait([beside])
    peak = resident("VmHWM") - before
    lines.insert(0, f"may hold {held_max_s * 1_000:.0f} ms; most memory {peak >> 20} MiB")
    log.info("%s", "\n".join(lines))
    assert slow == [], "\n".join(lines)
    assert peak <= MEMORY_BYTES_MAX


async def test_a_hold_is_seen() -> None:
    """The loop may compute, or wait for a computation elsewhere."""
    async with Loop() as loop:
        at = time.thread_time()
        while time.thread_time() - at < 0.2:
            pass
    assert loop.held_s >= 0.19
    async with Loop() as loop:
        threading.Event().wait(0.5)
    assert loop.held_s >= 0.2
