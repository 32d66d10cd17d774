"""The times from which on states are whole: those that claims begin or senders tell."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import polars as pl
import pytest

from agents.fold.gather import Gatherer
from tables.model.errors import QueryError
from tables.model.layer import Accumulator, Map
from tables.model.shape import shapes_of
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.query.cell_query import Limits
from tables.query.facts import KnownFacts, PartitionFacts
from tables.query.family import parse_family_query
from tables.query.planner import LayerFacts
from tables.query.top import parse_top_query
from tables.state.cell import merge_rows
from tables.state.contribution import Contribution, encode_contribution
from tables.state.input_plan import InputPlan, plans_of
from tables.state.journal import NOTHING_ANNOUNCED, Announcement, EntryFingerprint
from tables.state.partition_state import PartitionState
from tables.state.small_merge import merge_small
from tests.support.common import DAY_MS, EVENTS, HOUR_MS, dataclasses_replace, run_of, small_map
from tests.support.contributions import block_of
from tests.support.plans import FINAL, MAP, ask, read
from tests.support.state_support import DAY, DAY_PLAN, HOUR, RAW_PLAN, Journal, delta, hour_block

ALL = {acc.column: NEVER_MS for acc in DAY.accumulators}
COUNTS = tuple(
    dataclasses_replace(one, accumulators=(EVENTS,), measures=one.measures[:1])
    for one in small_map().layers
)
WITH_SUM = tuple(
    dataclasses_replace(one, accumulators=one.accumulators[:3], measures=one.measures[:2])
    for one in small_map().layers
)


def plan_of(topic: str, revision: int, *layers: Any, **changes: Any) -> InputPlan:
    """Return the plan of an input under a revision with these layers."""
    themap = small_map(revision=revision, digest=f"{revision}", layers=layers, **changes)
    return plans_of(themap)[topic]


def claimed(state: PartitionState, plan: InputPlan) -> bool:
    """Let a claim of a plan come to a state; tell whether it stands."""
    return state.apply(state.meta.journal_offset, plan.claim(0), EntryFingerprint(1, 1))


def moved(state: PartitionState, time_ms: int, **blocks: bytes) -> None:
    """Apply a delta of one record that moves stream time."""
    floors = {layer.name: time_ms - HOUR_MS for layer in state.plan.layers}
    entry = delta(state, state.meta.next_offset + 1, blocks, stream_time_ms=time_ms, floors=floors)
    assert state.apply(state.meta.journal_offset, entry, EntryFingerprint(1, 1))


def record(sender: int, whole: dict[str, int] | None, rows: list[Any] | None = None) -> bytes:
    """Return a record of the day's topic."""
    block = block_of(rows) if rows else b""
    never = NOTHING_ANNOUNCED
    return encode_contribution(Contribution("hour", 1, sender, never, block, whole))


def gathered(journal: Journal, *records: bytes) -> dict[int, dict[str, int]]:
    """Let records come to a state of the day; return the news of its senders."""
    run = run_of(list(records), 0, journal.state.meta.next_offset, DAY_PLAN.topic)
    content, _ = Gatherer(journal.plan).gather(run, journal.state)
    entry = delta(
        journal.state, content.stop, announced=content.announced, whole=content.whole,
        ledger=content.ledger,
    )  # fmt: skip
    assert journal.append(entry)
    return content.whole


def test_a_coarser_layer_is_as_whole_as_the_last_of_its_senders() -> None:
    """It is not known before all have told; their times only rise, and are told once."""
    journal = Journal(DAY_PLAN)
    assert gathered(journal, record(0, ALL), record(0, ALL)) == {0: ALL}
    assert journal.state.complete_ms(DAY) == NEVER_ENDS_MS
    later = ALL | {"events": 5, "max_delay": 9}
    assert gathered(journal, record(1, later), record(1, ALL), record(0, ALL)) == {1: later}
    assert journal.state.complete_ms(DAY) == 5
    assert journal.state.whole(DAY) == later
    assert gathered(journal, record(1, ALL), record(0, ALL)) == {}
    assert journal.state.whole(DAY) == later


