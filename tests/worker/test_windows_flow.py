"""Awkward windows through the flow: folded, made coarser, archived and asked for."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from app.commands.map import draw
from app.commands.query import command
from app.mapfile.load import parse_map
from tables.archive.cassandra.cql import CassandraTable, compaction_window
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.layout import bucket_ms
from tables.archive.protocol import CellRange
from tables.model import ledger
from tables.model.errors import MapError
from tables.model.layer import Layer, Map
from tables.model.window import NEVER_MS, TIME_MS_MAX, TIME_MS_MIN, Window
from tables.state.block import encode_block
from tables.state.input_plan import plans_of
from tables.state.layer_table import FoldTable
from tests.support.common import (
    DAY_MS,
    HOUR_MS,
    MemoryLog,
    dataclasses_replace,
    flight,
    run_of,
    small_map,
)
from tests.support.local_worker import LocalWorker, archived
from tests.support.web_support import frame, get, in_thread, served, stored

RAW = "flights.raw"
WINDOWS = ["1ms", "250ms", "1h", "day", "7d", "365d", "36500d", "month", "year"]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def ms(*date: int, utc_offset_h: int = 0) -> int:
    """Return a moment by the clock of a zone in milliseconds."""
    zone = dt.timezone(dt.timedelta(hours=utc_offset_h))
    return (dt.datetime(*date, tzinfo=zone) - EPOCH) // dt.timedelta(milliseconds=1)  # type: ignore[misc,arg-type]


AWKWARD_MS = [
    TIME_MS_MIN + DAY_MS, ms(999, 12, 31), ms(1900, 2, 28), ms(1900, 3, 1), ms(1969, 12, 31),
    0, ms(2000, 2, 29), ms(2024, 2, 29), ms(2024, 3, 31, 1), ms(2024, 10, 27, 1), ms(2025, 1, 1),
]  # fmt: skip
NEAR = st.sampled_from([-DAY_MS, -HOUR_MS, -250, -2, -1, 0, 1, 249, HOUR_MS, DAY_MS])
TIMES = st.one_of(
    st.builds(lambda at, off: at + off, st.sampled_from(AWKWARD_MS), NEAR),
    st.integers(-3, 3),
    st.integers(TIME_MS_MIN, TIME_MS_MAX),
    st.sampled_from([TIME_MS_MIN, TIME_MS_MAX]),
)
# In order too, as logs nearly are: else most of the times would be too late.
LOGS = st.one_of(
    st.lists(TIMES, min_size=1, max_size=12), st.lists(TIMES, min_size=1, max_size=12).map(sorted)
)
SLACKS = st.sampled_from([0, 1, HOUR_MS, 40 * DAY_MS, 36_500 * DAY_MS])


def map_with(window: str, **changes: Any) -> Map:
    """Return the small map with one layer of other windows."""
    hour = small_map().layer("hour")
    return small_map(layers=(dataclasses_replace(hour, window=Window.parse(window), **changes),))


def folded(themap: Map, times: list[int], cuts: list[int]) -> tuple[dict[int, int], Counter[str]]:
    """Fold one event at each time, in the chunks that ``cuts`` make; return events by window."""
    plan = plans_of(themap)[RAW]
    assert plan.source is not None
    decoder, folder, layer = Decoder(plan.source), Folder(plan), plan.layers[0]
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    table, counts, before = FoldTable(layer), Counter[str](), Before(NEVER_MS, {})
    for start, stop in itertools.pairwise(sorted({0, *cuts, len(times)})):
        values: list[bytes | None] = [flight(at) for at in times[start:stop]]
        run = run_of(values, first_offset=start, append_time_ms=TIME_MS_MAX)
        (content,) = folder.fold(decoder.decode([run]), {0: before})
        ledger.add(counts, content.ledger)
        for block in content.blocks.values():
            table.add(encode_block(block), stop)
        before = Before(content.stream_time_ms, {layer.name: content.stream_time_ms - slack})
    cells = table.cells()
    return dict(cells.select("window_start", "events").iter_rows()), counts


def recomputed(layer: Layer, times: list[int]) -> tuple[dict[int, int], int]:
    """Return events by window, and how many are too late, one event after the other."""
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    found: dict[int, int] = defaultdict(int)
    late, newest = 0, NEVER_MS
    for at in times:
        start = layer.window.start(at)
        if layer.window.end(start) <= newest - slack:
            late += 1
        else:
            found[start] += 1
        newest = max(newest, at)
    return dict(found), late


@given(st.sampled_from(WINDOWS), SLACKS, SLACKS, LOGS, st.lists(st.integers(1, 11), max_size=3))
@example("1ms", 0, 0, [-1, 0, -1, -2, 1, 0], [3])
@example("1ms", 0, 1, [-1, 0, -1, -2, 1, 0], [])
@example("month", 0, 0, [ms(1900, 3, 1) - 1, ms(1900, 3, 1), ms(1900, 2, 1)], [2])
@example("year", 0, DAY_MS, [ms(2000, 12, 31), ms(2001, 1, 1), ms(2000, 1, 1)], [])
@example("year", 0, 0, [TIME_MS_MIN, TIME_MS_MAX, ms(9999, 1, 1), TIME_MS_MIN], [1])
@example("365d", 0, 0, [TIME_MS_MAX, -1, 0], [])
def test_a_fold_at_awkward_times_equals_a_plain_loop(
    window: str, disorder_ms: int, lateness_ms: int, times: list[int], cuts: list[int]
) -> None:
    """The same cells and the same late events, of every window, however the log is cut."""
    themap = map_with(window, max_out_of_orderness_ms=disorder_ms, allowed_lateness_ms=lateness_ms)
    cells, counts = folded(themap, times, [cut for cut in cuts if cut < len(times)])
    wanted, late = recomputed(themap.layers[0], times)
    assert cells == wanted
    assert counts["layer.hour.too_late"] == late
    assert counts["layer.hour.folded"] == len(times) - late
    assert ledger.imbalances(counts, len(times), ["hour"]) == []


@pytest.mark.parametrize(
    ("day", "before_h", "after_h", "hours"),
    [((2024, 3, 31), 1, 2, 23), ((2024, 10, 27), 2, 1, 25), ((2024, 1, 31), 1, 1, 24)],
)
def test_clocks_of_daylight_saving_do_not_move_windows(
    day: tuple[int, int, int], before_h: int, after_h: int, hours: int
) -> None:
    """A local day in Berlin has 23 to 25 hour windows; a day window always has 24 hours.

    local   27 Oct   00  01  02  02  03        one event each ten minutes, from local midnight to
    UTC              22  23  00  01  02        local midnight
    """
    begin = ms(*day, utc_offset_h=before_h)
    end = ms(*day, utc_offset_h=after_h) + DAY_MS
    times = list(range(begin, end, 600_000))
    by_hour, _ = folded(map_with("1h"), times, [])
    assert by_hour == dict.fromkeys(range(begin, end, HOUR_MS), 6)
    assert len(by_hour) == hours
    by_day, _ = folded(map_with("day"), times, [])
    turn = ms(*day)
    assert by_day == {turn - DAY_MS: 6 * before_h, turn: 6 * (hours - before_h)}


async def test_days_make_months_and_months_make_years(tmp_path: Path) -> None:
    """They go through journals, layer topics and archive, from year 1 on, with leap days."""
    day, carriers = small_map().layer("hour"), small_map().layer("day")
    day = dataclasses_replace(day, name="day", window=Window.parse("day"))
    month = dataclasses_replace(carriers, name="month", window=Window.parse("month"), finer="day")
    year = dataclasses_replace(carriers, name="year", window=Window.parse("year"), finer="month")
    themap = small_map(layers=(day, month, year))
    log = MemoryLog()
    times = sorted({at + off for at in AWKWARD_MS for off in (-1, 0, 1, HOUR_MS, 30 * DAY_MS)})
    for number, at in enumerate(times):
        log.put(RAW, number % 2, flight(at, "JFK" if number % 2 else "LGA", "UA", number))
    for partition in range(2):
        log.put(RAW, partition, ms(2033, 1, 1))
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(themap)
    house = LocalWorker(log, archive, tmp_path / "state", themap)
    try:
        await house.settle()
        for layer in (month, year):
            rows = await archived(house, layer.name)
            totals: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
            for number, at in enumerate(times):
                events, total = totals[layer.window.start(at)]
                totals[layer.window.start(at)] = (events + 1, total + number)
            found = rows.select("window_start", "events", "sum_delay").rows()
            assert {start: tuple(rest) for start, *rest in found} == totals
    finally:
        await house.kill()
        await archive.close()


def table_of(window: str, **changes: Any) -> CassandraTable:
    """Return the Cassandra table of a layer of these windows."""
    themap = map_with(window, **changes)
    return CassandraTable(themap, themap.layers[0], "space")


@given(st.sampled_from(WINDOWS), TIMES)
@example("1ms", -1)
@example("year", TIME_MS_MIN)
@example("month", TIME_MS_MAX)
def test_a_row_is_in_the_partition_that_is_asked_for_it(window: str, time_ms: int) -> None:
    """A cell is written to the one (slot, bucket) that a reader of its window asks."""
    table = table_of(window)
    start = table.layer.window.start(time_ms)
    rows = frame([stored() | {"window_start": start}], table.layer)
    (batch,) = table.batches(rows, pl.Series([start * 1_000]), now_ms=0)
    (row,) = batch
    asked = table.partitions(CellRange(start, start + 1, {"origin": "JFK", "carrier": "UA"}), 0)
    assert asked == [row[:2]]


@pytest.mark.parametrize(
    ("window", "length_ms"),
    [
        ("1ms", 10_000),
        ("312ms", 10_000),
        ("313ms", 32 * 313),
        ("1h", 32 * HOUR_MS),
        ("month", 32 * 30 * DAY_MS),
        ("year", 32 * 365 * DAY_MS),
    ],
)
def test_a_bucket_is_32_windows_and_at_least_ten_seconds(window: str, length_ms: int) -> None:
    """Few windows of a millisecond have events; a partition of 32 ms would be a row or two."""
    assert bucket_ms(map_with(window).layers[0]) == length_ms


@pytest.mark.parametrize("ttl_ms", [0, 60_000, DAY_MS, 400 * DAY_MS, 7_300 * DAY_MS])
@pytest.mark.parametrize("window", WINDOWS)
def test_compaction_windows_hold_a_bucket_and_are_few(window: str, ttl_ms: int) -> None:
    """A TTL has less than 50, as the compaction strategy wants, and sizes that fit CQL's int."""
    layer = map_with(window, archive_ttl_ms=ttl_ms).layers[0]
    unit, size = compaction_window(layer)
    length_ms = size * {"MINUTES": 60_000, "HOURS": HOUR_MS, "DAYS": DAY_MS}[unit]
    assert length_ms >= bucket_ms(layer)
    assert ttl_ms / length_ms < 50
    assert 1 <= size < 2**31


