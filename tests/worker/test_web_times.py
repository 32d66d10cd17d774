"""Times over HTTP: the clock of the worker, open ends, rounding, and pages while time passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tests.support.common import HOUR_MS, small_map
from tests.support.web_support import get, in_thread, served, stored
from treasure_map import QueryClient, QueryFailedError, Range

MAP = small_map()
CELLS, FAMILY, TOP = "layers/hour/cells", "families/hour/cells", "layers/hour/top"
ROWS = [stored(origin, hour=hour) for origin in ("EWR", "JFK", "LGA") for hour in range(8, 20)]
NOW_MS = 16 * HOUR_MS + 20 * 60_000


class Clock:
    """A wall clock that the test moves."""

    ms = NOW_MS

    def __call__(self) -> int:
        """Return the time."""
        return self.ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the endpoint."""
    found = Clock()
    monkeypatch.setattr("app.web.endpoint.wall_clock_ms", found)
    return found


def hours(body: Any) -> list[int]:
    """Return the different hours in which rows begin."""
    return sorted({row["window_start"] // HOUR_MS for row in body["cells"]})


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("path", [CELLS, f"{FAMILY}?step=1h", f"{TOP}?by=count"])
async def test_the_clock_of_the_worker_says_now(tmp_path: Path, path: str) -> None:
    """The answer says the instants, and the whole windows that it is of."""
    async with served(MAP, tmp_path, ROWS[::2], ROWS[1::2]) as (_, url):
        ask = f"{url}/v1/{path}{'&' if '?' in path else '?'}"
        status, body, _ = await get(f"{ask}from=-2h&to=now")
        assert status == 200
        assert (body["from"], body["to"]) == (14 * HOUR_MS, 17 * HOUR_MS)
        assert body["asked"] == {"from": NOW_MS - 2 * HOUR_MS, "to": NOW_MS}
        assert hours(body) == ([14] if path.startswith(TOP) else [14, 15, 16])
        _, body, _ = await get(f"{ask}from=today&to=today%2B10h")
        assert (body["from"], body["to"], "asked" in body) == (0, 10 * HOUR_MS, False)
        _, body, _ = await get(f"{ask}from=now&to=-1h")
        assert "want a time after from" in body["detail"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("path", [CELLS, f"{FAMILY}?step=1h", f"{TOP}?by=count"])
async def test_without_ends_all_there_is_is_answered(tmp_path: Path, path: str) -> None:
    """The head says where that begins and ends; without cells it is empty."""
    async with served(MAP, tmp_path, ROWS[::2], ROWS[1::2]) as (view, url):
        view.live.first_ms, view.live.last_ms = 8 * HOUR_MS, 19 * HOUR_MS + 5
        mark = "&" if "?" in path else "?"
        _, body, _ = await get(f"{url}/v1/{path}")
        assert (body["from"], body["to"]) == (8 * HOUR_MS, 20 * HOUR_MS)
        assert body["asked"] == {"from": None, "to": None}
        assert hours(body) == ([8] if path.startswith(TOP) else list(range(8, 20)))
        _, body, _ = await get(f"{url}/v1/{path}{mark}from=-1h")
        assert (body["from"], body["to"]) == (15 * HOUR_MS, 20 * HOUR_MS)
        _, body, _ = await get(f"{url}/v1/{path}{mark}to={9 * HOUR_MS + 1}")
        assert (body["from"], body["to"]) == (8 * HOUR_MS, 10 * HOUR_MS)
        assert body["asked"] == {"from": None, "to": 9 * HOUR_MS + 1}
    async with served(MAP, tmp_path / "empty") as (view, url):
        view.live.first_ms, view.live.last_ms = NEVER_ENDS_MS, NEVER_MS
        status, body, _ = await get(f"{url}/v1/{path}")
        assert (status, body["cells"], body["from"] == body["to"]) == (200, [], True)


@pytest.mark.parametrize("words", ["from=-6h&to=now", "from=-6h", ""])
@pytest.mark.parametrize("path", [CELLS, f"{FAMILY}?group=origin", f"{FAMILY}?step=1h"])
async def test_pages_are_of_one_range_while_time_passes(
    clock: Clock, tmp_path: Path, path: str, words: str
) -> None:
    """The cursor has the range of the first page."""
    async with served(MAP, tmp_path, ROWS[::2], ROWS[1::2]) as (view, url):
        view.live.first_ms, view.live.last_ms = 8 * HOUR_MS, 19 * HOUR_MS + 5
        ask = f"{url}/v1/{path}{'&' if '?' in path else '?'}{words}"
        _, whole, _ = await get(f"{ask}&limit=1000")
        found: list[Any] = []
        cursor, left = "", len(whole["cells"])
        while cursor is not None:
            _, body, _ = await get(f"{ask}&limit=2{cursor and f'&cursor={cursor}'}")
            assert (body["from"], body["to"]) == (whole["from"], whole["to"])
            found += body["cells"]
            left -= len(body["cells"])
            assert body["rows_after"] == left
            cursor = body["cursor"]
            clock.ms += 3 * HOUR_MS
            view.live.last_ms += 3 * HOUR_MS
    assert found == whole["cells"]
    assert len(found) > 2


async def test_an_etag_is_of_the_range_and_not_of_its_words(clock: Clock, tmp_path: Path) -> None:
    """The same words are another question an hour later; open ends have no last answer."""
    async with served(MAP, tmp_path, [], ROWS) as (view, url):
        view.live.archived_ms = view.live.evicted_ms = 20 * HOUR_MS
        view.live.first_ms, view.live.last_ms = 8 * HOUR_MS, 19 * HOUR_MS + 5
        ask = f"{url}/v1/{FAMILY}?from=-6h&to=now&step=1h"
        _, body, headers = await get(ask)
        assert body["final"] is True
        tag = {"If-None-Match": headers["Etag"]}
        clock.ms += 60_000
        with pytest.raises(orjson.JSONDecodeError):
            await get(ask, **tag)
        clock.ms += HOUR_MS
        status, later, _ = await get(ask, **tag)
        assert (status, hours(later)) == (200, [hour + 1 for hour in hours(body)])
        status, body, headers = await get(f"{url}/v1/{FAMILY}", **{"If-None-Match": ""})
        assert (status, body["final"], "Etag" in headers) == (200, False, False)


@pytest.mark.usefixtures("clock")
async def test_clients_send_the_words_on(tmp_path: Path) -> None:
    """None is an open end; frames have the same rows."""
    async with served(MAP, tmp_path, ROWS) as (view, url):
        view.live.first_ms, view.live.last_ms = 8 * HOUR_MS, 19 * HOUR_MS + 5

        def ask() -> list[Any]:
            with QueryClient(url) as client:
                pages: list[dict[str, Any]] = []
                frame = client.frame(
                    "day",
                    Range("-2h", "now", step="1h"),
                    page_rows=2,
                    limit=2,
                    on_page=pages.append,
                )
                return [
                    client.rows("day", Range("-2h", "now", step="1h")),
                    client.cells("hour", {}, "-2h", "now", limit=4),
                    client.cells("hour", {"origin": "JFK"}),
                    frame.height, pages,
                    client.cells_frame("hour", {}, "today", limit=5, page_cells=2).height,
                ]  # fmt: skip

        rows, cells, all_cells, height, pages, five = await in_thread(ask)
    assert [row.window_start for row in rows.rows] == [hour * HOUR_MS for hour in (14, 15, 16)]
    assert (rows.from_ms, rows.to_ms, rows.more) == (14 * HOUR_MS, 17 * HOUR_MS, False)
    assert (len(cells.cells), cells.more, cells.rows_after) == (4, True, 5)
    assert (all_cells.from_ms, all_cells.to_ms, len(all_cells.cells)) == (
        8 * HOUR_MS, 20 * HOUR_MS, 12,
    )  # fmt: skip
    assert (height, five) == (2, 5)
    assert [(page["exactness"], page["rows_after"]) for page in pages] == [("exact", 1)]


async def test_too_large_a_question_is_told_in_numbers(tmp_path: Path) -> None:
    """Only windows there are count; the refusal says which, or that the calendar was counted."""
    ask = f"/v1/{FAMILY}?from=1970-01-01&to=2070-01-01"
    async with served(MAP, tmp_path, ROWS, query_cells_max=11) as (_, url):
        _, body, _ = await get(f"{url}{ask}")
        assert (
            "the last window are not known, as while workers start (/v1/cluster" in body["detail"]
        )
    async with served(MAP, tmp_path / "a", ROWS, query_cells_max=11) as (view, url):
        view.live.first_ms, view.live.last_ms = 8 * HOUR_MS, 19 * HOUR_MS + 5
        _, body, _ = await get(f"{url}{ask}")
        assert (
            "got about 24; want at most 11 (query_cells_max); these are 12 windows of hour with"
            " about 2 cells each, from 1970-01-01T08:00:00Z to 1970-01-01T20:00:00Z, where there"
            " are windows" in body["detail"]
        )
        _, body, _ = await get(f"{url}{ask}&step=30m")
        assert "too many steps; got 22 of 30m from 1970-01-01T08:00:00Z" in body["detail"]


SILENT = "flights.raw[0], flights.raw[1] do not answer yet"


@pytest.mark.parametrize(
    ("words", "ends", "windows"),
    [
        ("", "from and to", "the first window and the last window"),
        ("from=1970-01-01", "to", "the last window"),
        ("to=1970-01-02", "from", "the first window"),
    ],
)
@pytest.mark.parametrize(
    "path", [f"{FAMILY}?step=day", f"{FAMILY}?explain=true", f"{TOP}?by=count"]
)
async def test_an_open_end_waits_for_the_owners_that_know_it(
    tmp_path: Path, path: str, words: str, ends: str, windows: str
) -> None:
    """A worker that starts is asked again, by programs too; what has been known once is enough."""
    async with served(MAP, tmp_path, ROWS[::2], ROWS[1::2]) as (view, url):
        view.live.first_ms, view.live.last_ms = 8 * HOUR_MS, 19 * HOUR_MS + 5
        ask = f"{url}/v1/{path}&{words}"
        view.live.served = set()
        status, body, headers = await get(ask)
        assert (status, headers["Retry-After"]) == (503, "1")
        want = f"{SILENT}, and they know {windows}; ask again later, or give {ends}"
        assert body["detail"].endswith(want)
        whole = f"{url}/v1/{path}&from=1970-01-01&to=1970-01-02"
        assert (await get(whole))[0] == 200
        for owners, exactness in ([0], "partial"), ([0, 1], "exact"), ([], "partial"):
            view.live.served = set(owners)
            status, body, _ = await get(ask)
            assert (status, body.get("exactness", exactness)) == (200, exactness)


async def test_clients_are_told_when_to_ask_for_open_ends_again(tmp_path: Path) -> None:
    """Rows, frames and the first keys."""
    async with served(MAP, tmp_path, ROWS) as (view, url):
        view.live.served = set()
        with QueryClient(url) as client:
            for ask in (
                lambda: client.rows("hour", Range(step="day")),
                lambda: client.frame("hour", Range("1970-01-01", step="day")),
                lambda: client.top("hour", "count", Range()),
            ):
                with pytest.raises(QueryFailedError, match=r"they know .* ask again") as caught:
                    await in_thread(ask)
                assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


async def test_partitions_without_windows_do_not_say_that_there_are_none(tmp_path: Path) -> None:
    """While another owner is silent, no answer is exact for want of windows."""
    async with served(MAP, tmp_path) as (view, url):
        view.live.first_ms, view.live.last_ms = NEVER_ENDS_MS, NEVER_MS
        view.live.served = {0}
        status, body, _ = await get(f"{url}/v1/{FAMILY}")
        assert (status, "owners of flights.raw[1] do not" in body["detail"]) == (503, True)
        view.live.served = {0, 1}
        _, body, _ = await get(f"{url}/v1/{FAMILY}")
        assert (body["exactness"], body["cells"]) == ("exact", [])
        view.live.served = {0}
        _, body, _ = await get(f"{url}/v1/{FAMILY}")
        assert (body["exactness"], body["cells"]) == ("partial", [])
        status, body, _ = await get(f"{url}/v1/{FAMILY}?partial=refuse")
        assert (status, "some owners do not answer" in body["detail"]) == (503, True)


@pytest.mark.parametrize(
    ("last_ms", "windows", "ends"),
    [
        (19 * HOUR_MS, "the first window", "from"),
        (NEVER_ENDS_MS, "the first window and the last window", "from and to"),
    ],
)
async def test_where_a_journal_does_not_know_its_windows_the_ends_are_wanted(
    tmp_path: Path, last_ms: int, windows: str, ends: str
) -> None:
    """Asking again does not help: journals and workers of earlier versions never know them."""
    async with served(MAP, tmp_path, ROWS, query_cells_max=100) as (view, url):
        view.live.last_ms = last_ms
        for words in ("step=day", "group=-"):
            status, body, headers = await get(f"{url}/v1/{FAMILY}?{words}")
            assert (status, "Retry-After" in headers) == (400, False)
            assert f"earlier version does not know {windows}; give {ends};" in body["detail"]
        status, _, _ = await get(f"{url}/v1/{FAMILY}?step=day&from=1970-01-01&to=1970-01-02")
        assert status == 200
