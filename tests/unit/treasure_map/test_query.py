"""The query clients, with and without asyncio: rows, frames, top keys, live cells."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import orjson
import polars as pl
import pytest

from tests.support.common import DAY_MS, HOUR_MS, small_map
from tests.support.servers import free_ports
from tests.support.web_support import FrameCells, frame, in_thread, release_before, served, stored
from treasure_map import LiveCell, QueryClient, QueryFailedError, Range
from treasure_map.events import EventReader
from treasure_map.query_async import AsyncQueryClient
from treasure_map.requests import time_text
from treasure_map.version import version

MAP = small_map()
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
BIG = 2**90 + 1
TIME = pl.Datetime("ms", "UTC")
ROWS = [
    stored(origin, hour=hour) | {"sum_delay": BIG}
    for origin in ("JFK", "LGA", "EWR")
    for hour in range(4)
]
DAY = Range(0, DAY_MS, step="1h", group=["origin"], measures=["count", "sum_delay"])


async def test_both_clients_read_rows_of_all_pages(tmp_path: Path) -> None:
    """Both read the same rows, with exact integers; the limit cuts and says so."""
    async with served(MAP, tmp_path, ROWS, web_token=TOKEN) as (_, url):
        with QueryClient(url, TOKEN) as client:
            whole = await in_thread(client.rows, "hour", DAY)
            paged = await in_thread(client.rows, "hour", DAY, page_rows=5)
            some = await in_thread(client.rows, "hour", DAY, limit=7, page_rows=5)
            families = await in_thread(client.families)
        async with AsyncQueryClient(url, TOKEN) as later:
            other = await later.rows("hour", DAY)
            themap = await later.map()
            assert (themap["name"], themap["version"]) == ("small", version())
            assert len((await later.cells("hour", {"origin": "JFK"}, 0, DAY_MS)).cells) == 4
    assert len(whole.rows) == 12
    assert whole.rows == paged.rows == other.rows
    assert whole.rows[0].measures == {"count": 1, "sum_delay": BIG}
    assert (whole.exactness, whole.more, whole.as_of) == (
        "exact",
        False,
        {"flights.raw": {"0": 7, "1": 7}},
    )
    assert (some.rows, some.more) == (whole.rows[:7], True)
    assert families[0].name == "hour"


def test_both_clients_have_the_same_methods() -> None:
    """Each says what it does and takes, as ``help()`` shows it."""
    for name in set(vars(QueryClient)) | set(vars(AsyncQueryClient)):
        if not name.startswith("_"):
            one, other = getattr(QueryClient, name), getattr(AsyncQueryClient, name)
            assert list(inspect.signature(one).parameters) == list(
                inspect.signature(other).parameters
            )
            assert one.__name__ == name
            assert one.__doc__
            assert other.__doc__
    assert list(inspect.signature(QueryClient().cells).parameters)[:2] == ["layer", "key"]


def arrow_types(found: pl.DataFrame, *names: str) -> list[str]:
    """Return the types that another library, DuckDB, reads in a frame's Arrow stream."""
    with duckdb.connect() as database:
        # DuckDB finds the stream by the name of its variable.
        stream = found.__arrow_c_stream__()  # noqa: F841
        described = database.execute("DESCRIBE FROM stream").fetchall()
    return [kind for name, kind, *_ in described if name in names]


async def test_frames_come_as_arrow(tmp_path: Path) -> None:
    """All pages come as one frame, with sums as decimals and times as datetimes of UTC."""
    async with served(MAP, tmp_path, ROWS) as (_, url):
        with QueryClient(url) as client:
            found = await in_thread(client.frame, "hour", DAY, page_rows=5)
        async with AsyncQueryClient(url) as later:
            assert (await later.frame("hour", DAY)).equals(found)
            cells = await later.cells_frame("hour", {"origin": "JFK"}, 0, DAY_MS, page_cells=3)
            assert cells.height == 4
    assert found.height == 12
    assert found.schema["sum_delay"] == pl.Decimal(38, 0)
    assert int(found["sum_delay"][0]) == BIG
    for one in (found, cells):
        assert {one.schema[name] for name in ("window_start", "window_end")} == {TIME}
        assert arrow_types(one, "window_start", "window_end") == ["TIMESTAMP WITH TIME ZONE"] * 2
    assert found["window_start"].unique().sort().dt.epoch("ms").to_list() == [
        hour * HOUR_MS for hour in range(4)
    ]


async def test_pages_of_the_release_before_are_read(tmp_path: Path) -> None:
    """They have no range and do not count the rows after them: 0 then, but there may be more."""
    async with (
        served(MAP, tmp_path, ROWS) as (_, url),
        release_before(url) as older,
        AsyncQueryClient(older) as client,
    ):
        for limit, is_cut in (2, True), (12, False), (None, False):
            rows = await client.rows("hour", DAY, limit=limit)
            cells = await client.cells("hour", {}, 0, DAY_MS, limit=limit)
            for answer, found in (rows, rows.rows), (cells, cells.cells):
                assert (len(found), answer.more) == (limit or 12, is_cut)
                assert (answer.rows_after, answer.from_ms, answer.to_ms) == (0, 0, 0)
        assert (await client.frame("hour", DAY)).height == 12
        assert (await client.top("hour", "count", Range(0, DAY_MS))).rows_after == 0


