"""States under revisions of the map: all readers of a journal are equal, after any revisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from agents.partition.partition_io import PartitionIO
from agents.partition.recovery import Recovery
from tables.archive.embedded.archive import EmbeddedArchive
from tables.state import snapshot
from tables.state.block import encode_block
from tables.state.id_table import IDS, hash_ids
from tables.state.input_plan import InputPlan, plans_of
from tables.state.journal import Entry, decode_entry, encode_entry, fingerprint_of
from tables.state.partition_state import PartitionState
from tables.state.store import PartitionStore
from tests.simulation.readers import contents
from tests.support.common import (
    DAY_MS,
    EVENTS,
    HOUR_MS,
    MemoryLog,
    StoredRecord,
    accumulators,
    dataclasses_replace,
    small_map,
)
from tests.support.state_support import RAW_PLAN, delta, hour_block, hour_rows

HOUR = small_map().layer("hour")
OTHER = dataclasses_replace(HOUR, name="other")
COUNT = dataclasses_replace(HOUR, accumulators=(EVENTS,))
DELAYS = dataclasses_replace(HOUR, accumulators=accumulators("delay"))


def plan_of(revision: int, *layers: Any, ids: int = 0) -> InputPlan:
    """Return the source's plan in a revision that has these layers, and remembers so many ids."""
    assert RAW_PLAN.source is not None
    source = dataclasses_replace(RAW_PLAN.source, id_field="id" if ids else None, ids_max=ids)
    themap = small_map(
        sources=(source,), layers=layers, revision=revision, digest=f"revision {revision}"
    )
    return plans_of(themap)["flights.raw"]


