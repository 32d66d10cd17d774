"""Emission: closed cells reach archive and layer topics, once each, through all outages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from agents.decode.records import Decoder
from agents.fold.layers import Folder
from agents.partition import emitter as emit
from agents.partition import writers
from agents.partition.emit_counts import EmitCounts
from agents.partition.emitter import Emitter
from agents.partition.owner import Owner, tail_of
from agents.partition.partition_io import PartitionIO
from agents.partition.sinks import ARCHIVE, FEED
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveError, OutcomeUnknownError
from tables.model.layer import Layer, Map
from tables.state.contribution import Contribution, decode_cells, decode_contribution
from tables.state.input_plan import plans_of
from tables.state.store import PartitionStore
from tests.support.common import (
    DAY_MS,
    HOUR_MS,
    MemoryLog,
    dataclasses_replace,
    flight,
    run_of,
    small_map,
)
from tests.support.waiting import until
from treasure_map.feed import decode_record

BASE = 7
"""The first offset that the source's log still has."""

MAP = small_map()
HOUR, DAY = MAP.layer("hour"), MAP.layer("day")
RAW, DAY_TOPIC = "flights.raw", "small.layer.day"
FEED_TOPIC = "small.feed.hour"


class Archive(EmbeddedArchive):
    """A real archive that can be away, hang or break, and remembers the rows that it was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.error: Exception | None = None
        self.hangs = False
        self.attempts = 0
        self.written: list[tuple[str, pl.DataFrame, pl.Series]] = []

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Write, or do as told."""
        self.attempts += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        await super().write(layer, rows, write_times_us)
        self.written.append((layer.name, rows, write_times_us))

    def versions(self) -> list[tuple[int, int]]:
        """Return window and version of every row written, in order."""
        frames = [rows.select("window_start", "version") for _, rows, _ in self.written]
        return [row for frame in frames for row in frame.rows()]


class TimedLog(MemoryLog):
    """A log whose source begins at BASE, and that can lose appends to the layer topic."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = False
        self.feed_lost = False
        self.times: list[float] = []
        for _ in range(BASE):
            self.put(RAW, 1, b"deleted")

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Any,
        *,
        key: bytes | None = None,
    ) -> int:
        """Append, and remember when to the layer topic."""
        if topic == FEED_TOPIC and self.feed_lost:
            raise OutcomeUnknownError("the feed is away")
        if topic == DAY_TOPIC:
            if self.lost:
                raise OutcomeUnknownError("the broker is away")
            self.times.append(asyncio.get_running_loop().time())
        return await super().append(topic, partition, value, headers, key=key)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return first and next offset; the source's first records are gone."""
        first, stop = await super().bounds(topic, partition)
        return (BASE if topic == RAW else first), stop

    def contributions(self, partition: int | None = None) -> list[Contribution]:
        """Return the contributions in the layer topic, of one partition or all."""
        return [
            decode_contribution(record.value or b"")
            for (topic, number), records in sorted(self.records.items())
            if topic == DAY_TOPIC and partition in (None, number)
            for record in records
        ]

    def published(self) -> list[tuple[int, int, object]]:
        """Return window, version and sum of every cell in the feed, by partition, in order."""
        return [
            (cell.window_start, cell.version, cell.measures["sum_delay"])
            for (topic, _), records in sorted(self.records.items())
            if topic == FEED_TOPIC
            for record in records
            for cell in decode_record(record.value or b"")
        ]


