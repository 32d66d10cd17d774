"""Silent partitions: a timer sends their open cells on, and heartbeats alone close them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.partition import idle_heartbeat as idle
from agents.partition import owned_partition, writers
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import OutcomeUnknownError
from tables.model.layer import Map
from tables.model.window import NEVER_MS, TIME_MS_MAX, Window
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat
from tests.support.common import MemoryLog, StoredRecord, dataclasses_replace, flight, small_map
from tests.support.local_worker import RAW, LocalWorker, archived
from tests.support.waiting import until

FINE_MS, COARSE_MS = 50, 100
IDLE_MS = 30
SILENT, NEVER = (0, 1), 2


def map_of(revision: int = 1, idle_heartbeat_ms: int = 0) -> Map:
    """Return a map of three partitions whose windows last as long as the tests do."""
    themap = small_map()
    hour, day = themap.layers
    source = dataclasses_replace(
        themap.sources[0],
        partitions=3,
        idle_heartbeat_ms=idle_heartbeat_ms,
        future_skew_ms=TIME_MS_MAX,
    )
    hour = dataclasses_replace(
        hour, window=Window(FINE_MS), allowed_lateness_ms=FINE_MS, partitions=3
    )
    day = dataclasses_replace(day, window=Window(COARSE_MS))
    return small_map(
        revision=revision, digest=f"digest {revision}", sources=(source,), layers=(hour, day)
    )


class AwayLog(MemoryLog):
    """A log that can be told not to answer for a source."""

    away = False
    asked = 0

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return first and next offset, or fail."""
        if self.away and topic == RAW:
            self.asked += 1
            raise OutcomeUnknownError("the broker is away")
        return await super().bounds(topic, partition)


Make = Callable[..., LocalWorker]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Return a maker of workers, of which each has a folder; they share one log and one archive."""
    monkeypatch.setattr(writers, "ANNOUNCE_INTERVAL_S", 0.0)
    monkeypatch.setattr(owned_partition, "EVICT_AFTER_S", 0.0)
    archive, log = EmbeddedArchive(tmp_path / "archive"), AwayLog()
    await archive.open(map_of())
    houses: list[LocalWorker] = []

    def build(themap: Map, early_emit_s: float = 0.0) -> LocalWorker:
        folder = tmp_path / f"state{len(houses)}"
        houses.append(LocalWorker(log, archive, folder, themap, early_emit_s))
        return houses[-1]

    yield build
    for house in houses:
        await house.kill()
    await archive.close()


async def step(house: LocalWorker) -> None:
    """Read all there is, once."""
    for topic in house.map.inputs():
        await house.step(topic, 1_000)
    assert not house.failures


def heartbeats(log: MemoryLog, partition: int) -> list[int]:
    """Return the times of the heartbeats in a partition of the source."""
    return [
        decode_heartbeat(data)
        for record in log.records.get((RAW, partition), [])
        for name, data in record.headers
        if name == HEARTBEAT_HEADER
    ]


async def rows(house: LocalWorker, name: str) -> list[tuple[int, int]]:
    """Return window and count of each archived row of a layer."""
    found = await archived(house, name)
    return sorted(found.select("window_start", "events").rows())


def far(house: LocalWorker, name: str) -> tuple[int, int]:
    """Return the least watermark and floor over a layer's partitions."""
    layer = house.map.layer(name)
    states = [o.state for o in house.owners.each() if layer in o.plan.layers]
    return min(s.closed_ms(layer) for s in states), min(s.floor_ms(layer) for s in states)


def two_silent(log: MemoryLog) -> None:
    """Write events to two of three partitions; nothing follows."""
    for partition, origin in zip(SILENT, ("LGA", "JFK"), strict=True):
        log.put(RAW, partition, flight(10, origin))
        log.put(RAW, partition, flight(12, origin))


async def sent_early(house: LocalWorker) -> None:
    """Return when every layer's open cells are in the archive; check that none is closed."""

    async def there() -> bool:
        await step(house)
        return await rows(house, "day") == [(0, 4)] and await rows(house, "hour") == [(0, 2)] * 2

    await until(there)
    assert far(house, "hour") == (NEVER_MS, NEVER_MS)
    assert far(house, "day") == (NEVER_MS, NEVER_MS)
    for owner in house.owners.each():
        for layer in owner.plan.layers:
            assert owner.state.closed_ms(layer) < FINE_MS
            assert owner.sinks.unacknowledged(layer) == 0
            assert not owner.housekeeping()


async def closed(house: LocalWorker) -> None:
    """Return when every window of every layer is sealed and forgotten, rows in the archive."""

    async def done() -> bool:
        await step(house)
        owned = list(house.owners.each())
        return min(*far(house, "hour"), *far(house, "day")) >= COARSE_MS and not any(
            o.state.tables[layer.name].rows for o in owned for layer in o.plan.layers
        )

    await until(done)
    assert await rows(house, "day") == [(0, 4)]
    assert await rows(house, "hour") == [(0, 2)] * 2


