"""Snapshots: the same state, from less of the journal; truncation never takes a needed entry."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.partition import owner as owner_module
from agents.partition import recovery
from agents.partition.owner import Owner
from agents.partition.partition_io import PartitionIO
from agents.partition.recovery import Recovery
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import FencedError, JournalRefusedError
from tables.state import snapshot
from tables.state.journal import Snapshot, SnapshotPart, decode_entry, encode_entry, fingerprint_of
from tables.state.store import PartitionStore
from tests.support.common import HOUR_MS, MemoryLog, StoredRecord, dataclasses_replace, seeds
from tests.support.local_worker import MAP, RAW, LocalWorker, check, fill
from tests.support.state_support import (
    HOUR,
    RAW_PLAN,
    Journal,
    claim,
    contents_of,
    delta,
    hour_block,
)
from tests.support.waiting import until

JOURNAL = "small.journal.flights.raw"
DAY = "small.layer.day"


@pytest.fixture
async def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], LocalWorker]]:
    """Return a maker of houses that take a snapshot whenever their journals grew a little."""
    monkeypatch.setattr(owner_module, "SNAPSHOT_TAIL_BYTES_MIN", 4_000)
    monkeypatch.setattr(owner_module, "SNAPSHOT_TAIL_RATIO", 1)
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    log = MemoryLog()
    houses: list[LocalWorker] = []

    def build() -> LocalWorker:
        houses.append(LocalWorker(log, archive, tmp_path / f"state{len(houses)}"))
        return houses[-1]

    yield build
    for house in houses:
        await house.kill()
    await archive.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut snapshots of a few rows into many parts."""
    monkeypatch.setattr(snapshot, "PIECE_ROWS", 3)
    monkeypatch.setattr(snapshot, "PART_BYTES", 5_000)


def started(log: MemoryLog) -> list[int]:
    """Return how much of each journal of the raw source has been deleted."""
    return [log.starts.get((JOURNAL, partition), 0) for partition in range(2)]


def owners_of(house: LocalWorker) -> list[Owner]:
    """Return the owners of the raw source."""
    found = [house.owners.get(RAW, partition) for partition in range(2)]
    return [owner for owner in found if owner is not None]


def cells_of(owner: Owner) -> list[dict[str, object]]:
    """Return the hours that an owner holds, in order."""
    table = owner.state.tables[HOUR.name]
    return table.cells().sort(*HOUR.key_columns, "window_start").to_dicts()


def journal_of(seed: int, deltas: int = 40) -> Journal:
    """Return a journal of hours with many merges; delays are the delta's number."""
    rng = random.Random(seed)
    journal = Journal(RAW_PLAN)
    for number in range(deltas):
        cells = [
            (rng.choice("ab"), rng.choice("xyz"), rng.randrange(9) * HOUR_MS, number)
            for _ in range(rng.randint(1, 9))
        ]
        block = {HOUR.name: hour_block(dict.fromkeys(cells))}
        assert journal.append(delta(journal.state, number + 1, block))
    return journal


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("seed", seeds(5))
def test_a_restored_state_is_the_captured_one(seed: int) -> None:
    """Cells, versions, meta, and the blocks as they lay, though they came in pieces."""
    state = journal_of(seed).state
    parts = list(snapshot.capture(state))
    assert len(parts) > 3
    copied = [decode_entry(encode_entry(part)) for part in parts]
    found = snapshot.restored(RAW_PLAN, [part for part in copied if isinstance(part, SnapshotPart)])
    assert contents_of(found) == contents_of(state)
    blocks, others = found.tables[HOUR.name].blocks, state.tables[HOUR.name].blocks
    assert list(blocks) == list(others)
    assert all(blocks[sequence].equals(others[sequence]) for sequence in blocks)


@pytest.mark.usefixtures("small_parts")
def test_parts_are_those_of_the_moment_of_capture() -> None:
    """Deltas that come between the parts are not in them."""
    journal = journal_of(7)
    before = contents_of(snapshot.restored(RAW_PLAN, snapshot.capture(journal.state)))
    parts = snapshot.capture(journal.state)
    taken = [next(parts)]
    block = {HOUR.name: hour_block([("a", "x", 0, 1_000)])}
    for _ in range(20):
        journal.append(delta(journal.state, journal.state.meta.next_offset + 1, block))
    taken += parts
    assert contents_of(snapshot.restored(RAW_PLAN, taken)) == before