def test_a_sender_that_does_not_know_yet_is_waited_for() -> None:
    """Nothing is told of itself; then, that it lacks a column."""
    journal = Journal(DAY_PLAN)
    gathered(journal, record(0, ALL), record(1, {}))
    assert not journal.state.is_known(DAY)
    fewer = {name: ms for name, ms in ALL.items() if name != "sum_delay"}
    gathered(journal, record(1, fewer))
    assert journal.state.is_known(DAY)
    assert journal.state.whole(DAY) == fewer


def test_senders_of_an_older_version_have_been_whole_ever_since() -> None:
    """Windows that they had evicted when they were first heard never came."""
    journal = Journal(DAY_PLAN)
    assert journal.append(DAY_PLAN.claim(0))
    never = NOTHING_ANNOUNCED
    told = [Contribution("hour", 1, sender, Announcement(9, 7), b"") for sender in (0, 1)]
    assert gathered(journal, *map(encode_contribution, told)) == {}
    assert journal.state.whole(DAY) == ALL | {"events": 7}
    again = encode_contribution(Contribution("hour", 1, 0, never, b"", ALL))
    gathered(journal, again)
    assert journal.state.complete_ms(DAY) == 7


def test_under_a_claim_of_an_older_version_senders_have_always_been_whole() -> None:
    """It names no layers, and its owner archived every window as a whole one."""
    journal = Journal(DAY_PLAN)
    told = [Contribution("hour", 1, sender, Announcement(9, 7), b"") for sender in (0, 1)]
    gathered(journal, *map(encode_contribution, told))
    assert journal.state.complete_ms(DAY) == NEVER_MS


def test_what_a_claim_adds_to_a_base_layer_begins_after_its_time() -> None:
    """The first claim's are whole ever since; others after stream time; count always is."""
    state = PartitionState(plan_of(RAW_PLAN.topic, 2, *WITH_SUM))
    assert claimed(state, plan_of(RAW_PLAN.topic, 1, *COUNTS))
    moved(state, 5 * HOUR_MS)
    assert claimed(state, plan_of(RAW_PLAN.topic, 2, *WITH_SUM))
    hour = WITH_SUM[0]
    began = 5 * HOUR_MS + 1
    assert state.whole(hour) == {"events": NEVER_MS, "n_delay": began, "sum_delay": began}
    # A claim of the same map again begins nothing.
    moved(state, 7 * HOUR_MS)
    assert claimed(state, plan_of(RAW_PLAN.topic, 2, *WITH_SUM))
    assert state.whole(hour)["sum_delay"] == began
    assert state.sends_whole(hour, WITH_SUM[1]) == state.whole(hour)


def test_a_layer_made_later_gets_what_was_not_sealed_when_it_came() -> None:
    """Older windows may have been evicted; the sender says so to that layer alone."""
    state = PartitionState(plan_of(RAW_PLAN.topic, 2, *WITH_SUM))
    assert claimed(state, plan_of(RAW_PLAN.topic, 1, WITH_SUM[0]))
    moved(state, 5 * HOUR_MS)
    assert claimed(state, plan_of(RAW_PLAN.topic, 2, *WITH_SUM))
    hour, day = WITH_SUM
    assert state.sends_whole(hour, day)["events"] == 4 * HOUR_MS
    assert state.complete_ms(hour) == NEVER_MS


