"""One owned partition, from its claim to its release: the background work for its owner.

A lock keeps its cycles apart: a chunk, an eviction, a part of a snapshot, the release.

    advance -> owner -> emitter -> sinks -(may evict)-> eviction -> owner
                    `-> heartbeat, snapshot
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agents.fold.content import Content
from agents.partition.emit_counts import EmitCounts
from agents.partition.emitter import Emitter
from agents.partition.idle_heartbeat import IdleHeartbeat, StreamTimes
from agents.partition.owner import Owner
from agents.ports import ReadableLog
from agents.supervised import supervised
from tables.archive.protocol import Archive
from tables.model.errors import FencedError, OutcomeUnknownError
from tables.state.journal import PartReference, RecordFingerprint, Snapshot
from tables.state.store import PartitionStore

log = logging.getLogger(__name__)

EVICT_AFTER_S = 0.5
"""Seconds that an eviction waits for a delta of a chunk before it appends its own."""

STALE, MISPLACED = "stale", "misplaced"
DROPS = (STALE, MISPLACED)
"""Why no owner takes a run: it was fetched for an earlier owner, or begins at another offset."""

Lost = FencedError | OutcomeUnknownError
"""The errors after which another owner may have a partition."""


class OwnedPartition:
    """An owner with its store, emitter, idle heartbeat, evictions and snapshots.

    Args:
        owner: it has claimed its partition.
        generation: the generation of the consumer group in which it was restored.
        failed: called with the reason when a background task ends: the worker must stop with it.
        lost: awaited with this partition when background work finds that another owner may have
            it; it is released then.
        early_emit_s: see :class:`agents.partition.emitter.Emitter`.

    Attributes:
        is_released: whether it is released, so that no more work may begin for it.
    """

    def __init__(
        self,
        owner: Owner,
        generation: int,
        store: PartitionStore,
        archive: Archive,
        to: ReadableLog,
        *,
        emitted: EmitCounts,
        times: StreamTimes,
        failed: Callable[[BaseException], None],
        lost: Callable[[OwnedPartition, Lost], Awaitable[None]],
        early_emit_s: float = 0.0,
    ) -> None:
        self.owner = owner
        self.generation = generation
        self.store = store
        self.is_released = False
        self._failed = failed
        self._lost = lost
        self._emitter = Emitter(owner, archive, to, emitted, failed, early_emit_s=early_emit_s)
        self._heartbeat = IdleHeartbeat(owner, to, times, failed)
        self._cycle = asyncio.Lock()
        self._evicting: asyncio.Task[None] | None = None
        self._snapshotting: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Its topic and partition."""
        return self.owner.plan.topic, self.owner.partition

    def start(self) -> None:
        """Begin to emit, to move its time and to evict."""
        self._emitter.start()
        self._heartbeat.start()
        self._evict_later()

    async def advance(self, content: Content, tail: RecordFingerprint | None) -> str:
        """Advance by one delta, then emit; return why it was dropped, one of ``DROPS``, or "".

        Raises:
            FencedError, OutcomeUnknownError: another owner may have the partition.
            DeltaTooLargeError, TreasureMapError: as of :meth:`Owner.advance`.
        """
        async with self._cycle:
            if self.is_released:
                return STALE
            if self.owner.position != content.start:
                return MISPLACED
            await self.owner.advance(content, tail)
        self._emitter.wake(changed=bool(content.blocks))
        if content.stop > content.start:
            self._heartbeat.seen()
        # After the release nobody would cancel a snapshot that begins here.
        if self._snapshotting is None and not self.is_released and self.owner.wants_snapshot():
            self._snapshotting = self._spawn(self._snapshot())
        return ""

    async def stop(self) -> None:
        """Stop its background work, and wait for the end of the current cycle."""
        await self._emitter.stop()
        self._heartbeat.stop()
        for task in (self._evicting, self._snapshotting):
            if task is not None:
                task.cancel()
        async with self._cycle:
            pass

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        return asyncio.create_task(supervised(work, self._failed))

    def _evict_later(self) -> None:
        self._evicting = None if self.is_released else self._spawn(self._evict())

    async def _evict(self) -> None:
        """Evict acknowledged windows, so that an idle partition shrinks too."""
        await self.owner.sinks.may_evict.wait()
        await asyncio.sleep(EVICT_AFTER_S)
        self.owner.sinks.may_evict.clear()
        content = self.owner.housekeeping()
        # From here on a release does not cancel this task, because this task may begin it.
        self._evict_later()
        if content is None:
            return
        try:
            await self.advance(content, None)
        except (FencedError, OutcomeUnknownError) as error:
            await self._lost(self, error)

    async def _snapshot(self) -> None:
        """Append a snapshot between the deltas, part by part, then truncate the journal."""
        references: list[PartReference] = []
        try:
            covers, parts = self.owner.capture()
            for part in parts:
                async with self._cycle:
                    if self.is_released:
                        return
                    references.append(await self.owner.append_snapshot(part))
            async with self._cycle:
                if self.is_released:
                    return
                await self.owner.append_snapshot(Snapshot(covers, references))
        except (FencedError, OutcomeUnknownError) as error:
            # The release that follows must not end the task that waits for it.
            self._snapshotting = None
            await self._lost(self, error)
            return
        try:
            await self.owner.truncate()
        except OutcomeUnknownError as error:
            log.warning("a journal was not truncated, the next snapshot tries again: %s", error)
        self._snapshotting = None
