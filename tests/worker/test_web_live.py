"""Live cells over HTTP: server-sent events, from now or from the start, and on from the last id."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import app.web.live_stream
from tables.model.errors import ArchiveDamagedError, ArchiveError
from tests.support.common import HOUR_MS, small_map
from tests.support.live_streams import Stream, streams
from tests.support.waiting import until
from tests.support.web_support import FrameCells, frame, get, served, stored

MAP = small_map()
LIVE = "/v1/layers/hour/live?interval_ms=100"


def told_cells(cells: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return origin, hour, count, version and whether closed."""
    return [
        (c["key"]["origin"], c["window_start"] // HOUR_MS, c["measures"]["count"], c["version"],
         c["closed"])
        for c in cells
    ]  # fmt: skip


def grow(live: FrameCells, *rows: dict[str, Any], position: int) -> None:
    """Give the table rows, up to a position."""
    live.frame = frame(rows)
    live.position = position
    live.evicted_ms = -(2**62)


async def test_a_reader_gets_what_is_open_and_then_what_changes(tmp_path: Path) -> None:
    """Every cell has its version; a cell that did not change is not told again."""
    async with served(MAP, tmp_path) as (view, url):
        grow(view.live, stored("JFK", version=3), stored("LGA", version=5), position=5)
        async for stream in streams(f"{url}{LIVE}&since=open"):
            assert await stream.until_told() == []
            assert told_cells(await stream.until_told()) == [
                ("JFK", 0, 1, 3, False), ("LGA", 0, 1, 5, False),
            ]  # fmt: skip
            changed = stored("LGA", version=9, delays=[1, 2])
            grow(view.live, stored("JFK", version=3), changed, position=9)
            assert told_cells(await stream.until_told()) == [("LGA", 0, 2, 9, False)]
            view.live.closed_ms = HOUR_MS
            assert told_cells(await stream.until_told()) == [
                ("JFK", 0, 1, 3, True), ("LGA", 0, 2, 9, True),
            ]  # fmt: skip
            last = stream.last_id
        grow(view.live, stored("JFK", version=12), changed, position=12)
        async for stream in streams(url + LIVE, **{"Last-Event-ID": last}):
            await stream.until_told()
            assert told_cells(await stream.until_told()) == [("JFK", 0, 1, 12, True)]


async def test_from_now_on_nothing_old_is_told(tmp_path: Path) -> None:
    """Only keys that are wanted, also by prefix."""
    async with served(MAP, tmp_path) as (view, url):
        grow(view.live, stored("JFK", version=3), position=5)
        async for stream in streams(f"{url}{LIVE}&prefix.origin=L"):
            await stream.until_told()
            grow(view.live, stored("JFK", version=8), stored("LGA", version=9), position=9)
            assert told_cells(await stream.until_told()) == [("LGA", 0, 1, 9, False)]


async def test_bad_requests_are_refused_before_the_stream(tmp_path: Path) -> None:
    """Refusals are problem documents."""
    async with served(MAP, tmp_path, query_live_max=1) as (_, url):
        for path, status, detail in (
            ("/v1/layers/nope/live", 404, "no such layer"),
            (f"{LIVE}&since=ever", 400, "since: got 'ever'"),
            ("/v1/layers/hour/live?interval_ms=5", 400, "from 100 to 60000"),
        ):
            found, body, _ = await get(url + path)
            assert (found, detail in body["detail"]) == (status, True)
        found, body, _ = await get(url + LIVE, **{"Last-Event-ID": "abc"})
        assert (found, "not one of this layer" in body["detail"]) == (400, True)
        async for _ in streams(url + LIVE):
            found, body, headers = await get(url + LIVE)
            assert (found, headers["Retry-After"]) == (503, "1")
            assert "query_live_max" in body["detail"]


async def test_a_reader_too_far_behind_is_told_so(tmp_path: Path) -> None:
    """More was evicted than may be read at once: it begins anew."""
    rows = [stored(hour=hour, version=hour + 10) for hour in range(9)]
    async with served(MAP, tmp_path, [], rows, query_rows_max=3, query_cells_max=10_000) as (
        view,
        url,
    ):
        grow(view.live, position=5)
        async for stream in streams(url + LIVE):
            await stream.until_told()
            view.live.position, view.live.evicted_ms = 99, 9 * HOUR_MS
            kind, data = await asyncio.wait_for(stream.event(), 10)
            assert (kind, data["status"]) == ("problem", 410)
            assert "begin anew" in data["detail"]


async def test_an_archive_that_is_away_holds_news_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come when it is back."""
    rows = [stored(hour=1, version=7)]
    async with served(MAP, tmp_path, [], rows) as (view, url):
        grow(view.live, position=5)
        away = True
        read = view.archive.read

        async def sometimes(*arguments: Any) -> Any:
            if away:
                raise ArchiveError("away")
            return await read(*arguments)

        monkeypatch.setattr(view.archive, "read", sometimes)
        async for stream in streams(url + LIVE):
            await stream.until_told()
            view.live.position, view.live.evicted_ms = 9, 2 * HOUR_MS
            view.live.closed_ms = 2 * HOUR_MS
            line = b""
            while b"the archive does not answer" not in line:
                line = await asyncio.wait_for(stream.response.content.readline(), 10)
            away = False
            assert told_cells(await stream.until_told()) == [("JFK", 1, 1, 7, True)]


async def test_a_follower_that_needs_damaged_rows_is_told_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not come back by waiting."""
    rows = [stored(hour=1, version=7)]
    async with served(MAP, tmp_path, [], rows) as (view, url):
        grow(view.live, position=5)

        async def damaged(*_: Any) -> Any:
            raise ArchiveDamagedError("damaged")

        monkeypatch.setattr(view.archive, "read", damaged)
        async for stream in streams(url + LIVE):
            await stream.until_told()
            view.live.position, view.live.evicted_ms = 9, 2 * HOUR_MS
            view.live.closed_ms = 2 * HOUR_MS
            kind, data = await asyncio.wait_for(stream.event(), 10)
            assert (kind, data["status"]) == ("problem", 500)
            assert "archived rows are damaged; got layer hour, windows from" in data["detail"]


async def test_a_reader_that_takes_nothing_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is free again; no cells were made for it beyond those it was slow to take."""
    monkeypatch.setattr(app.web.live_stream, "SLOW_S_MAX", 0.3)
    rows = [stored(f"{number:06d}", version=3) for number in range(30_000)]
    async with served(MAP, tmp_path, query_live_max=1) as (view, url):
        grow(view.live, *rows, position=5)
        host, _, port = url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1_024)
        writer.write(f"GET {LIVE}&since=open HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

        async def is_free() -> bool:
            async with aiohttp.ClientSession() as session, session.get(url + LIVE) as response:
                return response.status == 200

        async def is_taken() -> bool:
            return not await is_free()

        await until(is_taken)
        await until(is_free)
        writer.close()


async def test_streams_end_when_the_worker_stops(tmp_path: Path) -> None:
    """Their readers see the end, and come back to another worker with their last id."""
    async with aiohttp.ClientSession() as session:
        async with served(MAP, tmp_path) as (view, url):
            grow(view.live, position=5)
            response = await session.get(url + LIVE)
            stream = Stream(response)
            await stream.until_told()
            assert stream.last_id
        with contextlib.suppress(aiohttp.ClientError):
            await asyncio.wait_for(response.content.read(), 20)
        assert response.content.at_eof() or response.content.exception() is not None