class Spread:
    """A stand-in for chance: always the most, which is remembered."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def __call__(self, least: float, most: float) -> float:
        """Return the most."""
        assert least == most / 2
        self.pauses.append(most)
        return most


class Scene:
    """One owner of partition 1 with its emitter, fed by hand, whose clock may be put forward."""

    def __init__(
        self,
        folder: Path,
        log: TimedLog,
        archive: Archive,
        themap: Map = MAP,
        early_emit_s: float = 0.0,
    ) -> None:
        plan = plans_of(themap)[RAW]
        assert plan.source is not None
        self.log, self.archive = log, archive
        self.store = PartitionStore(folder)
        self.owner = Owner(plan, 1, PartitionIO(plan, 1, log, self.store, archive=archive))
        self.counts = EmitCounts()
        self.failures: list[BaseException] = []
        self.spread = Spread()
        self.ahead_s = 0.0
        self.emitter = Emitter(
            self.owner,
            archive,
            log,
            self.counts,
            self.failures.append,
            early_emit_s=early_emit_s,
            clock=lambda: asyncio.get_running_loop().time() + self.ahead_s,
            uniform=self.spread,
        )
        self._decoder, self._folder = Decoder(plan.source), Folder(plan)

    async def feed(self, *times: int, delay: int = 1) -> None:
        """Take one chunk with an event at each time, as ingest does."""
        await self._advance([flight(at, delay=delay) for at in times])

    async def beat(self, at: int) -> None:
        """Take one heartbeat."""
        await self._advance([at])

    async def _advance(self, values: list[Any]) -> None:
        for value in values:
            self.log.put(RAW, 1, value)
        run = run_of(values, 1, self.owner.position)
        (content,) = self._folder.fold(self._decoder.decode([run]), {1: self.owner.before()})
        await self.owner.advance(content, tail_of(run))
        self.emitter.wake(changed=bool(content.blocks))

    async def settled(self) -> bool:
        """Return whether every sink has acknowledged all closed cells."""
        return not any(self.owner.sinks.unacknowledged(layer) for layer in self.owner.plan.layers)

    async def idle(self) -> bool:
        """Return whether the tasks have seen every wake."""
        schedules = self.emitter._schedules.values()
        return not any(schedule._woken.is_set() for schedule in schedules)

    @property
    def tasks(self) -> int:
        """The number of tasks that have not ended."""
        return sum(not task.done() for task in self.emitter._tasks)

    async def told(self) -> bool:
        """Return whether the layer topic's partitions have heard of the present floor."""
        heard = {partition: self.log.contributions(partition)[-1:] for partition in range(2)}
        now = self.owner.sinks.announcement(HOUR, "day")
        return all(found and found[0].announced == now for found in heard.values())