@pytest.mark.parametrize("window", WINDOWS)
async def test_cells_of_awkward_times_rest_in_the_archive(window: str, tmp_path: Path) -> None:
    """Every window is found by its start, alone and among all; the later write time stays."""
    themap = map_with(window)
    layer = themap.layers[0]
    times = [TIME_MS_MIN, *AWKWARD_MS, -1, TIME_MS_MAX]
    starts = sorted({layer.window.start(at) for at in times})
    archive = EmbeddedArchive(tmp_path)
    await archive.open(themap)
    try:
        for version in (2, 1):
            rows = frame(
                [stored(version=version) | {"window_start": start} for start in starts], layer
            )
            ends = rows.select(layer.window.ends(pl.col("window_start"))).to_series()
            await archive.write(layer, rows, ends * 1_000 + version)
        found = await archive.read(layer, CellRange(starts[0], starts[-1] + 1))
        assert found["window_start"].sort().to_list() == starts
        assert found["version"].unique().to_list() == [2]
        for start in starts:
            one = await archive.read(layer, CellRange(start, start + 1))
            assert one["window_start"].to_list() == [start]
    finally:
        await archive.close()


async def test_a_closed_year_lives_until_its_ttl_after_new_year(tmp_path: Path) -> None:
    """The longest year decides the drop: a leap year's last row is not a day short."""
    themap = map_with("year", archive_ttl_ms=2 * DAY_MS)
    layer = themap.layers[0]
    now_ms = [ms(2025, 1, 2)]
    archive = EmbeddedArchive(tmp_path, clock_ms=lambda: now_ms[0])
    await archive.open(themap)
    try:
        start = ms(2024, 1, 1)
        rows = frame([stored() | {"window_start": start}], layer)
        await archive.write(layer, rows, pl.Series([1]))
        heights = []
        for now_ms[0] in (ms(2025, 1, 3) - 1, ms(2025, 1, 3)):
            heights.append((await archive.read(layer, CellRange(start, start + 1))).height)
        assert heights == [1, 0]
    finally:
        await archive.close()


