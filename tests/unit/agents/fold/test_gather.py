"""Gathering: a layer topic's records against a plain loop over them, after any history."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.decode.event_batch import SetAside
from agents.fold.content import Content
from agents.fold.gather import Gatherer
from tables.model import ledger
from tables.model.errors import JournalRefusedError
from tables.model.window import NEVER_MS
from tables.record.sealed import seal
from tables.state.block import encode_block
from tables.state.contribution import Contribution, encode_contribution
from tables.state.journal import Announcement
from tests.support.common import DAY_MS, HOUR_MS, run_of
from tests.support.contributions import NEVER, TOPIC, Row, contribution
from tests.support.state_support import DAY, DAY_PLAN, Cells, Journal, cells_of


def tell(hour: int, sender: int = 0, floor: int | None = None) -> bytes:
    """Return an announcement of hours."""
    announced = Announcement(hour * HOUR_MS, (hour if floor is None else floor) * HOUR_MS)
    return contribution([], sender, announced)


class Topic:
    """One partition of the layer topic: its runs are gathered into a state, one after another."""

    def __init__(self) -> None:
        self.journal = Journal(DAY_PLAN)
        self.gatherer = Gatherer(DAY_PLAN)
        self.aside: list[SetAside] = []

    def take(self, *values: bytes | None, gap: int = 0) -> Content:
        """Gather one run and apply its content; ``gap`` offsets after it carry no record."""
        run = run_of(list(values), 0, self.journal.state.meta.next_offset, TOPIC)
        run.next_offset += gap
        content, aside = self.gatherer.gather(run, self.journal.state)
        self.aside += aside
        self.journal.advance(content)
        return content

    def cells(self) -> Cells:
        """Return the days: events, sum of delays, version by carrier and day."""
        return cells_of(self.journal.state.tables["day"])

    def sums(self) -> dict[tuple[Any, ...], tuple[int, int]]:
        """Return events and sum of delays by carrier and day."""
        return {key: cell[:2] for key, cell in self.cells().items()}

    def counts(self, *names: str) -> list[int]:
        """Return the values of these columns in the layer's ledger."""
        meta = self.journal.state.meta
        assert ledger.imbalances(meta.ledger, meta.next_offset - meta.base, ["day"]) == []
        return [meta.ledger.get(f"layer.day.{name}", 0) for name in names]


