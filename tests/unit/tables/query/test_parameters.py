"""Parameters: texts become values, and all that is wrong is told at once."""

from __future__ import annotations

from tables.model.window import MONTH
from tables.query.parameters import Parameter, read_parameters
from tables.query.time_range import Moment

NEW_YEAR_MS = 1_356_998_400_000
WORDS = [
    Parameter.time("from", "The start."),
    Parameter.whole("limit", "How many.", 1, 10),
    Parameter.choice("measures", "Which ones.", ["count", "sum"], many=True),
    Parameter.choice("by", "By what.", ["count"], required=True),
    Parameter.window("step", "How long."),
]


def test_values_have_their_types_and_those_of_many_come_once() -> None:
    """A parameter that was not given is left out."""
    problems: list[str] = []
    given = [("from", "2013-01-01"), ("measures", "sum"), ("measures", "sum"), ("step", "month")]
    given.append(("by", "count"))
    values = read_parameters(WORDS, given, problems)
    assert values == {
        "from": Moment(NEW_YEAR_MS), "measures": ("sum",), "by": "count", "step": MONTH,
    }  # fmt: skip
    assert problems == []


def test_of_thousands_of_unknown_parameters_some_are_told() -> None:
    """A search for the meaning of each would hold up the loop."""
    problems: list[str] = []
    assert read_parameters(WORDS, [(f"step{n}", "") for n in range(5_000)], problems) == {}
    assert len(problems) == 12
    assert problems[0].endswith("did you mean step?")
    assert problems[10] == "and 4990 more that there are not"
    assert problems[11].startswith("by: missing")


def test_all_that_is_wrong_is_told() -> None:
    """One refusal names everything that must change."""
    problems: list[str] = []
    given = [("limit", "11"), ("limit", "2"), ("measure", "sum"), ("measures", "sun")]
    assert read_parameters(WORDS, given, problems) == {}
    assert problems == [
        "limit: given twice; want it once",
        "measure: no such parameter; want from, limit, measures, by, step; did you mean measures?",
        "limit: got '11'; want a whole number from 1 to 10",
        "measures: got 'sun'; want one of count, sum; did you mean sum?",
        "by: missing; want one of count",
    ]