@pytest.fixture
async def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[Scene]]]:
    """Return a maker of scenes over one log and one archive; each is claimed and not started.

    Pauses and intervals are short.
    """
    monkeypatch.setattr(writers, "ANNOUNCE_INTERVAL_S", 0.05)
    monkeypatch.setattr(emit, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(emit, "RETRY_S_MAX", 0.04)
    archive, log = Archive(tmp_path / "archive"), TimedLog()
    await archive.open(MAP)
    numbers = itertools.count()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(archive.close)

        async def build(themap: Map = MAP, early_emit_s: float = 0.0) -> Scene:
            folder = tmp_path / f"state{next(numbers)}"
            scene = Scene(folder, log, archive, themap, early_emit_s)
            stack.callback(scene.store.close)
            stack.push_async_callback(scene.emitter.stop)
            await scene.owner.claim()
            return scene

        yield build


@pytest.fixture
async def scene(make: Callable[..., Awaitable[Scene]]) -> Scene:
    """Return one scene, claimed and emitting."""
    made = await make()
    made.emitter.start()
    return made


async def test_only_closed_cells_are_sent_and_each_once(scene: Scene) -> None:
    """Acknowledged cells are not sent again, however often the emitter is woken.

    hour   0        1        2        3       an event in each closes the hour before
    """
    for hour in range(4):
        await scene.feed(hour * HOUR_MS, hour * HOUR_MS + 1)
        await until(scene.settled)
        for _ in range(3):
            scene.emitter.wake()
            await until(scene.idle)
    sent = scene.archive.versions()
    assert [window // HOUR_MS for window, _ in sent] == [0, 1, 2]
    rows = [c for c in scene.log.contributions() if c.block]
    starts = [decode_cells(c, DAY)["fine_start"].to_list() for c in rows]
    assert starts == [[0], [HOUR_MS], [2 * HOUR_MS]]
    assert scene.counts.archived == {"hour": 3}
    assert scene.failures == []


async def test_a_late_event_sends_the_whole_cell_again_at_its_new_version(scene: Scene) -> None:
    """Absolute values: the second row replaces the first, in archive and layer topic."""
    await scene.feed(0, HOUR_MS)
    await until(scene.settled)
    await scene.feed(1, delay=5)
    await until(scene.settled)
    assert scene.archive.versions() == [(0, BASE + 2), (0, BASE + 3)]
    (row,) = (await scene.archive.read(HOUR, CellRange(0, 1))).to_dicts()
    assert (row["events"], row["sum_delay"], row["version"]) == (2, 6, BASE + 3)
    last = decode_cells([c for c in scene.log.contributions() if c.block][-1], DAY)
    assert last["sum_delay"].to_list() == [6]
    assert last["contributed"].to_list() == [BASE + 3]


async def test_write_times_are_window_end_and_version_whoever_writes(
    make: Callable[..., Awaitable[Scene]],
) -> None:
    """A second owner, which takes nothing as acknowledged, sends the same rows and times."""
    first = await make()
    first.emitter.start()
    await first.feed(-HOUR_MS, 0, HOUR_MS)
    await until(first.settled)
    await first.emitter.stop()
    second = await make()
    second.emitter.start()
    await until(second.settled)
    rows = pl.concat(
        frame.with_columns(time=times) for _, frame, times in first.archive.written
    ).sort("window_start")
    assert rows["window_start"].to_list() == [-HOUR_MS, -HOUR_MS, 0, 0]
    ends = (rows["window_start"] + HOUR_MS) * 1_000
    assert rows["time"].to_list() == (ends + rows["version"] - BASE).to_list()
    assert rows["version"].unique().to_list() == [BASE + 3]
    assert rows["source_partition"].unique().to_list() == [1]


async def test_an_archive_that_is_away_holds_no_coarser_layer_back(scene: Scene) -> None:
    """Cells reach the layer topic meanwhile, and the archive when it is back."""
    scene.archive.error = ArchiveError("cannot write: the archive is away")
    await scene.feed(0, HOUR_MS)

    async def sent() -> bool:
        return any(c.block for c in scene.log.contributions()) and scene.archive.attempts > 1

    await until(sent)
    assert not await scene.settled()
    assert scene.counts.archived == {}
    scene.archive.error = None
    await until(scene.settled)
    assert scene.archive.versions() == [(0, BASE + 2)]
    assert scene.counts.archive.failures == scene.archive.attempts - 1 > 0


async def test_a_layer_topic_that_is_away_holds_no_archive_back(
    scene: Scene,
) -> None:
    """The archive does not hold the topic back either; announcements skip no waiting cell."""
    scene.log.lost = True
    await scene.feed(0, 3 * HOUR_MS)

    async def archived() -> bool:
        return scene.counts.archived["hour"] == 1

    await until(archived)
    assert scene.owner.sinks.announcement(HOUR, "day") == (HOUR_MS - 1, HOUR_MS - 1)
    scene.log.lost = False
    await until(scene.settled)
    assert scene.owner.sinks.announcement(HOUR, "day") == (3 * HOUR_MS, 2 * HOUR_MS)
    assert sum(bool(c.block) for c in scene.log.contributions()) == 1


async def test_retries_back_off_up_to_a_limit_and_each_failure_is_counted(scene: Scene) -> None:
    """Pauses double from the least to the greatest, and start anew after a success."""
    await scene.feed(0)
    scene.archive.error = ArchiveError("cannot write: disk full")
    await scene.feed(HOUR_MS)

    async def failed_often() -> bool:
        return scene.archive.attempts >= 5

    await until(failed_often)
    scene.archive.error = None
    await until(scene.settled)
    failures = scene.archive.attempts - 1
    assert scene.spread.pauses == [0.01, 0.02, *[0.04] * (failures - 2)]
    assert scene.counts.archive.failures == scene.counts.failures["archive"] == failures
    scene.spread.pauses.clear()
    scene.archive.error = ArchiveError("cannot write: again")
    await scene.feed(2 * HOUR_MS)

    async def failed_again() -> bool:
        return bool(scene.spread.pauses)

    await until(failed_again)
    assert scene.spread.pauses[0] == 0.01
    assert scene.failures == []


async def test_announcements_alone_reach_every_partition_when_a_floor_passes_a_window(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions without cells hear too; a move inside the same windows is not announced."""
    monkeypatch.setattr(writers, "ANNOUNCE_INTERVAL_S", 0.0)  # news is sent at once
    await scene.feed(0, HOUR_MS)
    await until(scene.told)
    count = len(scene.log.contributions())
    # Watermark and floor stay in the windows they are in.
    await scene.beat(HOUR_MS + 1)
    await until(scene.idle)
    await scene.beat(2 * HOUR_MS - 1)
    await until(scene.idle)
    assert len(scene.log.contributions()) == count
    await scene.beat(2 * HOUR_MS)
    await until(scene.told)
    for partition in range(2):
        assert scene.log.contributions(partition)[-1].announced == (2 * HOUR_MS, HOUR_MS)
    alone = [c for c in scene.log.contributions() if c.announced[0] > HOUR_MS and not c.block]
    assert [(c.layer, c.sender, c.revision) for c in alone] == [("hour", 1, 1)] * 2


async def test_announcements_alone_keep_their_interval(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floors may pass windows fast; the last one is told without another wake."""
    monkeypatch.setattr(writers, "ANNOUNCE_INTERVAL_S", 0.2)
    days = itertools.count()

    async def told_often() -> bool:
        await scene.beat(next(days) * DAY_MS)
        return len(scene.log.times) >= 8

    await until(told_often)
    await until(scene.told)
    rounds = scene.log.times[::2]  # each goes to two partitions
    assert next(days) > len(rounds)
    # The interval runs between decisions, and the appends measured here follow some time later.
    assert all(after - before > 0.15 for before, after in itertools.pairwise(rounds))
    assert scene.archive.attempts == 0


async def test_announcements_never_pass_a_cell_that_is_not_in_the_topic(scene: Scene) -> None:
    """They go on while the archive alone is away, and stop while cells wait for the topic."""
    scene.archive.error = ArchiveError("cannot write: away")
    await scene.feed(0, HOUR_MS, 2 * HOUR_MS)
    await until(scene.told)
    blocks = 0
    for partition in range(2):
        found = scene.log.contributions(partition)
        assert found[-1].announced == (2 * HOUR_MS, HOUR_MS)
        for number, contribution in enumerate(found):
            if contribution.block:
                blocks += 1
                first_end = min(decode_cells(contribution, DAY)["fine_start"]) + HOUR_MS
                assert all(c.announced[0] < first_end for c in found[: number + 1])
    assert blocks == 1


async def test_a_stop_ends_tasks_that_wait_for_ever(scene: Scene) -> None:
    """A task is cancelled at any step, and that is not a failure."""
    scene.archive.hangs = True
    await scene.feed(0, HOUR_MS)

    async def hanging() -> bool:
        return scene.archive.attempts == 1 and scene.owner.sinks.unacknowledged(HOUR) == 1

    await until(hanging)
    assert scene.tasks == 2
    async with asyncio.timeout(10):
        await scene.emitter.stop()
    assert scene.tasks == 0
    assert scene.failures == []
    assert scene.owner.sinks.unacknowledged(HOUR) == 1


async def test_a_stop_ends_tasks_between_two_retries(scene: Scene) -> None:
    """Nobody waits for the pause to pass."""
    scene.archive.error = ArchiveError("cannot write: away")
    await scene.feed(0, HOUR_MS)

    async def failed() -> bool:
        return scene.archive.attempts > 0

    await until(failed)
    async with asyncio.timeout(10):
        await scene.emitter.stop()
    assert scene.tasks == 0
    assert scene.failures == []


async def test_a_failure_that_is_no_operating_error_reaches_the_worker(scene: Scene) -> None:
    """It is not tried again: the worker stops with it."""
    scene.archive.error = ZeroDivisionError("a slip in the code")
    await scene.feed(0, HOUR_MS)

    async def reported() -> bool:
        return bool(scene.failures)

    await until(reported)
    assert scene.failures == [scene.archive.error]
    assert scene.archive.attempts == 1
    await scene.feed(2 * HOUR_MS)
    await until(scene.told)
    assert scene.archive.attempts == 1
    assert len(scene.failures) == 1


async def test_a_layer_that_nothing_is_made_from_goes_to_the_archive_only(
    make: Callable[..., Awaitable[Scene]],
) -> None:
    """No task waits for a layer topic that does not exist."""
    scene = await make(small_map(layers=(HOUR,)))
    scene.emitter.start()
    await scene.feed(0, HOUR_MS)
    await until(scene.settled)
    assert scene.tasks == 1
    assert scene.archive.versions() == [(0, BASE + 2)]
    assert scene.log.contributions() == []


def publishing(form: str) -> Map:
    """Return the small map with its hours published."""
    return small_map(layers=(dataclasses_replace(HOUR, publish=form), DAY))


@pytest.mark.parametrize("form", ["json", "arrow"])
async def test_a_feed_gets_closed_cells_and_what_amends_them(
    make: Callable[..., Awaitable[Scene]], form: str
) -> None:
    """Each version whole, and never an open cell, though the other sinks get these early."""
    scene = await make(publishing(form), early_emit_s=0.01)
    scene.emitter.start()
    await scene.feed(0, HOUR_MS)
    await until(scene.settled)

    async def archived_early() -> bool:
        return (HOUR_MS, BASE + 2) in scene.archive.versions()

    await until(archived_early)
    await scene.feed(1, delay=5)
    await until(scene.settled)
    await until(scene.idle)
    assert scene.log.published() == [(0, BASE + 2, 1), (0, BASE + 3, 6)]
    (hour,) = scene.owner.plan.layers
    assert scene.owner.sinks.names_of(hour) == [ARCHIVE, FEED, "day"]
    assert scene.owner.sinks.waiting_open(hour) == 0
    assert scene.counts.published == {"hour": 2}
    assert scene.failures == []


async def test_a_feed_that_is_away_holds_nothing_but_eviction_back(
    make: Callable[..., Awaitable[Scene]],
) -> None:
    """Archive and layer topic go on; waiting cells count as pending and stay in the table."""
    scene = await make(publishing("json"))
    scene.log.feed_lost = True
    scene.emitter.start()
    await scene.feed(0, 3 * HOUR_MS)

    async def elsewhere() -> bool:
        return scene.counts.archived["hour"] == 1 and scene.counts.failures["feed"] > 1

    await until(elsewhere)
    await until(scene.told)
    assert scene.owner.sinks.announcement(HOUR, "day") == (3 * HOUR_MS, 2 * HOUR_MS)
    assert scene.owner.sinks.unacknowledged(scene.owner.plan.layers[0]) == 1
    assert scene.owner.sinks.pending_bytes() > 0
    assert scene.owner.housekeeping() is None
    scene.log.feed_lost = False
    await until(scene.settled)
    assert scene.log.published() == [(0, BASE + 2, 1)]
    assert scene.owner.housekeeping() is not None
    assert set(scene.counts.failures) == {"feed"}


async def test_a_new_owner_publishes_all_that_is_closed_again(
    make: Callable[..., Awaitable[Scene]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions stay the same, however many records are appended together."""
    monkeypatch.setattr(writers, "FEED_RECORDS_AT_ONCE", 1)
    first = await make(publishing("json"))
    first.emitter.start()
    await first.feed(-HOUR_MS, 0, HOUR_MS)
    await until(first.settled)
    await first.emitter.stop()
    second = await make(publishing("json"))
    second.emitter.start()
    await until(second.settled)
    assert sorted(first.log.published()) == sorted(2 * [(-HOUR_MS, BASE + 3, 1), (0, BASE + 3, 1)])


@pytest.mark.parametrize(("early_emit_s", "sent"), [(3_600.0, 1), (0.0, 0)])
async def test_nothing_is_sent_early_under_load_nor_where_it_is_off(
    make: Callable[..., Awaitable[Scene]], early_emit_s: float, sent: int
) -> None:
    """A partition whose cells keep changing writes no row of an open window.

    minutes   0    50    100    150  160      each event is followed by less than the hour that
    events    e    e     e      e     |       must pass, the last one by an hour in the end
    """
    scene = await make(early_emit_s=early_emit_s)
    scene.emitter.start()

    async def attempts_after(minutes: int) -> int:
        scene.ahead_s += minutes * 60
        scene.emitter.wake()
        await until(scene.idle)
        return scene.archive.attempts

    for _ in range(4):
        await scene.feed(1)
        assert await attempts_after(50) == 0
    await scene.beat(2)
    assert await attempts_after(10) == sent
    for _ in range(3):
        assert await attempts_after(100) == sent


async def test_open_cells_are_tried_again_until_they_are_there(
    make: Callable[..., Awaitable[Scene]],
) -> None:
    """An archive that is away when the partition falls silent gets them when it is back."""
    scene = await make(early_emit_s=0.01)
    scene.archive.error = ArchiveError("cannot write: the archive is away")
    scene.emitter.start()
    await scene.feed(1, 2)

    async def failed_often() -> bool:
        return scene.archive.attempts > 2

    await until(failed_often)
    scene.archive.error = None

    async def there() -> bool:
        return scene.archive.versions() == [(0, BASE + 2)]

    await until(there)
    assert [c.announced for c in scene.log.contributions() if c.block] == [(2, 2 - HOUR_MS)]
    assert scene.owner.sinks.announcement(HOUR, "day") == (2, 2 - HOUR_MS)
