"""The records of decisions: each has its head and its sections, and the index has each of them."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from tests import ROOT

FOLDER = ROOT / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
HEAD = re.compile(
    r"# (?P<number>\d{4}): (?P<title>.+)\n\n"
    r"- Status: (?P<status>accepted|superseded by (?P<later>\d{4}))\n- Date: (?P<date>.+)\n"
)
ROW = re.compile(r"\| \[(\d{4})\]\((.+?)\) \| (.+?) \| (.+?) \| (.+?) \|")
SECTIONS = ("Context", "Decision", "Alternatives", "What would prove it wrong")


def head(record: Path) -> re.Match[str]:
    """Return the head of a record, by its parts."""
    found = HEAD.match(record.read_text("utf-8"))
    assert found, f"{record.name}: want '# NNNN: Title', a line of its status and one of its date"
    return found


def test_the_index_has_every_record() -> None:
    """The records are in their order, with their own titles, states and dates."""
    rows = ROW.findall((FOLDER / "README.md").read_text("utf-8"))
    assert len(RECORDS) > 10
    assert rows == [
        (one["number"], record.name, one["title"], one["status"], one["date"])
        for record in RECORDS
        for one in (head(record),)
    ]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_says_all_that_a_decision_needs(record: Path) -> None:
    """Its number is that of the file, and a later record that replaces it is there."""
    one = head(record)
    assert record.name.startswith(f"{one['number']}-")
    assert dt.date.fromisoformat(one["date"]) >= dt.date(2026, 11, 23)
    if later := one["later"]:
        assert int(later) > int(one["number"])
        assert list(FOLDER.glob(f"{later}-*.md"))
    sections = re.findall(r"^## (.+)$", record.read_text("utf-8"), re.MULTILINE)
    assert [name for name in sections if name in SECTIONS] == list(SECTIONS)


def test_numbers_follow_each_other() -> None:
    """A record is never taken away, so that a number in a comment finds it for ever."""
    numbers = [int(head(record)["number"]) for record in RECORDS]
    assert numbers == list(range(1, len(numbers) + 1))
