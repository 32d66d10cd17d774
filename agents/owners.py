"""Owners: the partitions of this worker, from restore to release, and their reads.

One cycle at a time per partition: a lock per owner keeps a chunk, idle eviction and release apart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from agents.emit import EmitCounts, Emitter, Log
from agents.fold import Content
from agents.guarded import guarded
from agents.idle import IdleHeartbeat, StreamTimes
from agents.live import read_live
from agents.owner import Owner
from tables.archive import Archive
from tables.chunk import Run
from tables.errors import FencedError, OutcomeUnknownError
from tables.journal import Identity, PartPlace
from tables.layer import Layer, Map
from tables.live import LiveRead, LiveRows
from tables.plan import InputPlan, plans_of
from tables.state import Meta, PartitionState
from tables.store import PartitionStore
from tables.table import BlockWrite

log = logging.getLogger(__name__)

TopicPartition = tuple[str, int]

READ_BYTES_MAX = 32 << 20
"""Journal entries held at once while recovering; the store is saved after each read."""

STALE, MISPLACED = "stale", "misplaced"
DROPS = (STALE, MISPLACED)
"""Why a run is taken by no owner: it was fetched for an earlier one, or begins elsewhere."""

TIDY_AFTER_S = 0.5
"""How long eviction waits for a delta to ride on before it appends one of its own."""


@dataclasses.dataclass(slots=True, frozen=True)
class LogRecord:
    """One record as read back: its value, None for none, and its append time in milliseconds."""

    offset: int
    value: bytes | None
    append_time_ms: int


class ReadableLog(Log, Protocol):
    """A log that can be read back as well."""

    async def read(
        self, topic: str, partition: int, start: int, stop: int, bytes_max: int | None = None
    ) -> list[LogRecord]:
        """Return the records of offsets ``[start, stop)``; no more once values reach ``bytes_max``.

        There is at least one. Raises OffsetGoneError.
        """

    async def record_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """Return the record at an offset, None where there is none. Raises OutcomeUnknownError."""

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, if brokers can. Raises OutcomeUnknownError."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last."""