def test_a_state_without_cells_is_a_snapshot_too() -> None:
    """One part, with the position and the ledger."""
    journal = Journal(RAW_PLAN, base=40)
    (part,) = snapshot.capture(journal.state)
    assert snapshot.restored(RAW_PLAN, [part]).meta == journal.state.meta


def test_snapshots_count_by_what_they_cover() -> None:
    """One that lands late does not count; the last two are remembered."""
    journal = journal_of(3)
    meta = journal.state.meta
    assert meta.tail_bytes == sum(len(value) for value in journal.values[1:])
    journal.append(Snapshot(30, [(41, 100, 1), (42, 50, 2)]))
    assert (meta.snapshot, meta.snapshot_bytes, meta.covered, meta.tail_bytes) == (41, 150, [30], 0)
    journal.append(Snapshot(20, []))
    assert (meta.snapshot, meta.snapshot_bytes, meta.covered) == (41, 150, [30])
    journal.append(Snapshot(35, []))
    journal.append(Snapshot(38, []))
    assert (meta.snapshot, meta.covered) == (44, [35, 38])


@pytest.mark.usefixtures("small_parts")
async def test_a_wiped_store_comes_back_from_a_truncated_journal(
    make: Callable[[], LocalWorker],
) -> None:
    """Two snapshots stay, all before them is gone, all rows are there."""
    house = make()
    events = fill(house.log, 5)
    await house.restore()
    while not all(started(house.log)):
        assert await house.step(RAW, 15)
        await asyncio.sleep(0)
    died = owners_of(house)
    await house.kill()
    before = [cells_of(owner) for owner in died]
    assert any(before)
    shutil.rmtree(house.folder)
    house.log.reads.clear()
    await house.restore()
    assert [cells_of(owner) for owner in owners_of(house)] == before
    # Each part and entry is read once, but for the few in the search for the latest snapshot.
    spans = [stop - first for topic, _, first, stop in house.log.reads if topic == JOURNAL]
    ends = [len(house.log.records[JOURNAL, partition]) for partition in range(2)]
    assert sum(spans) <= sum(ends) - sum(started(house.log)) + 2 * 16 + 4
    await house.settle()
    await check(house, events)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("seed", seeds(6))
async def test_kills_at_any_moment_between_snapshots_change_nothing(
    make: Callable[[], LocalWorker], seed: int
) -> None:
    """Half of them lose the local store, appends go unanswered, journals are truncated."""
    rng = random.Random(seed)
    house = make()
    events = fill(house.log, seed)
    for _ in range(8):
        await house.restore()
        for _ in range(rng.randint(1, 6)):
            house.log.fail_next = rng.choice(["", "", "", "", "lost", "unanswered"])
            await house.step(RAW, rng.randint(1, 40))
            await house.step(DAY, rng.randint(1, 5))
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
        await house.kill()
        if rng.random() < 0.5:
            shutil.rmtree(house.folder)
    await house.settle()
    await check(house, events)
    assert any(started(house.log))


async def test_a_journal_without_its_beginning_and_without_a_snapshot_is_refused(
    make: Callable[[], LocalWorker],
) -> None:
    """State never starts empty by mistake."""
    house = make()
    fill(house.log, 1, count=30)
    await house.settle()
    await house.kill()
    shutil.rmtree(house.folder)
    house.log.starts[JOURNAL, 0] = 2
    with pytest.raises(JournalRefusedError, match="begins at offset 2 and no snapshot covers"):
        await house.owners.restore(RAW, 0, 1)