class Model:
    """Rule 12 of docs/formats/journal.md in plain Python."""

    def __init__(self) -> None:
        self.announced: dict[int, Announcement] = {}
        self.values: dict[tuple[str, int, int], tuple[int, int]] = {}
        self.counts: Counter[str] = Counter()

    def take(self, rows: list[Row], sender: int, announced: Announcement) -> None:
        """Take one record: its rows by the floors known before it, then its announcement."""
        own = self.announced.get(sender, NEVER)
        everyone = len(self.announced) == DAY_PLAN.senders
        floor = min(floor for _, floor in self.announced.values()) if everyone else NEVER_MS
        for carrier, hour, delay, contributed in rows:
            place = (carrier, hour, sender)
            if (hour * HOUR_MS // DAY_MS + 1) * DAY_MS <= floor:
                self.counts["too_late"] += 1
            elif (hour + 1) * HOUR_MS <= own[1] or contributed <= self.values.get(place, (0, -1))[
                1
            ]:
                self.counts["repeated"] += 1
            else:
                self.counts["folded"] += 1
                self.values[place] = (delay, contributed)
        self.announced[sender] = Announcement(max(own[0], announced[0]), max(own[1], announced[1]))

    def sums(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Return events and sum of delays by carrier and day."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for (carrier, hour, _), (delay, _) in self.values.items():
            cell = (carrier, hour * HOUR_MS // DAY_MS * DAY_MS)
            events, total = found.get(cell, (0, 0))
            found[cell] = (events + 1, total + delay)
        return found


ROWS = st.tuples(
    st.sampled_from(["UA", "AA", "DL"]),
    st.sampled_from([-1, 0, 1, 23, 24, 25]),
    st.integers(-9, 9),
    st.integers(1, 4),
)
MOMENTS = st.sampled_from([NEVER_MS, -HOUR_MS, 0, HOUR_MS - 1, HOUR_MS, DAY_MS, 2 * DAY_MS])
GOOD = st.tuples(
    st.lists(ROWS, max_size=4, unique_by=lambda row: row[:2]),
    st.integers(0, 1),
    st.tuples(MOMENTS, MOMENTS).map(lambda pair: (max(pair), min(pair))),
)
BAD = st.sampled_from(
    [
        None,
        b"",
        b"\x01",
        b"\x01no contribution",
        contribution([], sender=2),
        contribution([], sender=-1),
        contribution([("UA", 0, 1, 1)], layer="minute"),
        encode_contribution(Contribution("hour", 1, 0, Announcement(DAY_MS, DAY_MS), b"no block")),
    ]
)
LOGS = st.lists(st.one_of(GOOD, GOOD, GOOD, BAD), max_size=24)
ONE = Announcement(1, 1)
TALE = [("UA", 0, 1, 1)], 0, NEVER


@given(LOGS, st.lists(st.integers(0, 24), max_size=8))
@example([TALE] * 12, list(range(12)))
@example([([], 0, (DAY_MS, DAY_MS)), ([], 1, (DAY_MS, DAY_MS)), TALE], [1, 2])
@example([([("UA", 0, 7, 4)], 0, (HOUR_MS, HOUR_MS)), TALE], [])
def test_any_cutting_gives_the_table_and_ledger_of_a_plain_loop(
    log: list[Any], cuts: list[int]
) -> None:
    """The content of a record follows from the records before it, not from its run."""
    model, broken, empty = Model(), 0, 0
    values: list[bytes | None] = []
    for record in log:
        if isinstance(record, tuple):
            model.take(*record)
            values.append(contribution(*record))
        else:
            values.append(record)
            empty += not record
            broken += bool(record)
    topic = Topic()
    for start, stop in itertools.pairwise(
        sorted({0, len(log), *(c for c in cuts if c < len(log))})
    ):
        topic.take(*values[start:stop])
    assert topic.sums() == model.sums()
    assert topic.journal.state.meta.announced == model.announced
    wanted = [model.counts[name] for name in ("folded", "repeated", "too_late")]
    assert topic.counts("folded", "repeated", "too_late") == wanted
    counts = topic.journal.state.meta.ledger
    assert counts.get("records.unreadable", 0) == broken == len(topic.aside)
    assert counts.get("records.empty", 0) == empty


def test_a_larger_version_replaces_and_others_are_repeated() -> None:
    """The value is absolute: it takes the place of the one before, in the same run or a later one.

    version   3        5       4        5         one hour of one sender
              folded   folded  repeated repeated
    """
    topic = Topic()
    topic.take(contribution([("UA", 0, 1, 3)]), contribution([("UA", 0, 10, 5)]))
    topic.take(contribution([("UA", 0, 100, 4)]))
    topic.take(contribution([("UA", 0, 1_000, 5)]))
    assert topic.cells() == {("UA", 0): (1, 10, 2)}
    assert topic.counts("folded", "repeated", "too_late") == [2, 2, 0]


def test_a_run_of_repeats_leaves_no_block() -> None:
    """Rows that were known before do not make the journal grow."""
    topic = Topic()
    assert set(topic.take(contribution([("UA", 0, 1, 3)])).blocks) == {"day"}
    assert topic.take(contribution([("UA", 0, 1, 3)])).blocks == {}


def test_senders_and_finer_windows_add_up() -> None:
    """Only the same key, window and sender is the same contribution."""
    topic = Topic()
    rows: list[Row] = [("UA", 0, 1, 9), ("AA", 0, 2, 9), ("UA", 1, 4, 9)]
    topic.take(contribution(rows), contribution([("UA", 0, 8, 1)], sender=1))
    assert topic.sums() == {("UA", 0): (3, 13), ("AA", 0): (1, 2)}


def test_what_is_final_at_its_sender_is_repeated() -> None:
    """A sender's floor says that the log has its windows: only a repeat can come after.

    Another sender's cells of the same hour are not final by that.
    """
    topic = Topic()
    topic.take(tell(1), contribution([("UA", 0, 1, 7)]))
    topic.take(contribution([("UA", 0, 2, 1)], sender=1))
    assert topic.sums() == {("UA", 0): (1, 2)}
    assert topic.counts("folded", "repeated", "too_late") == [1, 1, 0]


def test_a_window_below_every_floor_is_too_late() -> None:
    """The least floor over all senders counts, minus infinity while one has said nothing."""
    topic = Topic()
    topic.take(tell(48, sender=1), contribution([("UA", 0, 1, 1)]))
    assert topic.counts("folded", "too_late") == [1, 0]
    topic.take(tell(23), contribution([("UA", 23, 2, 2)]))
    assert topic.counts("folded", "too_late") == [2, 0]
    topic.take(tell(24), contribution([("UA", 22, 4, 3)]))
    assert topic.counts("folded", "too_late") == [2, 1]
    assert topic.sums() == {("UA", 0): (2, 3)}


def test_a_record_is_taken_before_its_own_announcement() -> None:
    """A sender may announce a window together with its last cells."""
    topic = Topic()
    topic.take(tell(24, sender=1))
    sealing = Announcement(DAY_MS, DAY_MS)
    topic.take(
        contribution([("UA", 0, 1, 1)], announced=sealing),
        contribution([("UA", 1, 2, 1)], announced=sealing),
    )
    assert topic.sums() == {("UA", 0): (1, 1)}
    assert topic.counts("folded", "too_late") == [1, 1]


def test_announcements_never_go_back() -> None:
    """The greatest of each sender stays, closed and floor each for itself."""
    topic = Topic()
    topic.take(tell(5, floor=1), tell(3, floor=2), tell(9, sender=1, floor=0))
    topic.take(tell(4, floor=0))
    assert topic.journal.state.meta.announced == {
        0: (5 * HOUR_MS, 2 * HOUR_MS),
        1: (9 * HOUR_MS, 0),
    }
    assert topic.journal.state.closed_ms(DAY) == 5 * HOUR_MS
    assert topic.journal.state.floor_ms(DAY) == 0


def test_records_by_kind_add_up_to_the_offsets() -> None:
    """Records have cells, announcements, nothing, or junk; some offsets carry no record."""
    topic = Topic()
    topic.take(contribution([("UA", 0, 1, 1)]), tell(1), None, b"", b"\x01?", gap=3)
    counts = topic.journal.state.meta.ledger
    names = ("with_events", "heartbeat", "empty", "unreadable", "gap")
    assert [counts[f"records.{name}"] for name in names] == [1, 1, 2, 1, 3]
    assert counts["unreadable.contribution"] == 1
    assert ledger.imbalances(counts, 8, ["day"]) == []


def test_foreign_and_broken_records_are_set_aside_with_their_reason() -> None:
    """They change neither cells nor announcements; each is named by its place in the run."""
    broken = [
        (b"\x01?", "Expected `array`, got `int`"),
        (tell(1).replace(b"hour", b"ho\xffr"), "its checksum is wrong"),
        ((b"\x01" + tell(1)[9:]).replace(b"hour", b"ho\xffr"), "'utf-8' codec can't decode"),
        (b'{"a": 1}', "its checksum is wrong"),
        (b"\x03" + tell(1)[1:], "its checksum is wrong"),
        (contribution([("UA", 10**9, 1, 1)]), "windows that no event time can be in"),
        (contribution([], layer="minute", announced=ONE), "it is of layer minute, not hour"),
        (contribution([], sender=2, announced=ONE), "sender 2 does not exist"),
        (contribution([], sender=-1, announced=ONE), "sender -1 does not exist"),
        (encode_contribution(Contribution("hour", 1, 0, ONE, b"x")), "its block is unreadable"),
        (
            encode_contribution(
                Contribution("hour", 1, 0, ONE, encode_block(pl.DataFrame({"a": [1]})))
            ),
            "its block holds other cells",
        ),
    ]
    topic = Topic()
    topic.take(*(value for value, _ in broken), contribution([("UA", 0, 1, 1)]))
    assert [(item.kind, item.record, item.reason) for item in topic.aside] == [
        ("dead", index, "contribution") for index in range(len(broken))
    ]
    for item, (_, detail) in zip(topic.aside, broken, strict=True):
        assert detail in item.detail
    assert topic.sums() == {("UA", 0): (1, 1)}
    assert topic.journal.state.meta.announced == {0: NEVER}
    assert topic.counts("selected", "folded") == [1, 1]


def test_a_record_of_the_format_before_is_taken() -> None:
    """It has no checksum; the structure of its block is checked instead."""
    topic = Topic()
    topic.take(b"\x01" + contribution([("UA", 0, 1, 1)])[9:], b"\x01" + tell(1)[9:])
    assert topic.sums() == {("UA", 0): (1, 1)}
    assert topic.journal.state.meta.announced == {0: (HOUR_MS, HOUR_MS)}
    assert topic.aside == []


def test_a_newer_format_stops_the_reader() -> None:
    """Dropping it would lose cells; nothing of the run is applied."""
    topic = Topic()
    with pytest.raises(JournalRefusedError, match="run the version that wrote it"):
        topic.take(contribution([("UA", 0, 1, 1)]), seal(3, b"whatever"))
    assert topic.sums() == {}
    assert topic.journal.state.meta.next_offset == 0