async def test_a_timer_sends_silent_windows_early_and_only_heartbeats_close_them(
    make: Make,
) -> None:
    """Two partitions fall silent, one never had an event.

    A worker whose map asks for no idle heartbeats sends open cells, to the coarser layer's rows
    too, and closes nothing. The next revision's owners move time: the silent ones by waiting, the
    empty one after the slowest of them.
    """
    house = make(map_of(), early_emit_s=0.02)
    two_silent(house.log)
    await house.restore()
    await sent_early(house)
    assert [heartbeats(house.log, partition) for partition in range(3)] == [[], [], []]
    await house.kill()
    house = make(map_of(revision=2, idle_heartbeat_ms=IDLE_MS), early_emit_s=0.02)
    await house.restore()
    await closed(house)
    for partition in SILENT:
        times = heartbeats(house.log, partition)
        assert times == sorted(times)
        assert times[0] >= 12 + IDLE_MS
    least = min(max(heartbeats(house.log, partition)) for partition in SILENT)
    assert heartbeats(house.log, NEVER)
    assert max(heartbeats(house.log, NEVER)) <= least


async def test_heartbeats_of_an_input_that_ends_close_what_was_sent_early(make: Make) -> None:
    """Replay and generator write them so, to the partition without events too."""
    house = make(map_of(), early_emit_s=0.02)
    two_silent(house.log)
    await house.restore()
    await sent_early(house)
    for partition in SILENT:
        house.log.put(RAW, partition, 10 * COARSE_MS)
    for _ in range(3):
        await step(house)
    # One partition that nothing is heard of holds the coarser layer open.
    assert far(house, "day") == (NEVER_MS, NEVER_MS)
    assert await rows(house, "day") == [(0, 4)]
    house.log.put(RAW, NEVER, 10 * COARSE_MS)
    await closed(house)


async def test_a_later_event_replaces_what_was_sent_early(make: Make) -> None:
    """The row of an open window is its value so far; each is sent once a silence."""
    house = make(map_of(), early_emit_s=0.02)
    two_silent(house.log)
    await house.restore()
    await sent_early(house)
    house.log.put(RAW, 0, flight(11, "LGA"))

    async def replaced() -> bool:
        await step(house)
        return await rows(house, "day") == [(0, 5)]

    await until(replaced)
    assert await rows(house, "hour") == [(0, 2), (0, 3)]
    # One row for each of two cells, and a second one of the cell that changed.
    assert house.owners.archived_cells(house.map.layer("hour")) == 3


class Look:
    """One idle heartbeat that looks when it is told to, over a log whose times a test sets."""

    def __init__(self, house: LocalWorker, partition: int) -> None:
        owner = house.owners.get(RAW, partition)
        assert owner is not None
        self.log = house.log
        self.partition = partition
        times = idle.StreamTimes(house.log, house.owners.get)
        self._heartbeat = idle.IdleHeartbeat(owner, house.log, times, house.failures.append)

    async def after(self, waited_ms: int) -> list[int]:
        """Look after a silence; return the heartbeats that are new in the log."""
        before = len(heartbeats(self.log, self.partition))
        await self._heartbeat._beat(waited_ms)
        return heartbeats(self.log, self.partition)[before:]


SLOW_MS = 86_400_000
"""Interval of an idle heartbeat that never comes by itself while a test lasts."""


async def test_a_silent_partition_moves_by_the_time_it_has_waited(make: Make) -> None:
    """It moves from its stream time, heartbeats included, and never beyond the calendar."""
    house = make(map_of(idle_heartbeat_ms=SLOW_MS))
    house.log.put(RAW, 0, flight(1_000))
    await house.restore()
    await house.step(RAW, 10)
    look = Look(house, 0)
    assert await look.after(70) == [1_070]
    await house.step(RAW, 10)
    assert await look.after(30) == [1_100]
    house.log.put(RAW, 0, flight(TIME_MS_MAX - 5))
    await step(house)
    assert await look.after(70) == [TIME_MS_MAX]
    await step(house)
    assert await look.after(70) == []


async def test_an_owner_that_has_not_read_all_there_is_writes_nothing(make: Make) -> None:
    """It is behind, or fenced: the records it has not read may have events of an earlier time."""
    house = make(map_of(idle_heartbeat_ms=SLOW_MS))
    house.log.put(RAW, 0, flight(1_000))
    await house.restore()
    await house.step(RAW, 10)
    house.log.put(RAW, 0, flight(1_001))
    assert await Look(house, 0).after(70) == []
    await house.step(RAW, 10)
    assert await Look(house, 0).after(70) == [1_071]


