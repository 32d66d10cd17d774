"""Time ranges: words of every form, by a clock, rounded outwards to whole windows."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.model.window import DAY_MS, MONTH, TIME_MS_MAX, TIME_MS_MIN, YEAR, Window
from tables.query.time_range import TEXT_PATTERN, Moment, TimeRange, parse_time, range_of
from tests.support.common import HOUR_MS

NEW_YEAR_MS = 1_356_998_400_000
NOW_MS = NEW_YEAR_MS + 10 * HOUR_MS + 20 * 60_000 + 7
HOUR = Window(HOUR_MS)


def asked(window: Window = HOUR, **words: str) -> TimeRange:
    """Return the range of words like ``from_="-1h"``, which has no faults."""
    problems: list[str] = []
    values = {name.rstrip("_"): parse_time(text) for name, text in words.items()}
    found = range_of(values, window, NOW_MS, problems)
    assert problems == []
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW_MS),
        ("now-1h", NOW_MS - HOUR_MS),
        ("-90m", NOW_MS - 90 * 60_000),
        ("+250ms", NOW_MS + 250),
        ("now+1d", NOW_MS + DAY_MS),
        ("today", NEW_YEAR_MS),
        ("today-7d", NEW_YEAR_MS - 7 * DAY_MS),
        ("yesterday", NEW_YEAR_MS - DAY_MS),
        ("yesterday+6h", NEW_YEAR_MS - DAY_MS + 6 * HOUR_MS),
        ("-3600000", -HOUR_MS),
    ],
)
def test_times_may_refer_to_the_clock(text: str, expected: int) -> None:
    """An offset has a unit; a number without one is epoch milliseconds, before 1970 too."""
    assert parse_time(text).at(NOW_MS) == expected
    assert re.search(TEXT_PATTERN, text) or text == "-3600000"


def test_a_range_is_rounded_outwards_and_remembers_the_instants() -> None:
    """The hour of 10:20 is partly asked for, so all of it is answered."""
    found = asked(from_="-1h", to="now")
    assert (found.from_ms, found.to_ms) == (NEW_YEAR_MS + 9 * HOUR_MS, NEW_YEAR_MS + 11 * HOUR_MS)
    assert found.instants == (NOW_MS - HOUR_MS, NOW_MS)
    assert (found.moves, found.is_open) == (True, False)
    still = asked(MONTH, from_="2013-01-15", to="2013-02-01")
    assert (still.from_ms, still.to_ms) == (NEW_YEAR_MS, NEW_YEAR_MS + 31 * DAY_MS)
    assert still.moves is False


@given(
    st.integers(TIME_MS_MIN, TIME_MS_MAX),
    st.integers(1, 10**13),
    st.sampled_from([HOUR, Window(1), Window(7 * DAY_MS), Window(90_000), MONTH, YEAR]),
)
def test_the_answer_has_the_least_whole_windows_around_the_instants(
    from_ms: int, span_ms: int, window: Window
) -> None:
    """No window that the range touches is missing, and no other is added."""
    to_ms = min(from_ms + span_ms, TIME_MS_MAX + 1)
    found = asked(window, from_=str(from_ms), to=str(to_ms))
    assert found.from_ms <= from_ms < window.end(found.from_ms)
    assert found.to_ms - window.longest_ms < to_ms <= found.to_ms
    assert window.start(found.from_ms) == found.from_ms
    assert window.start(found.to_ms) == found.to_ms


def test_open_ends_are_those_of_the_windows_there_are() -> None:
    """Without windows an open end is the other end, or now."""
    both = asked()
    assert both.from_ms <= TIME_MS_MIN
    assert both.to_ms > TIME_MS_MAX
    assert (both.is_open, both.moves) == (True, True)
    found = both.bounded(0, DAY_MS)
    assert (found.from_ms, found.to_ms, found.instants) == (0, DAY_MS, ())
    nothing = both.bounded(None, None)
    assert (nothing.from_ms, nothing.to_ms) == (NOW_MS, NOW_MS)
    since = asked(from_="2013-01-01")
    assert since.bounded(0, NEW_YEAR_MS + DAY_MS).from_ms == NEW_YEAR_MS
    assert since.bounded(0, DAY_MS).to_ms == NEW_YEAR_MS
    until = asked(to="2013-01-01")
    assert until.bounded(0, 10**15).to_ms == NEW_YEAR_MS
    assert until.bounded(10**15, 10**15).from_ms == NEW_YEAR_MS
    assert until.bounded(None, None).from_ms == NEW_YEAR_MS


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"from": "now", "to": "-1h"}, "to: an empty range; got 1357032"),
        ({"from": "5", "to": "5"}, r"want a time after from; are these seconds"),
        ({"from": "now-999999999999d"}, "from: outside the years 1 to 9999"),
        ({"to": "+999999999999d"}, "to: outside the years 1 to 9999"),
    ],
)
def test_faults_of_a_range_are_named(words: dict[str, str], fault: str) -> None:
    """Each with the parameter to change."""
    problems: list[str] = []
    range_of({name: parse_time(text) for name, text in words.items()}, HOUR, NOW_MS, problems)
    assert re.search(fault, "; ".join(problems))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("-1", -1),
        ("1356998400000", NEW_YEAR_MS),
        ("2013-01-01", NEW_YEAR_MS),
        ("2013-01-01T00:00:00Z", NEW_YEAR_MS),
        ("2013-01-01t00:00:00.250z", NEW_YEAR_MS + 250),
        ("2013-01-01T00:00:00.5Z", NEW_YEAR_MS + 500),
        ("2013-01-01T01:00:00+01:00", NEW_YEAR_MS),
        ("2012-12-31T19:00:00-05:00", NEW_YEAR_MS),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_times_are_epoch_milliseconds_or_rfc_3339(text: str, expected: int) -> None:
    """Times before the epoch, with an offset, and as a date are read too."""
    assert parse_time(text) == Moment(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "now-",
        "now-1",
        "now-1.5h",
        "-h",
        "+",
        "now -1h",
        "tomorrow",
        "now-1h-1m",
        "Now",
        "1e3",
        "2013-01-01T00:00:00",
        "2013-13-01",
        "2013-01-01T24:30:00Z",
        "2013-01-01T00:00:00.0001Z",
        "2013-01-01T00:00:00 01:00",
        "2013-W01-1",
        "99999999999999999",
        "0000-01-01",
        "٣",
        "2013-01-01\n",
    ],
)
def test_other_times_are_refused(text: str) -> None:
    """Times without an offset, or finer than milliseconds, are too: they would be a guess."""
    with pytest.raises(ValueError, match="want epoch milliseconds, RFC 3339"):
        parse_time(text)


def test_a_plus_that_became_a_space_is_explained() -> None:
    """A client that did not encode the offset is told how to."""
    with pytest.raises(ValueError, match="write a plus in a URL as %2B"):
        parse_time("2013-01-01T00:00:00 01:00")
