"""Covers: they tile the range, and no other has fewer cells."""

from __future__ import annotations

import datetime as dt
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tables.query.cover
from tables.model.window import DAY_MS, MONTH, YEAR, Window
from tables.query.cover import Choice, GapError, Segment, cover, cover_steps

HOUR_MS = 3_600_000
MINUTE_MS = 60_000
EVER = 2**62
UNIT_MS = 5


def choice(name: str, window: Window, cells: float = 1.0, **ends: int) -> Choice:
    """Return a choice whose windows are all there unless told otherwise."""
    return Choice(name, window, ends.get("from_ms", -EVER), ends.get("to_ms", EVER), cells)


@st.composite
def choices(draw: st.DrawFn) -> list[Choice]:
    """Return a base and coarser choices, which may cross, some of them not there everywhere."""
    found = [choice("base", Window(UNIT_MS), float(draw(st.integers(1, 12))))]
    for number, times in enumerate(draw(st.lists(st.integers(1, 12), max_size=4))):
        ends = sorted(draw(st.tuples(st.integers(-10, 80), st.integers(-10, 80))))
        found.append(
            choice(
                f"layer{number}",
                Window(UNIT_MS * times),
                # Mostly fewer than the windows inside have, as it is if keys are the same.
                float(draw(st.integers(1, 12) if draw(st.booleans()) else st.just(1))),
                from_ms=ends[0] * UNIT_MS - 2,
                to_ms=ends[1] * UNIT_MS + 3,
            )
        )
    return found


def fewest_cells(found: list[Choice], start: int, stop: int, step: int) -> float:
    """Return the cells of the best cover, by trying every window from every unit on."""
    best = {start: 0.0}
    for point in range(start, stop, UNIT_MS):
        if point not in best:
            continue
        limit = min(stop, point - point % step + step)
        for one in found:
            end = point + one.window.length_ms
            fits = point % one.window.length_ms == 0 and end <= limit
            if fits and one.from_ms <= point and end <= one.to_ms:
                best[end] = min(best.get(end, math.inf), best[point] + one.cells)
    return best.get(stop, math.inf)


def check_tiles(segments: list[Segment], found: list[Choice], start: int, stop: int) -> None:
    """Check that segments tile the range with whole windows of choices that have them."""
    ends = [start, *(segment.to_ms for segment in segments)]
    assert ends[-1] == stop
    assert [segment.from_ms for segment in segments] == ends[:-1]
    by_name = {one.name: one for one in found}
    for segment in segments:
        one = by_name[segment.name]
        assert one.window.start(segment.from_ms) == segment.from_ms
        assert one.window.start(segment.to_ms) == segment.to_ms
        assert one.from_ms <= segment.from_ms < segment.to_ms <= one.to_ms
        assert segment.windows == one.window.count(segment.from_ms, segment.to_ms)
        assert segment.cells == pytest.approx(segment.windows * one.cells)


@given(choices(), st.integers(-20, 60), st.integers(1, 70))
def test_no_cover_has_fewer_cells(found: list[Choice], first: int, units: int) -> None:
    """A search that tries every window does not find a better cover."""
    start, stop = first * UNIT_MS, (first + units) * UNIT_MS
    segments = cover(found, start, stop)
    check_tiles(segments, found, start, stop)
    best = fewest_cells(found, start, stop, 10**9 * UNIT_MS)
    assert sum(segment.cells for segment in segments) == pytest.approx(best)


@given(choices(), st.integers(-20, 60), st.integers(1, 70), st.integers(1, 15))
def test_no_cover_in_steps_has_fewer_cells(
    found: list[Choice], first: int, units: int, times: int
) -> None:
    """The same holds if no window may lie in two steps."""
    start, stop = first * UNIT_MS, (first + units) * UNIT_MS
    step = Window(UNIT_MS * times)
    segments = cover_steps(found, start, stop, step)
    check_tiles(segments, found, start, stop)
    for segment in segments:
        window = next(one.window for one in found if one.name == segment.name)
        for at in range(segment.from_ms, segment.to_ms, window.length_ms):
            assert step.start(at) == step.start(at + window.length_ms - 1)
    best = fewest_cells(found, start, stop, step.length_ms)
    assert sum(segment.cells for segment in segments) == pytest.approx(best)


def test_two_hours_and_thirty_seven_minutes() -> None:
    """Whole hours come as hours, the rest as minutes."""
    found = [choice("minute", Window(MINUTE_MS)), choice("hour", Window(HOUR_MS))]
    segments = cover(found, 7 * HOUR_MS, 9 * HOUR_MS + 37 * MINUTE_MS)
    assert [(one.name, one.windows) for one in segments] == [("hour", 2), ("minute", 37)]