@pytest.mark.parametrize(
    ("window", "at", "shown"),
    [
        ("year", ms(999, 6, 1), ["0999-01-01T00:00:00Z", "1000-01-01T00:00:00Z"]),
        ("1ms", -1, ["1969-12-31T23:59:59.999000Z", "1970-01-01T00:00:00Z"]),
        ("month", TIME_MS_MAX, ["9999-12-01T00:00:00Z", str(TIME_MS_MAX + 1)]),
        ("7d", TIME_MS_MIN, ["-62135942400000", "0001-01-04T00:00:00Z"]),
    ],
)
async def test_windows_of_all_years_can_be_asked_for_and_shown(
    window: str, at: int, shown: list[str], tmp_path: Path
) -> None:
    """Years below 1000 have four digits; times beyond the calendar are in milliseconds."""
    themap = map_with(window)
    start = themap.layers[0].window.start(at)
    async with served(themap, tmp_path, [stored() | {"window_start": start}]) as (_, url):
        span = ["--from", str(start), "--to", str(start + 1)]
        result = await in_thread(
            CliRunner().invoke, command, ["hour", *span, "--url", url], catch_exceptions=False
        )
    for text in (*shown, "1 cell,"):
        assert text in result.stdout


async def test_a_page_of_windows_before_year_1_goes_on(tmp_path: Path) -> None:
    """The cursor of a window that starts before the first event time is one like others."""
    themap = map_with("7d")
    start = themap.layers[0].window.start(TIME_MS_MIN)
    rows = [stored(origin) | {"window_start": start} for origin in ("EWR", "JFK")]
    async with served(themap, tmp_path, rows) as (_, url):
        page = f"{url}/v1/layers/hour/cells?from={start}&to=0001-01-02&limit=1"
        _, first, _ = await get(page)
        _, second, _ = await get(f"{page}&cursor={first['cursor']}")
    cells = [*first["cells"], *second["cells"]]
    assert [cell["key"]["origin"] for cell in cells] == ["EWR", "JFK"]
    assert {cell["window_start"] for cell in cells} == {start}
    assert second["cursor"] is None


