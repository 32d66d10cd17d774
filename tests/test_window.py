"""Windows: what every size promises, for all times, on integers and on columns alike."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tables.window import DAY_MS, Window, parse_duration_ms

# Years 1 to 9998 of the calendar, so that the end of a month is a date too.
TIMES = st.integers(-62_135_596_800_000, 253_370_764_800_000)
LENGTHS = st.one_of(
    st.sampled_from([1, 250, 1_000, 5_000, 60_000, 3_600_000, DAY_MS, 7 * DAY_MS]),
    st.integers(1, 400 * DAY_MS),
)
WINDOWS = st.one_of(st.just(Window(0)), st.builds(Window, LENGTHS))
NESTING = st.one_of(
    st.tuples(WINDOWS, WINDOWS),
    st.tuples(st.integers(1, 5_000), st.integers(1, 500)).map(
        lambda pair: (Window(pair[0]), Window(pair[0] * pair[1]))
    ),
    st.sampled_from([1, 1_000, 3_600_000, DAY_MS // 7, DAY_MS]).map(
        lambda length: (Window(length), Window(0))
    ),
)
LEAP_DAY_MS = 1_709_164_800_000  # 2024-02-29T00:00Z


def ms(*date: int) -> int:
    """Return midnight UTC of a date in milliseconds."""
    return int(dt.datetime(*date, tzinfo=dt.UTC).timestamp()) * 1_000


@given(WINDOWS, TIMES)
@example(Window(0), LEAP_DAY_MS)
@example(Window(0), -1)
@example(Window(5_000), -1)
def test_every_time_lies_in_its_window(window: Window, time_ms: int) -> None:
    """The window that starts at ``start(t)`` is half-open and holds t."""
    start = window.start(time_ms)
    assert start <= time_ms < window.end(start)


@given(WINDOWS, TIMES)
def test_a_start_is_its_own_start_and_windows_touch(window: Window, time_ms: int) -> None:
    """Windows tile time: the end of one is the start of the next, and nothing lies between."""
    start = window.start(time_ms)
    end = window.end(start)
    assert window.start(start) == start
    assert window.start(end - 1) == start
    assert window.start(end) == end


@given(WINDOWS, st.lists(TIMES, min_size=1, max_size=20))
@example(Window(0), [-1, 0, LEAP_DAY_MS, ms(1900, 2, 28), ms(2000, 2, 29), ms(1, 1, 1)])
def test_columns_agree_with_integers(window: Window, times: list[int]) -> None:
    """``start_expr`` and ``end_expr`` are ``start`` and ``end`` over a column, as Int64."""
    frame = pl.DataFrame({"time": pl.Series(times, dtype=pl.Int64)})
    frame = frame.with_columns(start=window.start_expr(pl.col("time")))
    frame = frame.with_columns(end=window.end_expr(pl.col("start")))
    starts = [window.start(time_ms) for time_ms in times]
    assert frame["start"].dtype == pl.Int64
    assert frame["end"].dtype == pl.Int64
    assert frame["start"].to_list() == starts
    assert frame["end"].to_list() == [window.end(start) for start in starts]


@given(NESTING, TIMES)
@example((Window(DAY_MS), Window(0)), LEAP_DAY_MS)
def test_a_window_that_nests_never_lies_in_two(pair: tuple[Window, Window], time_ms: int) -> None:
    """Where ``nests_in`` holds, first and last millisecond of a window share the coarser one."""
    finer, coarser = pair
    if finer.nests_in(coarser):
        start = finer.start(time_ms)
        assert coarser.start(start) == coarser.start(finer.end(start) - 1)


@given(st.builds(Window, LENGTHS), st.builds(Window, LENGTHS))
def test_a_length_that_does_not_nest_has_a_window_in_two(finer: Window, coarser: Window) -> None:
    """Where ``nests_in`` is false, a finer window lies across the end of the first coarser one."""
    if not finer.nests_in(coarser):
        assert finer.start(coarser.length_ms) < coarser.length_ms


@given(st.builds(Window, st.integers(1, 400 * DAY_MS)))
def test_a_length_that_does_not_divide_a_day_meets_a_month_edge(window: Window) -> None:
    """What does not nest in months has a window across the first of some month."""
    if not window.nests_in(Window(0)):
        firsts = [ms(year, month, 1) for year in range(1970, 2000) for month in range(1, 13)]
        assert any(window.start(first) != first for first in firsts)


@given(WINDOWS, WINDOWS, WINDOWS)
def test_nesting_is_reflexive_and_transitive(a: Window, b: Window, c: Window) -> None:
    """A window nests in itself, and through another one."""
    assert a.nests_in(a)
    if a.nests_in(b) and b.nests_in(c):
        assert a.nests_in(c)


@pytest.mark.parametrize(
    ("year", "month", "days"),
    [(2024, 2, 29), (2023, 2, 28), (1900, 2, 28), (2000, 2, 29), (2013, 12, 31), (1969, 12, 31)],
)
def test_a_month_has_its_calendar_days(year: int, month: int, days: int) -> None:
    """Leap years, century rules, year ends and times before the epoch."""
    start = ms(year, month, 1)
    assert Window(0).start(start + DAY_MS * days - 1) == start
    assert Window(0).end(start) - start == days * DAY_MS


@pytest.mark.parametrize(
    ("finer", "coarser", "nests"),
    [
        ("1h", "day", True),
        ("1d", "month", True),
        ("7d", "month", False),
        ("5h", "day", False),
        ("7m", "month", False),
        ("month", "month", True),
        ("month", "365d", False),
        ("1d", "1h", False),
    ],
)
def test_known_pairs_nest_or_not(finer: str, coarser: str, nests: bool) -> None:
    """The pairs that people write."""
    assert Window.parse(finer).nests_in(Window.parse(coarser)) is nests


@given(WINDOWS)
def test_a_printed_window_reads_back(window: Window) -> None:
    """``str`` and ``parse`` are inverse."""
    assert Window.parse(str(window)) == window


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-5s", "1.5h", "5 s", "5S", "5w", "\u0661s", "5s\n", "1" * 13 + "s"]
)
def test_other_forms_are_no_durations(text: str) -> None:
    """Only ASCII digits followed by one unit are a duration."""
    with pytest.raises(ValueError, match="want a whole number and a unit"):
        parse_duration_ms(text)


@pytest.mark.parametrize("text", ["0s", "0ms"])
def test_a_window_of_zero_length_is_refused(text: str) -> None:
    """Zero is how a month is kept, so it must not come from a duration."""
    with pytest.raises(ValueError, match="zero length"):
        Window.parse(text)