def ms(year: int, month: int, day: int) -> int:
    """Return midnight UTC of a date in milliseconds."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (dt.datetime(year, month, day, tzinfo=dt.UTC) - epoch) // dt.timedelta(milliseconds=1)


def test_months_and_weeks_cross() -> None:
    """A month and a week of the next come as that, with days between them."""
    found = [
        choice("day", Window(DAY_MS)), choice("week", Window(7 * DAY_MS)),
        choice("month", MONTH), choice("year", YEAR),
    ]  # fmt: skip
    # Windows of 7 days start on Thursdays; 2013-08-01 is one.
    segments = cover(found, ms(2013, 7, 1), ms(2013, 8, 16))
    assert [(one.name, one.windows) for one in segments] == [
        ("month", 1), ("week", 2), ("day", 1),
    ]  # fmt: skip


def test_years_are_made_of_months_and_days() -> None:
    """Calendars are counted as calendars."""
    found = [choice("day", Window(DAY_MS)), choice("month", MONTH), choice("year", YEAR)]
    segments = cover(found, ms(2012, 2, 28), ms(2015, 4, 3))
    assert [(one.name, one.windows) for one in segments] == [
        ("day", 2), ("month", 10), ("year", 2), ("month", 3), ("day", 2),
    ]  # fmt: skip


def test_a_range_between_windows_is_a_gap() -> None:
    """Half a minute of minutes cannot be told, and neither can windows from before the first."""
    minutes = choice("minute", Window(MINUTE_MS), from_ms=HOUR_MS)
    with pytest.raises(GapError) as gap:
        cover([minutes], 2 * HOUR_MS, 2 * HOUR_MS + 90_000)
    assert gap.value.at_ms == 2 * HOUR_MS + MINUTE_MS
    with pytest.raises(GapError) as gap:
        cover([minutes], 0, 2 * HOUR_MS)
    assert gap.value.at_ms == 0
    weeks = [choice("week", Window(7 * DAY_MS)), choice("month", MONTH)]
    with pytest.raises(GapError):
        cover(weeks, ms(2013, 7, 1), ms(2013, 8, 16))


def test_windows_that_cross_too_often_are_covered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The coarsest goes first then."""
    monkeypatch.setattr(tables.query.cover, "POINTS_MAX", 10)
    found = [choice("1", Window(1)), choice("5", Window(5)), choice("7", Window(7))]
    segments = cover(found, 0, 700)
    assert [(one.name, one.windows) for one in segments] == [("7", 100)]


def test_many_steps_are_covered_at_once_by_windows_that_lie_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two years of 65 seconds are a million steps; windows that cross them are left out."""
    found = [choice("5s", Window(5_000)), choice("minute", Window(MINUTE_MS))]
    (segment,) = cover_steps(found, ms(2013, 1, 1), ms(2015, 1, 1), Window(65_000))
    assert (segment.name, segment.windows) == ("5s", 2 * 365 * 86_400 / 5)
    hour = ms(2013, 1, 1) + HOUR_MS
    few = cover_steps(found, ms(2013, 1, 1), hour, Window(65_000))
    assert {one.name for one in few} == {"5s", "minute"}
    monkeypatch.setattr(tables.query.cover, "STEPS_APART_MAX", 10)
    assert len(cover_steps(found, ms(2013, 1, 1), hour, Window(65_000))) == 1
    with pytest.raises(GapError):
        cover_steps(found, ms(2013, 1, 1), hour, Window(61_000))


def test_all_of_a_cover_weighs_no_more_boundaries_than_one_search_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first steps use the budget up, so the last ones take the coarsest window first."""
    monkeypatch.setattr(tables.query.cover, "POINTS_MAX", 40)
    found = [choice("1", Window(1)), choice("5", Window(5), 0.5), choice("7", Window(7))]
    segments = cover_steps(found, 0, 1_000, Window(101))
    check_tiles(segments, found, 0, 1_000)
    sevens = [
        sum(one.windows for one in segments if one.name == "7" and one.from_ms // 101 == step)
        for step in range(9)
    ]
    assert sevens[0] < 13, "fives have fewer cells"
    assert sum(sevens[1:]) >= 13 * len(sevens[1:]), "neighbours are one segment"


def test_a_century_of_seconds_is_planned_at_once() -> None:
    """A chain of windows costs one run each, however many there are."""
    chain = [1_000, MINUTE_MS, HOUR_MS, DAY_MS]
    found = [choice(str(length), Window(length)) for length in chain] + [choice("month", MONTH)]
    segments = cover(found, ms(1913, 5, 5) + 1_000, ms(2013, 8, 16) + 1_000)
    assert [one.name for one in segments] == [
        "1000", "60000", "3600000", "86400000", "month", "86400000", "1000",
    ]  # fmt: skip
    assert all(a.to_ms == b.from_ms for a, b in itertools.pairwise(segments))