class Scene:
    """One partition's journal in a log, and recoveries from it."""

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        self.store = PartitionStore(folder)
        self.io = PartitionIO(
            RAW_PLAN, 0, self.log, self.store, archive=EmbeddedArchive(folder / "archive")
        )

    def put(self, value: bytes) -> int:
        """Append a journal entry; return its offset."""
        entries = self.log.records.setdefault((JOURNAL, 0), [])
        entries.append(StoredRecord(len(entries), value, 0))
        return len(entries) - 1

    async def recovered(self) -> tuple[object, ...]:
        """Return the contents of a state restored from the journal without a local store."""
        self.store.clear()
        state = await Recovery(RAW_PLAN, 0, self.io).run(len(self.log.records[JOURNAL, 0]) - 1)
        stored = self.store.load(RAW_PLAN)
        assert stored is not None
        assert contents_of(stored) == contents_of(state)
        return contents_of(state)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Make a journal with a claim, a few deltas, a snapshot in parts among more deltas."""
    scene = Scene(tmp_path / "0")
    source = journal_of(11, deltas=60)
    state = journal_of(11, deltas=30).state
    for value in source.values[:31]:
        scene.put(value)
    places = []
    rest = iter(source.values[31:])
    for part in snapshot.capture(state):
        value = encode_entry(part)
        places.append((scene.put(value), *fingerprint_of(value)))
        scene.put(next(rest))
    scene.put(encode_entry(Snapshot(31, places)))
    for value in rest:
        scene.put(value)
    yield scene
    scene.store.close()


@pytest.mark.usefixtures("small_parts")
async def test_a_truncated_journal_comes_to_the_same_state(scene: Scene) -> None:
    """The cut may be anywhere up to the end of the snapshot."""
    whole = await scene.recovered()
    for start in (1, 15, 31):
        scene.log.starts[JOURNAL, 0] = start
        assert await scene.recovered() == whole
    scene.log.starts[JOURNAL, 0] = 32
    with pytest.raises(JournalRefusedError, match="no snapshot covers the entries before it"):
        await scene.recovered()


@pytest.mark.usefixtures("small_parts")
async def test_a_damaged_part_leaves_the_snapshot_unused(scene: Scene) -> None:
    """Nothing depends on it while the journal is whole; a truncated journal is refused."""
    whole = await scene.recovered()
    entries = scene.log.records[JOURNAL, 0]
    part = next(
        i for i, e in enumerate(entries) if (e.value or b"")[9:].startswith(b"\x93\xa4part")
    )
    damaged = decode_entry(entries[part].value or b"")
    assert isinstance(damaged, SnapshotPart)
    other = dataclasses_replace(damaged, blocks=[])
    entries[part] = StoredRecord(part, encode_entry(other), 0)
    found = await scene.recovered()
    assert found[1] == whole[1]
    scene.log.starts[JOURNAL, 0] = 31
    with pytest.raises(JournalRefusedError, match="no snapshot covers the entries before it"):
        await scene.recovered()


async def test_a_snapshot_that_landed_late_does_not_hide_the_one_that_stands(scene: Scene) -> None:
    """The entries it covers may be gone, while an earlier entry has the state."""
    whole = await scene.recovered()
    scene.put(encode_entry(Snapshot(12, [])))
    scene.log.starts[JOURNAL, 0] = 31
    assert (await scene.recovered())[1:] == whole[1:]


@pytest.mark.usefixtures("small_parts")
async def test_who_claimed_before_the_snapshots_that_are_left_is_fenced(scene: Scene) -> None:
    """It stood still after its claim; since then others claimed, took snapshots and truncated."""
    for claimed, start in ((9, 31), (30, 31), (31, 31)):
        scene.log.starts[JOURNAL, 0] = start
        scene.log.records[JOURNAL, 0][32] = StoredRecord(32, encode_entry(claim()), 0)
        scene.store.clear()
        with pytest.raises(FencedError, match="newer owner"):
            await Recovery(RAW_PLAN, 0, scene.io).run(claimed)


@pytest.mark.usefixtures("small_parts")
async def test_a_truncation_beside_a_recovery_makes_it_start_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another owner may truncate at any moment while this one reads."""
    whole = await scene.recovered()
    read = scene.log.read
    left = 3

    async def cut_in(topic: str, partition: int, start: int, *rest: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            # As a journal that was read from its start is cut.
            await scene.log.truncate(JOURNAL, 0, 31)
        return await read(topic, partition, start, *rest)

    monkeypatch.setattr(scene.log, "read", cut_in)
    for left in (1, 2, 3, 4, 5):  # noqa: B007  # the log counts it down
        scene.log.starts.clear()
        assert await scene.recovered() == whole


async def test_a_snapshot_of_a_lost_owner_is_given_up(make: Callable[[], LocalWorker]) -> None:
    """Its parts may lie in the journal; no snapshot names them."""
    first, second = make(), make()
    fill(first.log, 9, count=50)
    await first.restore()
    await first.step(RAW, 20)
    zombie = first.owners.get(RAW, 0)
    assert isinstance(zombie, Owner)
    covers, parts = zombie.capture()
    reference = await zombie.append_snapshot(next(parts))
    await second.restore()
    with pytest.raises(FencedError):
        await zombie.append_snapshot(Snapshot(covers, [reference]))
    await second.settle()
    assert not second.failures


@pytest.mark.parametrize("let_go", [True, False])
async def test_a_partition_that_is_let_go_during_a_delta_takes_no_snapshot(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch, let_go: bool
) -> None:
    """The delta makes a snapshot due, while its store is about to be closed; kept, it takes one."""
    house = make()
    fill(house.log, 4, count=40)
    await house.restore()
    append, waiting, goes_on = house.log.append, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> int:
        waiting.set()
        await goes_on.wait()
        return await append(*args)

    monkeypatch.setattr(house.log, "append", slow)
    monkeypatch.setattr(Owner, "wants_snapshot", lambda _: True)
    step = asyncio.create_task(house.step(RAW, 20))
    await waiting.wait()
    places = {(RAW, 0), (RAW, 1)}
    leaving = asyncio.create_task(house.owners.release(places if let_go else set()))
    await until(lambda: let_go == (house.owners.get(RAW, 0) is None))
    goes_on.set()
    await asyncio.gather(step, leaving)

    def is_there() -> bool:
        return any(
            decode_entry(entry.value or b"").__class__ in (Snapshot, SnapshotPart)
            for partition in range(2)
            for entry in house.log.records[JOURNAL, partition]
        )

    if let_go:
        # The work that a partition has begun ends before it is let go.
        assert not is_there()
    else:
        await until(is_there)
    assert house.failures == []


async def test_a_snapshot_is_due_by_the_size_of_the_tail(make: Callable[[], LocalWorker]) -> None:
    """It is due past the least size, and past a multiple of the last snapshot."""
    house = make()
    fill(house.log, 4, count=20)
    await house.restore()
    owner = house.owners.get(RAW, 0)
    assert owner is not None
    meta = owner.state.meta
    for tail, size, due in ((4_000, 0, False), (4_001, 0, True), (9_000, 9_000, False)):
        meta.tail_bytes, meta.snapshot_bytes = tail, size
        assert owner.wants_snapshot() is due


def test_parts_are_cut_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long keys make a part of few rows; only one row may be larger than a part."""
    monkeypatch.setattr(snapshot, "PART_BYTES", 20_000)
    chance = random.Random(1)
    journal = Journal(RAW_PLAN)
    for size in (10, 500, 500, 30_000, 10, 30_000, 500):
        cells = [(chance.randbytes(size).hex(), "UA", at * HOUR_MS, 1) for at in range(40)]
        if size > 500:
            cells = cells[:2]
        to = journal.state.meta.next_offset
        assert journal.append(delta(journal.state, to + 1, {"hour": hour_block(cells)}))
    parts = list(snapshot.capture(journal.state))
    assert len(parts) > 10
    for part in parts:
        sizes = [len(data) for _, _, data in part.blocks]
        assert sum(sizes) <= 20_000 or len(sizes) == 1
    copied = snapshot.restored(RAW_PLAN, parts)
    assert contents_of(copied) == contents_of(journal.state)


async def test_a_state_is_restored_beside_the_event_loop(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, snapshot and journal with millions of cells would stop the loop for minutes."""
    threads: set[str] = set()

    def noting(name: str, at: Any) -> None:
        whole = getattr(at, name)

        def noted(*args: Any, **named: Any) -> Any:
            threads.add(threading.current_thread().name)
            return whole(*args, **named)

        monkeypatch.setattr(at, name, noted)

    for name in ("load", "clear", "save"):
        noting(name, scene.store)
    noting("restored", recovery)
    noting("apply_value", recovery)
    await Recovery(RAW_PLAN, 0, scene.io).run(40)
    await Recovery(RAW_PLAN, 0, scene.io).run(41)
    assert threads
    assert threading.current_thread().name not in threads


async def test_who_is_cancelled_waits_for_what_is_run_in_a_thread(scene: Scene) -> None:
    """A store that is read may not be closed."""
    began, may_end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(20)

    doing = asyncio.create_task(scene.io.run_in_thread(work))
    await asyncio.to_thread(began.wait, 20)
    doing.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not doing.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await doing