class History:
    """A journal that owners of several revisions write, one after the other, with one local store.

    Readers of the last revision come to the same, wherever they begin.
    """

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        self.store = PartitionStore(folder)
        self.plan = RAW_PLAN
        self.state = PartitionState(RAW_PLAN)

    async def claim(self, plan: InputPlan) -> None:
        """Let an owner of another revision take over."""
        self.plan = plan
        epoch = self._put(plan.claim(0))
        io = PartitionIO(
            plan, 0, self.log, self.store, archive=EmbeddedArchive(self.store.folder / "archive")
        )
        self.state = await Recovery(plan, 0, io).run(epoch)

    def advance(self, blocks: dict[str, bytes], time_ms: int, **changes: Any) -> None:
        """Append a delta of one record that moves stream time."""
        floors = {layer.name: time_ms - HOUR_MS for layer in self.plan.layers}
        stop = self.state.meta.next_offset + 1
        self._put(delta(self.state, stop, blocks, stream_time_ms=time_ms, floors=floors, **changes))
        self.apply_to(self.state)
        self.store.save(self.state.take_writes(), self.state.meta)

    def _put(self, entry: Entry) -> int:
        entries = self.log.records.setdefault((RAW_PLAN.journal, 0), [])
        entries.append(StoredRecord(len(entries), encode_entry(entry), 0))
        return len(entries) - 1

    def apply_to(self, state: PartitionState) -> PartitionState:
        """Bring a state up to the end."""
        for record in self.log.records[RAW_PLAN.journal, 0][state.meta.journal_offset :]:
            value = record.value or b""
            state.apply(record.offset, decode_entry(value), fingerprint_of(value))
        return state

    def captured(self) -> Callable[[InputPlan], PartitionState]:
        """Take a snapshot of now; return a function that restores it for a plan."""
        parts = list(snapshot.capture(self.state))
        return lambda plan: snapshot.restored(plan, parts)

    def check(self, *snapshots: Callable[[InputPlan], PartitionState]) -> None:
        """Compare readers from the start, from the store and from snapshots with the owner."""
        states = {"the start": PartitionState(self.plan)}
        stored = self.store.load(self.plan)
        assert stored is not None
        states["the store"] = stored
        states |= {f"snapshot {at}": taken(self.plan) for at, taken in enumerate(snapshots)}
        for name, state in states.items():
            assert contents(self.apply_to(state)) == contents(self.state), f"from {name}"


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Return an empty journal."""
    found = History(tmp_path / "store")
    yield found
    found.store.close()


def block(*delays: int, start: int = 0) -> bytes:
    """Return a block of one cell an event."""
    return hour_block([(str(number), "UA", start, delay) for number, delay in enumerate(delays)])


async def test_a_layer_that_comes_back_begins_anew(history: History) -> None:
    """All readers agree: from the start, from a snapshot without it, from the store of both."""
    await history.claim(plan_of(1, HOUR, OTHER))
    first = history.captured()
    history.advance({"hour": block(1, 2), "other": block(3, 4)}, 10)
    history.advance({"hour": block(5), "other": block(6)}, 2 * HOUR_MS)
    with_both = history.captured()
    await history.claim(plan_of(2, HOUR))
    history.advance({"hour": block(7)}, 3 * HOUR_MS)
    without = history.captured()
    await history.claim(plan_of(3, HOUR, OTHER))
    history.advance({"hour": block(8), "other": block(9, start=DAY_MS)}, DAY_MS)
    history.check(first, with_both, without)
    meta, other = history.state.meta, history.state.tables["other"]
    assert other.cells()["sum_delay"].to_list() == [9]
    assert meta.began_ms == {"other": 3 * HOUR_MS + 1}
    assert meta.floors == {"hour": DAY_MS - HOUR_MS, "other": DAY_MS - HOUR_MS}


async def test_a_layer_is_gone_at_the_claim_already(history: History) -> None:
    """A snapshot or a kill between claim and delta then tells the same story."""
    await history.claim(plan_of(1, HOUR, OTHER))
    history.advance({"hour": block(1), "other": block(3)}, 10)
    await history.claim(plan_of(2, HOUR))
    without = history.captured()
    await history.claim(plan_of(3, HOUR, OTHER))
    history.check(without)
    assert not history.state.tables["other"].versions
    assert history.state.meta.began_ms == {"other": 11}


async def test_the_floor_of_a_layer_that_comes_back_has_not_fallen(history: History) -> None:
    """Sealed windows are archived, and final for coarser layers: they must not begin anew."""
    await history.claim(plan_of(1, HOUR, OTHER))
    history.advance({}, DAY_MS)
    await history.claim(plan_of(2, HOUR))
    history.advance({}, DAY_MS + 1)
    without = history.captured()
    await history.claim(plan_of(3, HOUR, OTHER))
    history.check(without)
    assert history.state.floor_ms(OTHER) == DAY_MS - HOUR_MS


async def test_a_measure_that_comes_back_begins_anew(history: History) -> None:
    """Only some readers know its values from before its revision was dropped."""
    await history.claim(plan_of(1, DELAYS))
    history.advance({"hour": block(1, 2)}, 10)
    await history.claim(plan_of(2, COUNT))
    rows = hour_rows([("0", "UA", 0, 7)])
    assert isinstance(rows, pl.DataFrame)
    counted = rows.select("key_origin", "key_carrier", "window_start", "events")
    history.advance({"hour": encode_block(counted)}, 20)
    without = history.captured()
    await history.claim(plan_of(3, DELAYS))
    history.advance({"hour": block(5)}, 30)
    history.check(without)
    cells = history.state.tables["hour"].cells().sort("key_origin")
    assert cells["events"].to_list() == [3, 1]
    assert cells["sum_delay"].to_list() == [None, None], "its hour began before"
    history.advance({"hour": block(5, start=HOUR_MS)}, HOUR_MS + 5)
    cells = history.state.tables["hour"].cells().filter(window_start=HOUR_MS)
    assert cells["sum_delay"].to_list() == [5]
    assert cells["min_delay"].to_list() == [5]


def ids_block(*ids: str, until: int = DAY_MS) -> bytes:
    """Return a block of remembered ids."""
    return encode_block(hash_ids(pl.Series(ids)).with_columns(until=pl.lit(until, pl.Int64)))


def places(state: PartitionState, *ids: str) -> list[int | None]:
    """Return the places of remembered ids, from the end; None for others."""
    assert state.ids is not None
    found = state.ids.find(hash_ids(pl.Series(ids)))
    return [found[at].row if at in found else None for at in range(len(ids))]


async def test_ids_that_come_back_begin_anew(history: History) -> None:
    """A revision without them forgets them, for readers that skipped them and for all others."""
    await history.claim(plan_of(1, HOUR, ids=9))
    history.advance({IDS: ids_block("a", "b", until=HOUR_MS)}, 10)
    with_ids = history.captured()
    await history.claim(plan_of(2, HOUR))
    history.advance({}, 20)
    without = history.captured()
    await history.claim(plan_of(3, HOUR, ids=9))
    history.advance({IDS: ids_block("c", until=2 * HOUR_MS)}, 30)
    history.advance({IDS: ids_block("d")}, HOUR_MS, ids_gone=0)
    history.advance({}, 2 * HOUR_MS, ids_gone=1)
    history.check(with_ids, without)
    assert places(history.state, "a", "b", "c", "d") == [None, None, None, -1]


async def test_what_goes_is_told_by_a_total_that_may_be_repeated(history: History) -> None:
    """Ids and windows have totals alike; a new claim begins to count."""
    await history.claim(plan_of(1, HOUR, ids=9))
    history.advance({IDS: ids_block("a", "b", "c", "d")}, 10)
    for _ in range(2):
        history.advance({}, 10, ids_gone=2)
    assert places(history.state, "a", "b", "c", "d") == [None, None, -2, -1]
    await history.claim(plan_of(1, HOUR, ids=9))
    history.advance({}, 10, ids_gone=1)
    assert places(history.state, "c", "d") == [None, -1]
    history.check()


async def test_counts_of_earlier_formats_are_read(history: History) -> None:
    """They say how many go, not up to which."""
    await history.claim(plan_of(1, HOUR, ids=9))
    history.advance({IDS: ids_block("a", "b", "c", "d")}, 10)
    for _ in range(2):
        history.advance({}, 10, evicted={IDS: [1]})
    assert places(history.state, "a", "b", "c", "d") == [None, None, -2, -1]
    history.check()


async def test_more_ids_bring_back_none_that_was_forgotten(history: History) -> None:
    """They may lie there still: whether they do follows from how the log was cut."""
    await history.claim(plan_of(1, HOUR, ids=2))
    history.advance({IDS: ids_block("a", "b", "c")}, 10)
    await history.claim(plan_of(2, HOUR, ids=9))
    assert places(history.state, "a", "b", "c") == [None, -2, -1]
    await history.claim(plan_of(3, HOUR, ids=1))
    await history.claim(plan_of(4, HOUR, ids=9))
    assert places(history.state, "a", "b", "c") == [None, None, -1]
    history.check()
