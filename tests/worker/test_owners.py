"""Owners over a log in memory, real stores and a real archive: the same rows after any kill."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.partition import owned_partition
from agents.partition.emitter import Emitter
from agents.partition.owner import UNSAVED_DELTAS_MAX, Owner
from agents.partition.sinks import Sinks
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model import ledger
from tables.model.errors import JournalRefusedError
from tables.model.window import NEVER_MS
from tables.query.facts import PartitionFacts
from tables.query.family import KeyFilter
from tables.query.live import LiveRead
from tables.record.chunk import Chunk
from tables.state.cell import measures_of
from tables.state.store import PartitionStore
from tests.support.common import (
    HOUR_MS,
    MemoryLog,
    StoredRecord,
    dataclasses_replace,
    flight,
    seeds,
)
from tests.support.local_worker import (
    MAP,
    RAW,
    LocalWorker,
    archived,
    as_run,
    check,
    fill,
    live_cells,
    serving,
)
from tests.support.waiting import stays, until

DAY = "small.layer.day"


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[[], LocalWorker]]:
    """Return a maker of houses over one log, one archive and one state folder."""
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


async def test_rows_equal_a_recomputation(make: Callable[[], LocalWorker]) -> None:
    """Everything adds up from records to archived days through the layer topic."""
    house = make()
    events = fill(house.log, 1)
    await house.settle()
    await check(house, events)


async def test_measures_come_out_exact(make: Callable[[], LocalWorker]) -> None:
    """Sums beyond 64 bits are exact integers in the answer."""
    house = make()
    events = fill(house.log, 2)
    await house.settle()
    day = house.map.layer("day")
    cells = await archived(house, "day")
    total = sum(measure["sum_delay"] or 0 for measure in measures_of(day, cells))  # type: ignore[misc]
    assert total == sum(delay or 0 for *_, delay in events) > 2**63


@pytest.mark.parametrize("seed", seeds(6))
@pytest.mark.parametrize("keep_state", [True, False])
async def test_kills_at_any_moment_change_nothing(
    make: Callable[[], LocalWorker], seed: int, keep_state: bool
) -> None:
    """Workers that die after some of the events leave the same rows, with and without state."""
    house = make()
    events = fill(house.log, seed)
    await house.work_and_die({RAW: 40, DAY: 5}, seed, keep_state=keep_state)
    await house.settle()
    await check(house, events)


@pytest.mark.parametrize("failure", ["lost", "unanswered"])
async def test_an_append_without_answer_is_neither_lost_nor_counted_twice(
    make: Callable[[], LocalWorker], failure: str
) -> None:
    """An owner that does not know whether its delta landed claims again and reads the journal."""
    house = make()
    events = fill(house.log, 3)
    for _ in range(20):
        await house.restore()
        house.log.fail_next = failure
        await house.step(RAW, 17)
    assert len(house.fenced) >= 5
    await house.settle()
    await check(house, events)


async def test_a_partition_is_restored_after_it_has_been_let_go(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore waits for a release that is still going on: a store is open once at a time."""
    house = make()
    fill(house.log, 12)
    await house.restore()
    await house.step(RAW, 50)
    stopping, goes_on = asyncio.Event(), asyncio.Event()
    stop = Emitter.stop

    async def slow_stop(self: Emitter) -> None:
        stopping.set()
        await goes_on.wait()
        await stop(self)

    monkeypatch.setattr(Emitter, "stop", slow_stop)
    releasing = asyncio.create_task(house.owners.release({(RAW, 0)}))
    await stopping.wait()
    restoring = asyncio.create_task(house.owners.restore(RAW, 0, 2))
    await asyncio.sleep(0)
    assert not restoring.done()
    goes_on.set()
    assert await restoring == 50
    assert releasing.done()


