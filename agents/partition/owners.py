"""Owners: the registry of the partitions of this worker, and their reads."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

from agents.decode.event_batch import SetAside
from agents.fold.content import Content
from agents.partition.emit_counts import EmitCounts
from agents.partition.idle_heartbeat import StreamTimes
from agents.partition.late_watch import LateWatch
from agents.partition.letters import PartOf, send_letters
from agents.partition.live_reads import FreshMs, live_job, unknown_fresh_ms
from agents.partition.owned_partition import MISPLACED, STALE, Lost, OwnedPartition
from agents.partition.owner import Owner, tail_of
from agents.partition.partition_io import PartitionIO
from agents.partition.rivals import Rivals
from agents.ports import ReadableLog
from agents.supervised import supervised
from tables.archive.protocol import Archive
from tables.model.errors import DeltaTooLargeError, FencedError, OutcomeUnknownError
from tables.model.layer import Layer, Map
from tables.model.topic_partition import TopicPartition
from tables.query.live import LiveJob, LiveRead
from tables.record.chunk import Run
from tables.state.input_plan import InputPlan, plans_of
from tables.state.journal import Claimant
from tables.state.store import PartitionStore

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class PartitionManager:
    """The partitions of this worker.

    Args:
        themap: the map that is served.
        to: the log with journals, layer topics and sources.
        archive: the sink of closed cells.
        state_folder: one folder per input topic and partition is kept in it.
        failed: called with the reason when a background task ends: the worker must stop with it.
        fenced: called with topic, partition and reason when a partition must be claimed again.
        misplaced: called with topic, partition and the owner's next offset when records came that
            begin at another one: the partition must be read from the owner's offset on.
        early_emit_s: see :class:`agents.partition.emitter.Emitter`.

    Attributes:
        emitted: counts of emissions since the worker started.
        dropped: runs of records that no owner took, by reason, one of ``DROPS``. The owner of their
            partition reads the same records again.
        damaged_stores: the number of damaged local stores, which were rebuilt from the journal.
        claimant: the identity that claims partitions; set before the first is restored.
    """

    themap: Map
    to: ReadableLog
    archive: Archive
    state_folder: Path
    _: dataclasses.KW_ONLY
    failed: Callable[[BaseException], None]
    fenced: Callable[[str, int, str], None]
    misplaced: Callable[[str, int, int], None]
    early_emit_s: float = 0.0

    def __post_init__(self) -> None:
        self.plans = plans_of(self.themap)
        self._stream_times = StreamTimes(self.to, self.get)
        self.claimant = Claimant()
        self.rivals = Rivals()
        self._held: dict[TopicPartition, OwnedPartition] = {}
        self._leaving: dict[TopicPartition, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self.emitted = EmitCounts()
        self.dropped: Counter[str] = Counter()
        self.damaged_stores = 0
        self.late = LateWatch(lambda: asyncio.get_running_loop().time())

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Open the store, claim, read the journal; return the next source offset to read."""
        await self.release({(topic, partition)})
        plan = self.plans[topic]
        store = await self._opened(topic, partition)
        io = PartitionIO(
            plan, partition, self.to, store, archive=self.archive, claimant=self.claimant
        )
        owner = Owner(plan, partition, io)
        try:
            await self._claim(owner)
        except GeneratorExit:
            # Python drops this coroutine, and no task can start any more.
            store.close()
            raise
        except BaseException as error:
            self._leave((topic, partition), store)
            self.rivals.note(error)
            raise
        held = OwnedPartition(
            owner,
            generation,
            store,
            self.archive,
            self.to,
            emitted=self.emitted,
            times=self._stream_times,
            failed=self.failed,
            lost=self._lost,
            early_emit_s=self.early_emit_s,
        )
        self._held[held.key] = held
        held.start()
        return owner.position

    async def _claim(self, owner: Owner) -> None:
        await owner.claim()
        if not owner.archive.named and self.archive.is_open:
            raise _archive_there(owner.plan.topic, owner.partition)

    async def _opened(self, topic: str, partition: int) -> PartitionStore:
        """Open a store. RocksDB holds the interpreter meanwhile, so the loop runs before each."""
        async with self._opening:
            await asyncio.sleep(0)
            folder = self.state_folder / topic / str(partition)
            return PartitionStore(folder, self._note_damage)

    def _note_damage(self) -> None:
        self.damaged_stores += 1

    async def release(self, partitions: set[TopicPartition]) -> None:
        """Release these partitions: end their cycles and emissions, close their stores.

        It also waits for a partition that is being released already, because it was lost. Every
        store can be opened again afterwards.
        """
        for key in partitions:
            held = self._held.pop(key, None)
            self.late.forget(*key)
            if held is not None:
                held.is_released = True
                self._leave(key, held.store, held.stop())
        # Shielded, because one caller may be cancelled while another one waits too.
        leaving_now = [self._leaving[key] for key in partitions if key in self._leaving]
        await asyncio.gather(*(asyncio.shield(leaving) for leaving in leaving_now))

    def held(self) -> set[TopicPartition]:
        """Return the partitions whose local store is on this node's disk."""
        return {
            (topic, int(folder.name))
            for topic in self.plans
            for folder in (self.state_folder / topic).glob("*")
            if folder.name.isdecimal()
        }

    def get(self, topic: str, partition: int) -> Owner | None:
        """Return the owner of a partition, None if it is not this worker's now."""
        held = self._held.get((topic, partition))
        return held.owner if held else None

    def each(self) -> Iterator[Owner]:
        """Return every owner."""
        return iter([held.owner for held in self._held.values()])

    def taker(self, run: Run, generation: int) -> OwnedPartition | None:
        """Return the partition of a run; count a run that must be dropped, and return None.

        ``generation`` is the one in which the run was fetched. An owner that was restored later
        reads the same records again. If the run begins at another offset than the owner's next,
        ``misplaced`` is called.
        """
        held = self._held.get((run.topic, run.partition))
        if held is None or held.generation != generation:
            self.dropped[STALE] += 1
            return None
        if held.owner.position != run.first_offset:
            self._misplace(held.owner)
            return None
        return held

    def _misplace(self, owner: Owner) -> None:
        self.dropped[MISPLACED] += 1
        self.misplaced(owner.plan.topic, owner.partition, owner.position)

    async def advance(
        self, held: OwnedPartition, run: Run, content: Content
    ) -> Sequence[tuple[Run, str]]:
        """Advance a partition by a run's content; return the parts that must be folded anew.

        These are halves of a run that adds more than one delta can hold. A single record that does
        is returned with the cause to refuse it for, or its partition could never advance.

        A partition that was lost is forgotten and claimed again, and its records are read again.
        So are records that were folded for an owner that has been released meanwhile.
        """
        owner = held.owner
        try:
            dropped = await held.advance(content, tail_of(run))
        except DeltaTooLargeError as error:
            return [(run, str(error))] if len(run.values) == 1 else [(h, "") for h in run.halves()]
        except (FencedError, OutcomeUnknownError) as error:
            await self._lost(held, error)
            return ()
        if dropped == MISPLACED:
            self._misplace(owner)
        elif dropped:
            self.dropped[dropped] += 1
        else:
            stream_time_ms = owner.state.meta.stream_time_ms
            self.late.count(owner.plan, owner.partition, content.ledger, stream_time_ms)
        return ()

    def live_job(self, read: LiveRead, fresh_ms: FreshMs = unknown_fresh_ms) -> LiveJob:
        """Return a job that makes the applied cells held here, open and closed, in any thread.

        Jobs without an ``await`` between them are of one state of each partition. Their facts say
        how fresh it is, by ``fresh_ms``.
        """
        topic = self.plan_of(read.layer).topic
        held = [held.owner for (name, _), held in self._held.items() if name == topic]
        return live_job(held, read, fresh_ms)

    def plan_of(self, layer: Layer) -> InputPlan:
        """Return the plan of a layer or a combiner."""
        return next(plan for plan in self.plans.values() if layer in plan.layers)

    def archived_cells(self, layer: Layer) -> int:
        """Return the number of rows of ``layer`` that the archive acknowledged since the start."""
        return self.emitted.archived[layer.name]

    def pending_bytes(self) -> int:
        """Return the approximate memory of the cells that sinks have not acknowledged."""
        return sum(owner.sinks.pending_bytes() for owner in self.each())

    async def claim_anew(self) -> None:
        """Claim the partitions again that were claimed while the archive was away."""
        for (topic, partition), held in list(self._held.items()):
            if not held.owner.archive.named:
                await self._lost(held, _archive_there(topic, partition))

    async def send_letters(
        self,
        taken: Iterable[OwnedPartition],
        runs: Sequence[Run],
        aside: Sequence[SetAside],
        part_of: PartOf,
    ) -> bool:
        """Append the letters of some partitions' runs, which precede their deltas (rule 5).

        Return whether all have landed; else these partitions are claimed and read again.
        """
        try:
            await send_letters(self.to, self.themap, runs, aside, part_of)
        except OutcomeUnknownError as error:
            for held in taken:
                await self._lost(held, error)
            return False
        return True

    async def _lost(self, held: OwnedPartition, error: Lost) -> None:
        """Forget a partition that another owner may have, and have it claimed again."""
        topic, partition = held.key
        if self._held.get(held.key) is held:
            await self.release({held.key})
            self.rivals.note(error)
            self.fenced(topic, partition, str(error))

    def _leave(
        self, key: TopicPartition, store: PartitionStore, first: Awaitable[None] | None = None
    ) -> None:
        """Begin to close a store, after ``first``; a restore of the partition waits for it."""
        self._leaving[key] = asyncio.create_task(
            supervised(self._close(key, store, first), self.failed)
        )

    async def _close(
        self, key: TopicPartition, store: PartitionStore, first: Awaitable[None] | None
    ) -> None:
        if first is not None:
            await supervised(first, self.failed)
        try:
            # In a thread: RocksDB waits for its disk, for seconds if that is full.
            await asyncio.to_thread(store.close)
        finally:
            del self._leaving[key]


def _archive_there(topic: str, partition: int) -> FencedError:
    """Return why a partition is claimed again that was claimed while the archive was away."""
    return FencedError(f"cannot continue {topic}[{partition}]: the archive is there by now")