async def test_top_keys_and_filters(tmp_path: Path) -> None:
    """Several keys, prefixes, nothing kept, and further parameters."""
    async with served(MAP, tmp_path, ROWS) as (_, url):
        with QueryClient(url) as client:
            top = await in_thread(client.top, "hour", "count", Range(0, 2 * HOUR_MS), n=2)
            one = Range(
                0, DAY_MS, key={"origin": ["JFK", "LGA"]}, group=[], more={"partial": "refuse"}
            )
            total = await in_thread(client.rows, "hour", one)
            begins = await in_thread(client.rows, "hour", Range(0, DAY_MS, prefix={"origin": "E"}))
        async with AsyncQueryClient(url) as later:
            assert (await later.top("hour", "count", Range(0, 2 * HOUR_MS), n=2)).cells == top.cells
    assert [(row.key["origin"], row.measures["count"]) for row in top.cells] == [
        ("EWR", 2), ("JFK", 2),
    ]  # fmt: skip
    assert [(row.key, row.measures["count"]) for row in total.rows] == [({}, 8)]
    assert [row.key for row in begins.rows] == [{"origin": "EWR"}]


async def test_refusals_say_what_to_change(tmp_path: Path) -> None:
    """Both clients raise them, with status and time to ask again."""
    async with served(MAP, tmp_path, ROWS, query_live_max=0) as (_, url):
        async with AsyncQueryClient(url) as later:
            with pytest.raises(QueryFailedError, match="did you mean day") as caught:
                await later.rows("days", DAY)
            assert caught.value.status == 404
            with pytest.raises(QueryFailedError, match="query_live_max") as caught:
                async for _ in later.live("hour"):
                    pass
            assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        with QueryClient(url) as client, pytest.raises(QueryFailedError, match="query_live_max"):
            await in_thread(list, client.live("hour"))
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    async with AsyncQueryClient(gone) as later:
        with pytest.raises(QueryFailedError, match="start a worker there"):
            await later.map()
    with pytest.raises(ValueError, match="want http://host:port"):
        AsyncQueryClient("ftp://x")


async def test_both_clients_follow_live_cells(tmp_path: Path) -> None:
    """They follow until they have seen enough, or the worker stops."""
    seen: list[LiveCell] = []

    def follow(url: str) -> list[LiveCell]:
        with QueryClient(url) as client:
            found = []
            for cell in client.live("hour", since="open", interval_ms="100"):
                found.append(cell)
                if len(found) == 2:
                    return found
        raise AssertionError("the stream ended")

    async with served(MAP, tmp_path, web_token="") as (view, url):
        live: FrameCells = view.live
        live.frame, live.position, live.evicted_ms = frame(ROWS[:2]), 5, -(2**62)
        blocking = await in_thread(follow, url)
        async with AsyncQueryClient(url) as later:
            async for cell in later.live("hour", since="open", interval_ms="100"):
                seen.append(cell)
                if len(seen) == 2:
                    break
    assert seen == blocking
    assert [cell.measures["sum_delay"] for cell in seen] == [BIG, BIG]
    assert [cell.window_start for cell in seen] == [0, HOUR_MS]


def test_events_are_read_however_they_are_cut() -> None:
    """Comments, several kinds, and a problem that ends the stream."""
    reader = EventReader()
    cell: dict[str, Any] = {
        "key": {"a": 1}, "window_start": 0, "window_end": 5, "measures": {"sum_x": str(BIG)},
        "version": 7, "source_partition": 0, "closed": True,
    }  # fmt: skip
    lines = [b": hello\n", b"\n", b"event: cell\r\n", b"data: " + orjson.dumps(cell) + b"\r\n",
             b"\r\n", b"event: told\n", b"data: {}\n", b"id: abc\n", b"\n"]  # fmt: skip
    found = [one for line in lines for one in reader.take(line)]
    assert [one.measures for one in found] == [{"sum_x": BIG}]
    assert reader.last_id == "abc"
    for line in (b"event: problem\n", b'data: {"detail": "begin anew"}\n'):
        assert list(reader.take(line)) == []
    with pytest.raises(QueryFailedError, match="begin anew"):
        list(reader.take(b"\n"))


def test_times_may_be_of_any_kind() -> None:
    """Only a datetime that could be two moments is refused."""
    assert time_text(5) == "5"
    assert time_text(dt.date(2013, 1, 1)) == "2013-01-01"
    assert time_text(dt.datetime(2013, 1, 1, tzinfo=dt.UTC)) == "2013-01-01T00:00:00.000+00:00"
    with pytest.raises(ValueError, match="want an aware datetime"):
        time_text(dt.datetime(2013, 1, 1))  # noqa: DTZ001 - that is refused


def test_the_client_needs_nothing_of_a_worker() -> None:
    """No aiohttp, no polars, no Kafka until they are used."""
    code = "import sys, treasure_map; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = set(done.stdout.split())
    assert "msgspec" in imported
    assert not imported & {"aiohttp", "polars", "aiokafka", "faust", "app", "agents", "tables"}


async def test_the_async_client_is_for_many_tasks(tmp_path: Path) -> None:
    """One client, several requests at once."""
    async with (
        served(MAP, tmp_path, ROWS, query_concurrency_max=20) as (_, url),
        AsyncQueryClient(url) as client,
    ):
        answers = await asyncio.gather(*(client.rows("hour", DAY) for _ in range(10)))
    assert all(answer.rows == answers[0].rows for answer in answers)
