"""Windows: the promises of every size, for all times, on integers and columns alike."""

from __future__ import annotations

import datetime as dt

import msgspec
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tables.model.window import (
    DAY_MS,
    LENGTH_MS_MAX,
    MONTH,
    START_MS_MIN,
    TIME_MS_MAX,
    TIME_MS_MIN,
    YEAR,
    Window,
    parse_duration_ms,
)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def ms(year: int, month: int, day: int) -> int:
    """Return midnight UTC of a date in milliseconds."""
    return (dt.datetime(year, month, day, tzinfo=dt.UTC) - EPOCH) // dt.timedelta(milliseconds=1)


# Calendars go wrong at the turns of years and months, and random times seldom hit them.
TURNS = st.builds(
    lambda year, month, off: ms(year, month, 1) + off,
    st.integers(2, 9999),
    st.integers(1, 12),
    st.sampled_from([-DAY_MS, -1, 0, 1, DAY_MS]),
)
TIMES = st.one_of(st.integers(TIME_MS_MIN, TIME_MS_MAX), TURNS, st.integers(-DAY_MS, DAY_MS))
LENGTHS = st.one_of(
    st.sampled_from([1, 250, 1_000, 5_000, 60_000, 3_600_000, DAY_MS, 7 * DAY_MS, 365 * DAY_MS]),
    st.integers(1, 400 * DAY_MS),
    st.integers(1, LENGTH_MS_MAX // DAY_MS).map(lambda days: days * DAY_MS),
)
CALENDAR = st.sampled_from([MONTH, YEAR])
WINDOWS = st.one_of(CALENDAR, st.builds(Window, LENGTHS))
DAY_PARTS = st.sampled_from([n for n in range(1, 1_441) if 1_440 % n == 0]).map(
    lambda parts: Window(DAY_MS // parts)
)
MULTIPLES = st.tuples(st.integers(1, 5_000), st.integers(1, 500)).map(
    lambda pair: (Window(pair[0]), Window(pair[0] * pair[1]))
)
NESTING = st.one_of(st.tuples(WINDOWS, WINDOWS), MULTIPLES, st.tuples(DAY_PARTS, CALENDAR))
LEAP_DAY_MS = ms(2024, 2, 29)
EDGES_MS = [TIME_MS_MIN, TIME_MS_MIN + 1, -1, 0, TIME_MS_MAX - 1, TIME_MS_MAX]


def start_by_datetime(window: Window, time_ms: int) -> int:
    """Return the start of a time's window by Python's calendar."""
    moment = EPOCH + dt.timedelta(milliseconds=time_ms)
    if window == YEAR:
        return ms(moment.year, 1, 1)
    if window == MONTH:
        return ms(moment.year, moment.month, 1)
    length = dt.timedelta(milliseconds=window.length_ms)
    return (moment - EPOCH) // length * window.length_ms


def end_by_datetime(window: Window, start_ms: int) -> int:
    """Return the end of a window by Python's calendar, which has no year 10000."""
    if not window.is_calendar:
        return start_ms + window.length_ms
    start = EPOCH + dt.timedelta(milliseconds=start_ms)
    months = start.month + (12 if window == YEAR else 1) - 1
    year, month = start.year + months // 12, months % 12 + 1
    return TIME_MS_MAX + 1 if year > dt.MAXYEAR else ms(year, month, 1)


@given(WINDOWS, TIMES)
@example(MONTH, LEAP_DAY_MS)
@example(YEAR, LEAP_DAY_MS)
@example(MONTH, -1)
@example(Window(5_000), -1)
def test_every_time_lies_in_its_window(window: Window, time_ms: int) -> None:
    """The window that starts at ``start(t)`` is half-open and holds t."""
    start = window.start(time_ms)
    assert START_MS_MIN <= start <= time_ms < window.end(start)


@given(WINDOWS, TIMES)
@example(MONTH, TIME_MS_MAX)
@example(YEAR, TIME_MS_MIN)
def test_a_start_is_its_own_start_and_windows_touch(window: Window, time_ms: int) -> None:
    """Windows tile time: the end of one is the start of the next, and nothing lies between.

    Next to the first and last event times there are windows too, which no datetime could name.
    """
    start = window.start(time_ms)
    end = window.end(start)
    assert window.start(start) == start
    assert window.start(end - 1) == start
    assert window.start(end) == end
    assert window.end(window.start(start - 1)) == start


@given(WINDOWS, TIMES)
@example(MONTH, TIME_MS_MAX)
@example(YEAR, TIME_MS_MAX)
@example(YEAR, ms(1900, 2, 28))
@example(YEAR, ms(2000, 2, 29))
def test_windows_are_those_of_the_calendar(window: Window, time_ms: int) -> None:
    """Starts and ends agree with Python's datetime in all of its years, 1 to 9999."""
    start = window.start(time_ms)
    assert start == start_by_datetime(window, time_ms)
    if start >= TIME_MS_MIN:
        assert window.end(start) == end_by_datetime(window, start)


@given(WINDOWS, st.lists(TIMES, min_size=1, max_size=20))
@example(MONTH, [-1, 0, LEAP_DAY_MS, ms(1900, 2, 28), ms(2000, 2, 29), ms(1, 1, 1)])
@example(MONTH, EDGES_MS)
@example(YEAR, EDGES_MS)
@example(Window(7 * DAY_MS), EDGES_MS)
@example(Window(LENGTH_MS_MAX), EDGES_MS)
def test_columns_agree_with_integers(window: Window, times: list[int]) -> None:
    """``start_expr`` and ``end_expr`` are ``start`` and ``end`` over a column, as Int64."""
    frame = pl.DataFrame({"time": pl.Series(times, dtype=pl.Int64)})
    frame = frame.with_columns(start=window.starts(pl.col("time")))
    frame = frame.with_columns(end=window.ends(pl.col("start")))
    starts = [window.start(time_ms) for time_ms in times]
    assert frame["start"].dtype == pl.Int64
    assert frame["end"].dtype == pl.Int64
    assert frame["start"].to_list() == starts
    assert frame["end"].to_list() == [window.end(start) for start in starts]


MONTH_STARTS = [ms(year, month, 1) for year in range(1800, 2200) for month in range(1, 13)]


def lies_in_one(finer: Window, coarser: Window) -> bool:
    """Return whether no coarser edge lies inside a finer window, by trying edges one after another.

    400 years have every edge that the calendar has; of fixed lengths 400 edges are tried.
    """
    if coarser.is_calendar:
        edges = MONTH_STARTS if coarser == MONTH else MONTH_STARTS[::12]
    else:
        edges = [coarser.length_ms * number for number in range(1, 401)]
    return all(finer.start(edge) == edge for edge in edges)


@given(NESTING)
@example((MONTH, Window(1_461 * DAY_MS)))
@example((YEAR, Window(1_461 * DAY_MS)))
@example((MONTH, Window(31 * DAY_MS)))
@example((YEAR, MONTH))
@example((MONTH, YEAR))
@example((Window(7 * DAY_MS), YEAR))
@example((Window(365 * DAY_MS), YEAR))
@example((Window(2 * DAY_MS), MONTH))
def test_nesting_is_what_trying_all_edges_finds(pair: tuple[Window, Window]) -> None:
    """``nests_in`` holds exactly if every finer window lies in one coarser window.

    Four years of 1461 days hold years and months until 2100, which is not a leap year.
    """
    finer, coarser = pair
    assert finer.nests_in(coarser) is lies_in_one(finer, coarser)


@given(NESTING, TIMES)
@example((Window(DAY_MS), MONTH), LEAP_DAY_MS)
@example((MONTH, YEAR), TIME_MS_MAX)
def test_a_window_that_nests_never_lies_in_two(pair: tuple[Window, Window], time_ms: int) -> None:
    """First and last millisecond of a window share the coarser one if ``nests_in`` holds."""
    finer, coarser = pair
    if finer.nests_in(coarser):
        start = finer.start(time_ms)
        assert coarser.start(start) == coarser.start(finer.end(start) - 1)


@given(WINDOWS, WINDOWS, WINDOWS)
def test_nesting_is_reflexive_and_transitive(a: Window, b: Window, c: Window) -> None:
    """A window nests in itself, and through another one."""
    assert a.nests_in(a)
    if a.nests_in(b) and b.nests_in(c):
        assert a.nests_in(c)


@pytest.mark.parametrize(
    ("year", "month", "days"),
    [
        (2024, 2, 29), (2023, 2, 28), (1900, 2, 28), (2000, 2, 29), (2013, 12, 31), (1969, 12, 31),
        (4, 2, 29), (1, 1, 31), (9999, 12, 31),
    ],
)  # fmt: skip
def test_a_month_has_its_calendar_days(year: int, month: int, days: int) -> None:
    """Leap years, century rules, year ends and times before the epoch."""
    start = ms(year, month, 1)
    assert MONTH.start(start + DAY_MS * days - 1) == start
    assert MONTH.end(start) - start == days * DAY_MS


@pytest.mark.parametrize(
    ("year", "days"),
    [(2024, 366), (2023, 365), (1900, 365), (2000, 366), (1969, 365), (1, 365), (9999, 365)],
)
def test_a_year_has_its_calendar_days(year: int, days: int) -> None:
    """A day more in leap years, which of the centuries only every fourth is."""
    start = ms(year, 1, 1)
    assert YEAR.start(start + DAY_MS * days - 1) == start
    assert YEAR.end(start) - start == days * DAY_MS


def test_years_of_a_fixed_length_leave_the_calendar() -> None:
    """A window of ``365d`` is not a year: 14 leap days lie between 1970 and 2025."""
    assert Window.parse("365d").start(ms(2025, 1, 1)) == ms(2024, 12, 18)
    assert YEAR.start(ms(2024, 12, 31)) == ms(2024, 1, 1)


@given(WINDOWS, TIMES)
def test_no_window_is_longer_than_the_longest(window: Window, time_ms: int) -> None:
    """Durations that must not end too early use ``longest_ms``."""
    start = window.start(time_ms)
    assert window.nominal_ms <= window.longest_ms
    assert 0 < window.end(start) - start <= window.longest_ms


@pytest.mark.parametrize(
    ("finer", "coarser", "nests"),
    [
        ("1h", "day", True),
        ("1d", "month", True),
        ("1d", "year", True),
        ("7d", "month", False),
        ("7d", "year", False),
        ("7d", "14d", True),
        ("5h", "day", False),
        ("7m", "month", False),
        ("month", "month", True),
        ("month", "year", True),
        ("year", "month", False),
        ("month", "365d", False),
        ("365d", "year", False),
        ("year", "36500d", False),
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


def test_windows_of_the_calendar_have_names() -> None:
    """A day is a length like others; month and year are not."""
    assert Window.parse("day") == Window(DAY_MS) == Window.parse("24h")
    assert (str(MONTH), str(YEAR), str(Window(DAY_MS))) == ("month", "year", "1d")


def test_an_encoded_window_says_no_more_than_it_must() -> None:
    """Digests of maps are made from this form, and must not change when windows gain a field."""
    forms = [msgspec.json.encode(window) for window in (Window(5), MONTH, YEAR)]
    assert forms == [b'{"length_ms":5}', b'{"length_ms":0}', b'{"length_ms":0,"months":12}']


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-5s", "1.5h", "5 s", "5S", "5w", "\u0661s", "5s\n", "1" * 13 + "s"]
)
def test_other_forms_are_no_durations(text: str) -> None:
    """Only ASCII digits followed by one unit are a duration."""
    with pytest.raises(ValueError, match="want a whole number and a unit"):
        parse_duration_ms(text)


@pytest.mark.parametrize("text", ["week", "Month", "years", "1y", "quarter"])
def test_other_names_are_no_windows(text: str) -> None:
    """Only day, month and year have names."""
    with pytest.raises(ValueError, match="want a whole number and a unit"):
        Window.parse(text)


@pytest.mark.parametrize("text", ["0s", "0ms"])
def test_a_window_of_zero_length_is_refused(text: str) -> None:
    """Zero is how windows of the calendar are kept, so it must not come from a duration."""
    with pytest.raises(ValueError, match="zero length"):
        Window.parse(text)