async def test_two_workers_that_both_believe_they_own_a_partition_fence_each_other(
    make: Callable[[], LocalWorker],
) -> None:
    """A zombie's delta does not stand; its partitions are forgotten and reported."""
    zombie, successor = make(), make()
    events = fill(zombie.log, 4)
    await zombie.restore()
    await zombie.step(RAW, 50)
    await successor.restore()
    await successor.step(RAW, 50)
    await zombie.step(RAW, 50)

    async def fenced() -> bool:
        # If evicting has met the newer owner first, letting go is still under way.
        return {(RAW, 0), (RAW, 1)} <= set(zombie.fenced)

    await until(fenced)
    assert zombie.owners.get(RAW, 0) is None
    await successor.settle()
    await check(successor, events)


async def test_a_stale_copy_of_the_local_store_catches_up_from_the_journal(
    make: Callable[[], LocalWorker], tmp_path: Path
) -> None:
    """A store that is behind is only a shorter way to the same state."""
    house = make()
    events = fill(house.log, 5)
    await house.restore()
    await house.step(RAW, 100)
    await house.kill()
    shutil.copytree(house.folder, tmp_path / "copy")
    await house.restore()
    await house.step(RAW, 100)
    await house.kill()
    shutil.rmtree(house.folder)
    (tmp_path / "copy").rename(house.folder)
    await house.settle()
    await check(house, events)


async def test_a_store_of_another_journal_is_discarded(
    make: Callable[[], LocalWorker], tmp_path: Path
) -> None:
    """Journal and archive made anew make the local store worthless, and it is noticed."""
    house = make()
    fill(house.log, 6)
    await house.restore()
    await house.step(RAW, 500)
    await house.kill()
    house.log.records.clear()
    await house.archive.close()
    house.archive = EmbeddedArchive(tmp_path / "anew")
    await house.archive.open(house.map)
    house.start()
    events = fill(house.log, 7)
    await house.settle()
    counts = ledger.total(owner.state.meta.ledger for owner in house.owners.each())
    assert counts["layer.hour.folded"] == len(events)


async def test_sealed_and_acknowledged_cells_leave_the_table(
    make: Callable[[], LocalWorker],
) -> None:
    """Nothing stays in memory after everything is sealed."""
    house = make()
    fill(house.log, 8)
    await house.settle()
    tables = [table for owner in house.owners.each() for table in owner.state.all_tables.values()]

    async def empty() -> bool:
        return not any(table.rows for table in tables)

    await until(empty)


async def test_another_map_under_the_same_revision_is_refused(
    make: Callable[[], LocalWorker], tmp_path: Path
) -> None:
    """A changed map needs a higher revision, and says so."""
    house = make()
    fill(house.log, 9)
    await house.restore()
    other = LocalWorker(
        house.log, house.archive, tmp_path / "other", dataclasses_replace(MAP, digest="changed")
    )
    with pytest.raises(JournalRefusedError, match="raise the revision"):
        await other.owners.restore(RAW, 0, 1)
    older = LocalWorker(
        house.log, house.archive, tmp_path / "older", dataclasses_replace(MAP, revision=0)
    )
    with pytest.raises(JournalRefusedError, match="higher revision"):
        await older.owners.restore(RAW, 0, 1)


async def test_a_source_made_anew_is_refused(make: Callable[[], LocalWorker]) -> None:
    """A log that ends before the position read, or differs at its end, is not continued."""
    house = make()
    fill(house.log, 10)
    await house.restore()
    await house.step(RAW, 1_000)
    position = house.owners.get(RAW, 0).position  # type: ignore[union-attr]
    await house.kill()
    entries = house.log.records[RAW, 0]
    house.log.records[RAW, 0] = entries[: position - 1]
    with pytest.raises(JournalRefusedError, match="made anew"):
        await house.owners.restore(RAW, 0, 1)
    house.log.records[RAW, 0] = [*entries[:-1], changed(entries[-1])]
    with pytest.raises(JournalRefusedError, match="is not the one"):
        await house.owners.restore(RAW, 0, 1)