def test_what_a_claim_adds_to_a_coarser_layer_begins_after_all_its_windows() -> None:
    """Its senders are asked anew too."""
    state = PartitionState(plan_of(DAY_PLAN.topic, 2, *WITH_SUM))
    assert claimed(state, plan_of(DAY_PLAN.topic, 1, *COUNTS))
    block = block_of([("UA", 30, 5, 1)])
    rows = {"day": block}
    frame = pl.read_ipc_stream(block).with_columns(
        window_start=pl.lit(DAY_MS, pl.Int64), source_partition=pl.lit(0, pl.Int32)
    )
    entry = delta(state, 1, rows, dict.fromkeys((0, 1), NOTHING_ANNOUNCED),
                  whole={0: ALL, 1: ALL})  # fmt: skip
    assert state.apply(state.meta.journal_offset, entry, EntryFingerprint(1, 1), {"day": frame})
    assert state.whole(WITH_SUM[1])["sum_delay"] == NEVER_MS
    assert claimed(state, plan_of(DAY_PLAN.topic, 2, *WITH_SUM))
    assert "sum_delay" not in state.whole(WITH_SUM[1])
    again = delta(state, 2, whole={0: ALL, 1: ALL})
    assert state.apply(state.meta.journal_offset, again, EntryFingerprint(1, 1))
    assert state.whole(WITH_SUM[1])["sum_delay"] == 2 * DAY_MS
    assert state.tables["day"].cells()["sum_delay"].to_list() == [None]


def test_a_claim_with_another_layer_under_the_same_name_does_not_stand() -> None:
    """It may have been dropped in between; other measures and layers do not matter."""
    other = dataclasses_replace(HOUR, key=HOUR.key[:1])
    state = PartitionState(RAW_PLAN)
    assert claimed(state, plan_of(RAW_PLAN.topic, 1, HOUR))
    assert not claimed(state, plan_of(RAW_PLAN.topic, 2, other))
    assert claimed(state, plan_of(RAW_PLAN.topic, 3, dataclasses_replace(HOUR, name="another")))
    assert not claimed(state, plan_of(RAW_PLAN.topic, 4, other))
    assert claimed(state, plan_of(RAW_PLAN.topic, 5, *WITH_SUM))
    floats = tuple(
        dataclasses_replace(acc, type="float") if acc.field else acc for acc in HOUR.accumulators
    )
    assert not claimed(
        state, plan_of(RAW_PLAN.topic, 6, dataclasses_replace(HOUR, accumulators=floats))
    )
    unkeyed = (dataclasses_replace(MAP.sources[0], keyed_by=()),)
    merged = dataclasses_replace(HOUR, merged=True)
    assert not claimed(state, plan_of(RAW_PLAN.topic, 7, merged, sources=unkeyed))
    assert state.meta.revision == 5
    assert shapes_of(MAP)["day"]["input"] == "layer hour"


@pytest.mark.parametrize("known", list(itertools.product([True, False], repeat=2)))
def test_a_cell_of_parts_is_known_where_all_parts_are(known: tuple[bool, bool]) -> None:
    """Frames and tuples agree; an extreme is null too if no event had the field."""
    kinds = ("n", "sum", "min", "max", "m2")
    accumulators = (EVENTS, *(Accumulator(kind, "x", "float") for kind in kinds))
    values = [(1, 1, 2.0, 2.0, 2.0, 0.0), (3, 3, 6.0, 1.0, 3.0, 2.0)]
    rows: list[tuple[float | None, ...]] = [
        one if is_known else (one[0], *[None] * 5)
        for one, is_known in zip(values, known, strict=True)
    ]
    rows.append((2, 0, 0.0, None, None, 0.0))
    names = [acc.column for acc in accumulators]
    schema = {"key": pl.String(), **dict.fromkeys(names, pl.Float64()), "version": pl.Int64()}
    frame = pl.DataFrame([("a", *row, 1) for row in rows], schema=schema, orient="row")
    (merged,) = merge_rows(frame, ["key"], accumulators).rows()
    small = merge_small(accumulators, [(("a",), (*row, 1)) for row in rows])
    wanted = (6, 4, 8.0, 1.0, 3.0, 2.0) if all(known) else (6, *[None] * 5)
    assert merged == ("a", *wanted, 1)
    assert small == {("a",): (*wanted, 1)}