class LogPartitionIO:
    """``agents.partition_io.PartitionIO`` over a log and a local store."""

    def __init__(
        self, plan: InputPlan, partition: int, to: ReadableLog, store: PartitionStore
    ) -> None:
        self._plan = plan
        self._partition = partition
        self._log = to
        self._store = store

    async def append(self, value: bytes) -> int:
        """Append to the journal partition."""
        return await self._log.append(self._plan.journal, self._partition, value, ())

    async def read(self, start: int, stop: int) -> list[bytes]:
        """Return journal entries; an entry without value reads as empty, which is no format."""
        records = await self._log.read(
            self._plan.journal, self._partition, start, stop, READ_BYTES_MAX
        )
        return [record.value or b"" for record in records]

    async def truncate(self, before: int) -> None:
        """Delete journal entries."""
        await self._log.truncate(self._plan.journal, self._partition, before)

    async def journal_bounds(self) -> tuple[int, int]:
        """Return the journal's first offset and the one after its last."""
        return await self._log.bounds(self._plan.journal, self._partition)

    async def source_bounds(self) -> tuple[int, int]:
        """Return the source partition's first offset and the one after its last."""
        return await self._log.bounds(self._plan.topic, self._partition)

    async def source_identity(self, offset: int) -> Identity | None:
        """Return append time and CRC-32 of a source record, None where there is none."""
        record = await self._log.record_at(self._plan.topic, self._partition, offset)
        return None if record is None else (record.append_time_ms, zlib.crc32(record.value or b""))

    async def beside(self, work: Callable[[], None]) -> None:
        """Do it in a thread."""
        await asyncio.to_thread(work)

    def load(self) -> PartitionState | None:
        """Return the state of the local store, if it has one."""
        return self._store.load(self._plan)

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Write to the local store in one atomic batch."""
        self._store.save(writes, meta)

    def discard(self) -> None:
        """Empty the local store."""
        self._store.clear()


@dataclasses.dataclass(slots=True)
class Held:
    """One owned partition: its owner, its store, what emits for it and moves its time.

    ``generation`` is that of the consumer group in which it was restored.
    """

    owner: Owner
    generation: int
    store: PartitionStore
    emitter: Emitter
    heartbeat: IdleHeartbeat
    cycle: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    released: bool = False
    tidying: asyncio.Task[None] | None = None
    snapshotting: asyncio.Task[None] | None = None


class Owners:
    """The partitions of this worker.

    Args:
        themap: the map that is served.
        to: where journals, layer topics and sources are.
        archive: where closed cells go.
        state_folder: one folder per input topic and partition is kept in it.
        failed: called with the reason when a background task ends: the worker must stop with it.
        fenced: called with topic, partition and reason when a partition must be claimed again.
        misplaced: called with topic, partition and the owner's next offset when records came that
            begin elsewhere: they must be read on from there.
        early_emit_s: see :class:`agents.emit.Emitter`.

    Attributes:
        emitted: what was emitted since the worker started.
        dropped: runs of records that no owner took, by reason, one of ``DROPS``. Whoever owns their
            partition reads the same records again.
    """

    def __init__(
        self,
        themap: Map,
        to: ReadableLog,
        archive: Archive,
        state_folder: Path,
        *,
        failed: Callable[[BaseException], None],
        fenced: Callable[[str, int, str], None],
        misplaced: Callable[[str, int, int], None],
        early_emit_s: float = 0.0,
    ) -> None:
        self.themap = themap
        self.plans = plans_of(themap)
        self._log = to
        self._archive = archive
        self._folder = state_folder
        self._failed = failed
        self._fenced = fenced
        self._misplaced = misplaced
        self._early_emit_s = early_emit_s
        self._stream_times = StreamTimes(to, self.get)
        self._held: dict[TopicPartition, Held] = {}
        self._leaving: dict[TopicPartition, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self.emitted = EmitCounts()
        self.dropped: Counter[str] = Counter()

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Open the store, claim, read the journal; return the source position to go on from."""
        await self.release({(topic, partition)})
        plan = self.plans[topic]
        store = await self._opened(topic, partition)
        owner = Owner(plan, partition, LogPartitionIO(plan, partition, self._log, store))
        try:
            await owner.claim()
        except GeneratorExit:
            # Python drops this coroutine, and no task can be begun any more.
            store.close()
            raise
        except BaseException:
            self._leave((topic, partition), store)
            raise
        emitter = Emitter(
            owner, self._archive, self._log, self.emitted, self._failed,
            early_emit_s=self._early_emit_s,
        )  # fmt: skip
        heartbeat = IdleHeartbeat(owner, self._log, self._stream_times, self._failed)
        held = Held(owner, generation, store, emitter, heartbeat)
        emitter.on_acknowledged = lambda: self._tidy(held)
        self._held[topic, partition] = held
        emitter.start()
        heartbeat.start()
        return owner.position

    async def _opened(self, topic: str, partition: int) -> PartitionStore:
        """Open a store. RocksDB keeps the interpreter meanwhile, so the loop runs in between."""
        async with self._opening:
            await asyncio.sleep(0)
            return PartitionStore(self._folder / topic / str(partition))

    async def release(self, partitions: set[TopicPartition]) -> None:
        """Let these partitions go: end their cycles and emissions, close their stores.

        A partition that is being let go already, because it was lost, is waited for: its store can
        be opened again after this.
        """
        for key in partitions:
            held = self._held.pop(key, None)
            if held is not None:
                held.released = True
                self._leave(key, held.store, self._let_go(held))
        # Shielded, because who waits may be cancelled while somebody else waits too.
        leaving_now = [self._leaving[key] for key in partitions if key in self._leaving]
        await asyncio.gather(*(asyncio.shield(leaving) for leaving in leaving_now))

    def held(self) -> set[TopicPartition]:
        """Return the partitions whose local store is on this node's disk."""
        return {
            (topic, int(folder.name))
            for topic in self.plans
            for folder in (self._folder / topic).glob("*")
            if folder.name.isdecimal()
        }

    def get(self, topic: str, partition: int) -> Owner | None:
        """Return the owner of a partition, None where it is not this worker's now."""
        held = self._held.get((topic, partition))
        return held.owner if held else None

    def each(self) -> Iterator[Owner]:
        """Return every owner."""
        return iter([held.owner for held in self._held.values()])

    def taker(self, run: Run, generation: int) -> Owner | None:
        """Return the owner that a run is for, None where it is dropped, which is counted.

        ``generation`` is the one that the run was fetched in. An owner that was restored later
        reads the same records again; one that wants other records has them sought.
        """
        held = self._held.get((run.topic, run.partition))
        if held is None or held.generation != generation:
            self.dropped[STALE] += 1
            return None
        if held.owner.position != run.first_offset:
            self._misplace(held.owner)
            return None
        return held.owner

    def _misplace(self, owner: Owner) -> None:
        self.dropped[MISPLACED] += 1
        self._misplaced(owner.plan.topic, owner.partition, owner.position)

    async def advance(self, owner: Owner, content: Content, tail: Identity | None) -> None:
        """Advance a partition by one delta, then let it emit.

        A partition that was lost is forgotten and claimed again; its records are read again then.
        So are those that were folded for an owner that has been let go meanwhile.
        """
        topic, partition = owner.plan.topic, owner.partition
        held = self._held.get((topic, partition))
        has_records = content.stop > content.start
        if held is None or held.owner is not owner:
            self.dropped[STALE] += has_records
            return
        try:
            async with held.cycle:
                if held.released:
                    self.dropped[STALE] += has_records
                    return
                if owner.position != content.start:
                    if has_records:
                        self._misplace(owner)
                    return
                await owner.advance(content, tail)
        except (FencedError, OutcomeUnknownError) as error:
            await self._lost(topic, partition, held, error)
            return
        held.emitter.wake(changed=bool(content.blocks))
        if has_records:
            held.heartbeat.seen()
        self._tidy(held)
        # Once it is let go, nobody would cancel what is begun here.
        if held.snapshotting is None and not held.released and held.owner.wants_snapshot():
            held.snapshotting = asyncio.create_task(
                guarded(self._snapshot(topic, partition, held), self._failed)
            )

    def read(self, read: LiveRead) -> LiveRows:
        """Return the applied cells held here, open and closed, with the facts of their partitions.

        Reads without an ``await`` between them are of one state of each partition.
        """
        topic = self.plan_of(read.layer).topic
        held = [held.owner for (name, _), held in self._held.items() if name == topic]
        return read_live(held, read)

    def plan_of(self, layer: Layer) -> InputPlan:
        """Return the plan that a layer, or a combiner, stands in."""
        return next(plan for plan in self.plans.values() if layer in plan.layers)

    def archived_cells(self, layer: Layer) -> int:
        """Return how many rows of ``layer`` the archive acknowledged since the worker started."""
        return self.emitted.archived[layer.name]

    def pending_bytes(self) -> int:
        """Return about how much memory the cells take that sinks have not acknowledged."""
        return sum(owner.pending_bytes() for owner in self.each())

    async def give_up(self, owners: Iterable[Owner], error: OutcomeUnknownError) -> None:
        """Have the partitions of these owners claimed and their records read again.

        For what must be acknowledged before a delta and may not have landed (rule 5).
        """
        for owner in owners:
            topic, partition = owner.plan.topic, owner.partition
            held = self._held.get((topic, partition))
            if held is not None and held.owner is owner:
                await self._lost(topic, partition, held, error)

    async def _lost(
        self, topic: str, partition: int, held: Held, error: FencedError | OutcomeUnknownError
    ) -> None:
        """Forget a partition that another owner may have, and have it claimed again."""
        if self._held.get((topic, partition)) is held:
            await self.release({(topic, partition)})
            self._fenced(topic, partition, str(error))

    async def _snapshot(self, topic: str, partition: int, held: Held) -> None:
        """Write a snapshot between the deltas, part by part, and truncate behind the one before."""
        owner = held.owner
        places: list[PartPlace] = []
        try:
            covers, parts = owner.capture()
            for part in parts:
                async with held.cycle:
                    if held.released:
                        return
                    places.append(await owner.append_part(part))
            async with held.cycle:
                if held.released:
                    return
                await owner.append_snapshot(covers, places)
        except (FencedError, OutcomeUnknownError) as error:
            held.snapshotting = None
            await self._lost(topic, partition, held, error)
        else:
            await self._truncate(held)

    async def _truncate(self, held: Held) -> None:
        try:
            await held.owner.truncate()
        except OutcomeUnknownError as error:
            log.warning("a journal was not truncated, the next snapshot tries again: %s", error)
        held.snapshotting = None

    def _leave(
        self, key: TopicPartition, store: PartitionStore, first: Awaitable[None] | None = None
    ) -> None:
        """Begin to close a store, after ``first``; who restores the partition waits for it."""
        self._leaving[key] = asyncio.create_task(
            guarded(self._close(key, store, first), self._failed)
        )

    async def _close(
        self, key: TopicPartition, store: PartitionStore, first: Awaitable[None] | None
    ) -> None:
        if first is not None:
            await guarded(first, self._failed)
        try:
            # Beside the loop: RocksDB waits for its disk, for seconds where that is full.
            await asyncio.to_thread(store.close)
        finally:
            del self._leaving[key]

    async def _let_go(self, held: Held) -> None:
        await held.emitter.stop()
        held.heartbeat.stop()
        for task in (held.tidying, held.snapshotting):
            if task is not None:
                task.cancel()
        async with held.cycle:
            pass

    def _tidy(self, held: Held) -> None:
        """Evict soon what is acknowledged, so that an idle partition shrinks too."""
        if held.tidying is None and not held.released:
            held.tidying = asyncio.create_task(guarded(self._evict(held), self._failed))

    async def _evict(self, held: Held) -> None:
        await asyncio.sleep(TIDY_AFTER_S)
        content = held.owner.housekeeping()
        # Another tidying may begin from here on: what it waits for is not in this content.
        held.tidying = None
        if content is not None:
            await self.advance(held.owner, content, None)