async def test_a_source_that_was_compacted_goes_on(make: Callable[[], LocalWorker]) -> None:
    """The last record that was read is gone, which makes it no other record."""
    house = make()
    fill(house.log, 10)
    await house.restore()
    await house.step(RAW, 1_000)
    position = house.owners.get(RAW, 0).position  # type: ignore[union-attr]
    await house.kill()
    house.log.compacted.add((RAW, 0, position - 1))
    assert await house.owners.restore(RAW, 0, 1) == position
    house.log.put(RAW, 0, flight(5))
    await house.step(RAW, 1_000)
    assert house.owners.get(RAW, 0).position == position + 1  # type: ignore[union-attr]
    await house.kill()
    # Its log still has to reach the position that was read.
    house.log.records[RAW, 0] = house.log.records[RAW, 0][:position]
    with pytest.raises(JournalRefusedError, match="made anew"):
        await house.owners.restore(RAW, 0, 1)


def changed(record: StoredRecord) -> StoredRecord:
    """Return a record like ``record`` with another value."""
    return StoredRecord(record.offset, b"other", record.append_time_ms)


async def test_live_cells_are_readable_before_they_close(make: Callable[[], LocalWorker]) -> None:
    """Open windows answer from applied state."""
    house = make()
    house.log.put(RAW, 0, flight(5, "LGA", "UA", 3))
    await house.restore()
    await house.step(RAW, 10)
    cells = live_cells(house, MAP.layer("hour"), KeyFilter({"carrier": ("UA",)}))
    assert cells.select("events", "sum_delay", "source_partition").rows() == [(1, 3, 0)]
    assert serving(house, MAP.layer("hour")) == {0, 1}
    none = live_cells(house, MAP.layer("hour"), KeyFilter(prefixes={"carrier": "A"}))
    assert none.height == 0


async def test_facts_tell_which_windows_are_here(make: Callable[[], LocalWorker]) -> None:
    """Sealed windows may have been evicted, but only those older than all that are here."""
    house = make()
    hour = MAP.layer("hour")
    house.log.put(RAW, 0, flight(0))
    house.log.put(RAW, 0, flight(5 * HOUR_MS + 1))
    await house.restore()

    def facts() -> PartitionFacts:
        return house.owners.live_job(LiveRead(hour)).facts[0]

    assert (facts().evicted_ms, facts().position) == (NEVER_MS, 0)
    await house.step(RAW, 10)
    # Stream time is just past 5 h, lateness one hour; the first hour is not archived yet.
    assert facts().floor_ms == 4 * HOUR_MS + 1
    assert facts().archived_ms == facts().evicted_ms == HOUR_MS - 1
    assert facts().position == 2

    async def evicted() -> bool:
        return facts().evicted_ms == facts().floor_ms

    await until(evicted)
    assert facts().archived_ms == facts().floor_ms


async def test_facts_say_how_fresh_they_are(make: Callable[[], LocalWorker]) -> None:
    """The transport tells it for the offset; a longer log is fresh up to the last record folded."""
    house = make()
    hour = MAP.layer("hour")
    house.log.put(RAW, 0, flight(0))
    await house.restore()
    await house.step(RAW, 10)
    asked: list[tuple[str, int, int]] = []

    def fresh_ms(topic: str, partition: int, offset: int) -> int | None:
        asked.append((topic, partition, offset))
        return 77 if offset == 1 else None

    facts = house.owners.live_job(LiveRead(hour), fresh_ms).facts
    assert sorted(asked) == [(RAW, 0, 1), (RAW, 1, 0)]
    assert (facts[0].fresh_ms, facts[1].fresh_ms) == (77, NEVER_MS)
    behind = house.owners.live_job(LiveRead(hour)).facts
    assert behind[0].fresh_ms == house.log.records[RAW, 0][0].append_time_ms
    await house.kill()