@pytest.mark.parametrize("apart", [False, True])
async def test_an_empty_partition_follows_the_slowest_of_those_with_events(
    make: Make, apart: bool
) -> None:
    """Their owners may be in this worker or in another one, whose journals tell.

    Two empty partitions do not wait for each other.
    """
    house = make(map_of(idle_heartbeat_ms=SLOW_MS))
    other = make(map_of(idle_heartbeat_ms=SLOW_MS)) if apart else house
    await other.owners.restore(RAW, 0, 1)
    for partition in (1, 2):
        await house.owners.restore(RAW, partition, 1)
    looks = {partition: Look(house, partition) for partition in (1, 2)}
    assert await looks[1].after(70) == []  # none had an event
    house.log.put(RAW, 0, flight(1_000))
    await other.step(RAW, 10)
    looks = {partition: Look(house, partition) for partition in (1, 2)}
    assert await looks[1].after(70) == [1_000]
    assert await looks[2].after(70) == [1_000]
    await house.step(RAW, 10)
    assert await looks[1].after(70) == []
    house.log.put(RAW, 0, flight(2_000))
    house.log.put(RAW, 2, flight(3_000))
    await asyncio.gather(other.step(RAW, 10), house.step(RAW, 10))
    assert await Look(house, 1).after(70) == [2_000]


async def test_what_journals_tell_is_asked_for_once_an_interval(make: Make) -> None:
    """Many empty partitions of a worker share one look at the others."""
    house = make(map_of(idle_heartbeat_ms=SLOW_MS))
    other = make(map_of(idle_heartbeat_ms=SLOW_MS))
    house.log.put(RAW, 0, flight(1_000))
    await other.owners.restore(RAW, 0, 1)
    await other.step(RAW, 10)
    for partition in (1, 2):
        await house.owners.restore(RAW, partition, 1)
    times = idle.StreamTimes(house.log, house.owners.get)
    plan = house.owners.plans[RAW]
    house.log.reads.clear()
    assert [await times.slowest_other_ms(plan, partition) for partition in (1, 2)] == [1_000] * 2
    assert [read[:2] for read in house.log.reads] == [(plan.journal, 0)]


async def test_a_journal_whose_end_tells_nothing_stops_nobody(make: Make) -> None:
    """More claims than are looked at: how far the partition is cannot be told, nor guessed."""
    house = make(map_of(idle_heartbeat_ms=SLOW_MS))
    other = make(map_of(idle_heartbeat_ms=SLOW_MS))
    house.log.put(RAW, 0, flight(1_000))
    house.log.put(RAW, 2, flight(5_000))
    for partition in (1, 2):
        await house.owners.restore(RAW, partition, 1)
    await other.owners.restore(RAW, 0, 1)
    await asyncio.gather(house.step(RAW, 10), other.step(RAW, 10))
    for _ in range(idle.LOOK_BACK_ENTRIES):
        await other.owners.restore(RAW, 0, 1)
    assert await Look(house, 1).after(70) == []


async def test_a_broker_that_is_away_is_asked_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost by it: the heartbeat comes later, and says a later time."""
    house = make(map_of(idle_heartbeat_ms=IDLE_MS))
    log: Any = house.log
    log.put(RAW, 0, flight(1_000))
    await house.restore()
    await house.step(RAW, 10)
    log.away = True

    async def asked() -> bool:
        return bool(log.asked > 2)

    await until(asked)
    log.away = False

    async def written() -> bool:
        return bool(heartbeats(log, 0))

    await until(written)
    assert "an idle heartbeat was not written, trying again: the broker is away" in caplog.text
    assert heartbeats(log, 0)[0] >= 1_000 + 2 * IDLE_MS
    assert not house.failures


async def test_a_heartbeat_of_a_zombie_moves_nobody_apart(make: Make) -> None:
    """It is in the log, and every owner folds it at the same offset."""
    house = make(map_of(idle_heartbeat_ms=SLOW_MS))
    house.log.put(RAW, 0, flight(1_000))
    await house.restore()
    await house.step(RAW, 10)
    zombie = Look(house, 0)
    heir = make(map_of(idle_heartbeat_ms=SLOW_MS))
    await heir.restore()
    assert await zombie.after(70) == [1_070]
    await heir.step(RAW, 10)
    again = make(map_of(idle_heartbeat_ms=SLOW_MS))
    again.log.put(RAW, 0, flight(1_050))
    await heir.step(RAW, 10)
    await again.restore()
    states = [one.owners.get(RAW, 0).state for one in (heir, again)]  # type: ignore[union-attr]
    assert [state.meta.stream_time_ms for state in states] == [1_070, 1_070]
    assert states[0].meta.ledger == states[1].meta.ledger
    assert isinstance(house.log.records[RAW, 0][1], StoredRecord)
