"""Parameters: texts become values, and all that is wrong is told at once."""

from __future__ import annotations

import pytest

from tables.model.window import MONTH
from tables.query.parameters import Parameter, parse_time_ms, read_parameters

NEW_YEAR_MS = 1_356_998_400_000
WORDS = [
    Parameter.time("from", "The start."),
    Parameter.whole("limit", "How many.", 1, 10),
    Parameter.choice("measures", "Which ones.", ["count", "sum"], many=True),
    Parameter.window("step", "How long."),
]


def test_values_have_their_types_and_those_of_many_come_once() -> None:
    """A parameter that was not given is left out."""
    problems: list[str] = []
    given = [("from", "2013-01-01"), ("measures", "sum"), ("measures", "sum"), ("step", "month")]
    values = read_parameters(WORDS, given, problems)
    assert values == {"from": NEW_YEAR_MS, "measures": ("sum",), "step": MONTH}
    assert problems == []


def test_of_thousands_of_unknown_parameters_some_are_told() -> None:
    """A search for the meaning of each would hold up the loop."""
    problems: list[str] = []
    assert read_parameters(WORDS, [(f"step{n}", "") for n in range(5_000)], problems) == {}
    assert len(problems) == 12
    assert problems[0].endswith("did you mean step?")
    assert problems[10] == "and 4990 more that there are not"
    assert problems[11].startswith("from: missing")


def test_all_that_is_wrong_is_told() -> None:
    """One refusal names everything that must change."""
    problems: list[str] = []
    given = [("limit", "11"), ("limit", "2"), ("measure", "sum"), ("measures", "sun")]
    assert read_parameters(WORDS, given, problems) == {}
    assert problems == [
        "limit: given twice; want it once",
        "measure: no such parameter; want from, limit, measures, step; did you mean measures?",
        "from: missing; want epoch milliseconds or RFC 3339",
        "limit: got '11'; want a whole number from 1 to 10",
        "measures: got 'sun'; want one of count, sum; did you mean sum?",
    ]


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
    assert parse_time_ms(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
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
    with pytest.raises(ValueError, match="want epoch milliseconds or RFC 3339"):
        parse_time_ms(text)


def test_a_plus_that_became_a_space_is_explained() -> None:
    """A client that did not encode the offset is told how to."""
    with pytest.raises(ValueError, match="write a plus in a URL as %2B"):
        parse_time_ms("2013-01-01T00:00:00 01:00")