async def test_a_restart_reads_only_what_the_local_store_has_not(
    make: Callable[[], LocalWorker],
) -> None:
    """The store is reused: after it, the journal is read from the store's offset on."""
    house = make()
    fill(house.log, 11, 1_000)
    await house.restore()
    while await house.step(RAW, 10):
        pass
    journal = MAP.journal_topic(RAW)
    await house.kill()
    entries = len(house.log.records[journal, 0])
    assert entries > 2 * UNSAVED_DELTAS_MAX
    house.log.reads.clear()
    await house.owners.restore(RAW, 0, 2)
    # The entry before the store's end proves that it is the same journal; then come new entries.
    (_, _, proof, stored), rest = house.log.reads[:2]
    assert entries - UNSAVED_DELTAS_MAX < proof + 1 == stored <= entries
    assert rest == (journal, 0, stored, entries + 1)
    await house.kill()
    shutil.rmtree(house.folder)
    house.log.reads.clear()
    await house.owners.restore(RAW, 0, 3)
    assert (journal, 0, 0) in [read[:3] for read in house.log.reads]


async def test_others_serve_while_a_partition_is_restored(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal is long in coming; the other one folds, and queries read it."""
    house = make()
    house.log.put(RAW, 0, flight(1, "LGA"))
    house.log.put(RAW, 1, flight(1, "JFK"))
    await house.restore()
    assert await house.step(RAW, 10)
    hour = MAP.layer("hour")
    assert sorted(live_cells(house, hour)["key_origin"]) == ["JFK", "LGA"]
    answers = asyncio.Event()
    bounds = house.log.bounds

    async def slow(topic: str, partition: int) -> tuple[int, int]:
        if partition == 0:
            await answers.wait()
        return await bounds(topic, partition)

    monkeypatch.setattr(house.log, "bounds", slow)
    restoring = asyncio.create_task(house.owners.restore(RAW, 0, 2))

    async def left() -> bool:
        return house.owners.get(RAW, 0) is None

    await until(left)
    house.log.put(RAW, 1, flight(2, "JFK"))
    assert await house.step(RAW, 10)
    assert serving(house, hour) == {1}
    assert live_cells(house, hour).select("key_origin", "events").rows() == [("JFK", 2)]
    answers.set()
    assert await restoring == 1
    assert serving(house, hour) == {0, 1}
    assert sorted(live_cells(house, hour)["key_origin"]) == ["JFK", "LGA"]


@pytest.mark.parametrize("claimed", [True, False])
async def test_the_loop_goes_on_while_a_store_closes(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch, claimed: bool
) -> None:
    """A disk that is slow or full holds back only the partition: it opens again after the close."""
    house = make()
    leaving: asyncio.Task[Any]
    may_close, closing = threading.Event(), threading.Event()
    close = PartitionStore.close

    def slow(self: PartitionStore) -> None:
        closing.set()
        assert may_close.wait(60), "the loop stood still"
        close(self)

    monkeypatch.setattr(PartitionStore, "close", slow)
    if claimed:
        await house.owners.restore(RAW, 0, 1)
        leaving = asyncio.create_task(house.owners.release({(RAW, 0)}))
    else:
        # Its claim lasts until it is cancelled, as when partitions are revoked.
        with monkeypatch.context() as patch:
            claiming = asyncio.Event()

            async def claim(_: Owner) -> None:
                claiming.set()
                await asyncio.Event().wait()

            patch.setattr(Owner, "claim", claim)
            leaving = asyncio.create_task(house.owners.restore(RAW, 0, 1))
            await claiming.wait()
        leaving.cancel()

    async def begun() -> bool:
        return closing.is_set()

    await until(begun)
    again = asyncio.create_task(house.owners.restore(RAW, 0, 2))
    await until(lambda: leaving.done() == (not claimed))
    await stays(lambda: not again.done(), 0.05)
    may_close.set()
    await asyncio.gather(leaving, return_exceptions=True)
    await again
    assert house.owners.get(RAW, 0) is not None
    assert not house.failures


@pytest.mark.parametrize(
    "what", ["housekeeping", "capture", "due", "close"], ids=["tidy", "snapshot", "emit", "release"]
)
async def test_background_work_that_dies_is_told_with_its_reason(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A worker that evicts, snapshots, emits or releases no more must not go on as if it did."""
    monkeypatch.setattr(owned_partition, "EVICT_AFTER_S", 0)
    monkeypatch.setattr(Owner, "wants_snapshot", lambda _: True)
    house = make()
    fill(house.log, 5, 50)
    await house.restore()

    def die(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    part = {"close": PartitionStore, "due": Sinks}.get(what, Owner)
    close = PartitionStore.close
    monkeypatch.setattr(part, what, die)
    assert await house.step(RAW, 1_000)
    if what == "close":
        await house.owners.release({(RAW, 0)})

    async def told() -> bool:
        return bool(house.failures)

    await until(told)
    assert str(house.failures[0]) == "a bug"
    monkeypatch.setattr(PartitionStore, "close", close)


def events_and_a_late_one(house: LocalWorker) -> None:
    """Put an hour, an event that is too late for it and needs a letter, and one more."""
    for at in (0, 9 * HOUR_MS, 0, 9 * HOUR_MS + 1):
        house.log.put(RAW, 0, flight(at))


async def held_up(house: LocalWorker, chunk: Chunk) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Hand over a chunk that waits for a letter; return its task and the event that frees it."""
    waits, goes_on = asyncio.Event(), asyncio.Event()
    append = house.log.append

    async def slow(topic: str, *args: Any, **options: Any) -> int:
        if topic.endswith(".late"):
            waits.set()
            await goes_on.wait()
        return await append(topic, *args, **options)

    house.log.append = slow  # type: ignore[method-assign]
    handling = asyncio.create_task(house.ingest.handle(chunk))
    await waits.wait()
    house.log.append = append  # type: ignore[method-assign]
    return handling, goes_on


@pytest.mark.parametrize("generation", [1, 2])
async def test_a_chunk_in_hand_is_not_taken_by_the_next_owner(
    make: Callable[[], LocalWorker], generation: int
) -> None:
    """Its owner is let go while a letter is on its way; the next one gets the records again."""
    house = make()
    events_and_a_late_one(house)
    await house.owners.restore(RAW, 0, 1)
    await house.step(RAW, 2)
    run = as_run(RAW, 0, 2, house.log.records[RAW, 0][2:])
    handling, goes_on = await held_up(house, Chunk(1, [run]))
    assert await house.owners.restore(RAW, 0, generation) == 2
    goes_on.set()
    await handling
    owner = house.owners.get(RAW, 0)
    assert owner is not None
    assert owner.position == 2
    assert house.owners.dropped == {"stale": 1}
    await house.ingest.handle(Chunk(generation, [run]))
    assert owner.position == 4
    assert not house.failures


async def test_a_chunk_of_another_generation_or_place_is_counted_and_read_again(
    make: Callable[[], LocalWorker],
) -> None:
    """No run is dropped without a word: the transport is told the owner's next offset."""
    house = make()
    events_and_a_late_one(house)
    run = as_run(RAW, 0, 0, house.log.records[RAW, 0])
    await house.ingest.handle(Chunk(1, [run]))
    assert house.owners.dropped == {"stale": 1}
    await house.owners.restore(RAW, 0, 7)
    await house.ingest.handle(Chunk(6, [run]))
    assert house.owners.dropped == {"stale": 2}
    await house.ingest.handle(Chunk(7, [run.halves()[1]]))
    assert house.owners.dropped == {"stale": 2, "misplaced": 1}
    assert house.misplaced == [(RAW, 0, 0)]
    await house.ingest.handle(Chunk(7, [run]))
    assert house.owners.get(RAW, 0).position == 4  # type: ignore[union-attr]
    await house.owners.restore(DAY, 0, 7)
    announcement = house.log.records[DAY, 0]
    await until_has(announcement)
    await house.rollup.handle(Chunk(7, [as_run(DAY, 0, 1, announcement[1:])]))
    assert house.misplaced[1:] == [(DAY, 0, 0)]


async def until_has(records: list[StoredRecord]) -> None:
    """Wait for a record."""

    async def some() -> bool:
        return bool(records)

    await until(some)