def test_of_facts_the_later_ones_say_what_is_whole() -> None:
    """They may be heard in any order; the last partition to begin counts."""
    first = PartitionFacts(0, 5, 0, 0, 0, 0, NEVER_ENDS_MS, 1.0)
    then = dataclasses_replace(first, position=6, complete_ms=8, whole={"sum_delay": 9})
    other = dataclasses_replace(first, partition=1, complete_ms=NEVER_MS, whole={"sum_delay": 7})
    for order in itertools.permutations((first, then, other)):
        known = KnownFacts()
        for facts in order:
            known.add("day", [facts])
        assert known.whole(DAY) == {"events": 8, "sum_delay": 9}


def test_coarser_windows_are_read_where_they_know_what_the_base_knows() -> None:
    """Finer windows are read between the two times; both are null before the base knows."""
    base = LayerFacts(whole={"sum_delay": 30 * HOUR_MS})
    day = dataclasses.replace(FINAL, whole={"sum_delay": 3 * DAY_MS})
    query = ask(stop=5 * DAY_MS, key_carrier="UA", measures="sum_delay")
    assert read(query, hour=base, day=day) == [("day", 0, 48), ("hour", 48, 72), ("day", 72, 120)]
    counted = ask(stop=5 * DAY_MS, key_carrier="UA", measures="count")
    assert read(counted, hour=base, day=day) == [("day", 0, 120)]
    unknown = dataclasses.replace(FINAL, whole={"sum_delay": NEVER_ENDS_MS})
    assert read(query, hour=base, day=unknown) == [("day", 0, 48), ("hour", 48, 120)]
    never = LayerFacts(whole={"sum_delay": NEVER_ENDS_MS})
    assert read(query, hour=never, day=unknown) == [("day", 0, 120)]


def test_keys_are_ranked_only_by_what_is_known_of_the_whole_range() -> None:
    """A key that was not known of would be missing among the first."""
    base = LayerFacts(whole={"sum_delay": 30 * HOUR_MS + 1})

    def top(start: int, by: str, themap: Map = MAP) -> list[tuple[Any, ...]]:
        words = [("from", str(start)), ("to", str(5 * DAY_MS)), ("by", by)]
        return read(parse_top_query(themap, "hour", words, Limits()).query, hour=base)

    assert top(31 * HOUR_MS, "sum_delay")
    assert top(0, "count")
    assert top(0, "max_delay")
    with pytest.raises(QueryError, match=f"want a range from {31 * HOUR_MS} on"):
        top(30 * HOUR_MS, "mean_delay")
    assert (
        parse_family_query(MAP, "hour", [("from", "0"), ("to", "3600000")], Limits()).ranked is None
    )


def test_blocks_from_before_a_measure_do_not_hide_what_comes_after() -> None:
    """Cells of later windows have it, with any cells beside them."""
    state = PartitionState(plan_of(RAW_PLAN.topic, 2, HOUR))
    assert claimed(state, plan_of(RAW_PLAN.topic, 1, COUNTS[0]))
    moved(state, HOUR_MS, hour=hour_block([("JFK", "UA", HOUR_MS, 5)]))
    assert claimed(state, plan_of(RAW_PLAN.topic, 2, HOUR))
    moved(
        state, 2 * HOUR_MS, hour=hour_block([("JFK", "UA", HOUR_MS, 5), ("LGA", "UA", HOUR_MS, 5)])
    )
    moved(state, 2 * HOUR_MS, hour=hour_block([("JFK", "UA", 2 * HOUR_MS, 5)]))
    cells = state.tables["hour"].cells().sort("window_start", "key_origin")
    assert cells["events"].to_list() == [2, 1, 1]
    assert cells["sum_delay"].to_list() == [None, None, 5]