def map_text(finer: str, coarser: str) -> str:
    """Return a map file of two layers of these windows."""
    return f"""
revision = 1
name = "small"
[sources.flights]
topic = "flights.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["origin"]
[sources.flights.fields]
origin = "string"
[layers.fine]
source = "flights"
events = ["flight.*"]
key = ["origin"]
window = "{finer}"
measures = ["count"]
[layers.coarse]
from = "fine"
key = ["origin"]
window = "{coarser}"
"""


@pytest.mark.parametrize(
    ("finer", "coarser"), [("1ms", "year"), ("8h", "month"), ("month", "year"), ("year", "year")]
)
def test_a_map_file_may_have_windows_of_the_calendar(finer: str, coarser: str) -> None:
    """They are read as such, and shown by their name."""
    themap = parse_map(map_text(finer, coarser), "map.toml")
    assert [str(layer.window) for layer in themap.layers] == [finer, coarser]
    labels = [str(node.label) for node in draw(themap).children[0].children]
    assert f"per {finer} by origin" in labels[0]


@pytest.mark.parametrize(
    ("finer", "coarser", "want"),
    [
        ("year", "month", "want year here"),
        ("month", "400d", "want month or year here"),
        ("7d", "year", "want a length that divides a day for fine"),
        ("7d", "15d", "want a multiple of 7d here"),
    ],
)
def test_windows_that_do_not_nest_are_refused_with_what_would(
    finer: str, coarser: str, want: str
) -> None:
    """The message names the layer to change and the windows that fit."""
    with pytest.raises(MapError) as caught:
        parse_map(map_text(finer, coarser), "map.toml")
    (problem,) = caught.value.problems
    assert f"got {finer} in {coarser}; {want}; change one of the two windows" in problem


def test_a_wrong_window_names_all_that_there_are() -> None:
    """The names of the calendar's windows are among them."""
    with pytest.raises(MapError, match="'day', 'month' or 'year'; change it"):
        parse_map(map_text("1h", "quarter"), "map.toml")
