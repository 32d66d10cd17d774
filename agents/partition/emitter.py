"""Emit: closed cells to archive, coarser layers' topics and feeds, until they are acknowledged.

Emission never decides content: it may stop, repeat and reorder freely (docs/formats/journal.md
rules 8 and 11). Each owner has one task per writer, so that an archive that is away does not hold
back coarser layers.

    closed        -> at once, until acknowledged at its version
    open          -> once the partition's cells have not changed for early_emit_s
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable

from agents.partition.emit_counts import EmitCounts
from agents.partition.owner import Owner
from agents.partition.schedule import NEVER, Schedule, loop_time
from agents.partition.writers import ArchiveWriter, FeedWriter, LayerTopicWriter, Writer
from agents.ports import Log
from agents.supervised import supervised
from agents.tasks import end
from tables.archive.protocol import Archive
from tables.model.errors import ArchiveError, OutcomeUnknownError

RETRY_S_MIN = 0.2
RETRY_S_MAX = 10.0


class Emitter:
    """Sends the closed cells of one owner; call ``wake`` after every applied delta.

    Args:
        failed: called with the reason when a task ends: the worker must stop with it.
        early_emit_s: seconds without a change of the partition's cells after which those of open
            windows are sent too; 0 for never. So a cell is sent early at most once in that time,
            and never under load.
        clock: seconds of a clock that never goes back.
        uniform: draws a number between two others, to spread the retries of many partitions.
    """

    def __init__(
        self,
        owner: Owner,
        archive: Archive,
        to: Log,
        counts: EmitCounts,
        failed: Callable[[BaseException], None],
        *,
        early_emit_s: float = 0.0,
        clock: Callable[[], float] = loop_time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._owner = owner
        self._counts = counts
        self._failed = failed
        self._early_emit_s = early_emit_s
        self._clock = clock
        self._uniform = uniform
        # When cells changed last; and the change after which open cells were sent last, by kind of
        # sink.
        self._changed_at = NEVER
        self._sent_early: dict[str, float] = {}
        self._to_archive = ArchiveWriter(owner, archive, counts)
        writers: list[Writer] = [self._to_archive]
        if any(owner.plan.coarser.values()):
            writers.append(LayerTopicWriter(owner, to, counts, clock))
        if any(layer.publish for layer in owner.plan.layers):
            writers.append(FeedWriter(owner, to, counts))
        self._schedules = {
            writer.kind: Schedule(functools.partial(self._due, writer), clock) for writer in writers
        }
        self._writers = writers
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the tasks."""
        self._tasks = [
            asyncio.create_task(supervised(self._serve(writer), self._failed))
            for writer in self._writers
        ]
        self.wake(changed=True)

    def wake(self, *, changed: bool = False) -> None:
        """Wake the tasks whose work a change of the state makes due; ``changed``: cells changed.

        Most deltas make nothing due, and then no task is woken. While an archive is away, the
        waiting windows pile up; they are not searched for every delta.
        """
        if changed:
            self._changed_at = self._clock()
        for schedule in self._schedules.values():
            schedule.check()

    async def stop(self) -> None:
        """Cancel the tasks; the next owner sends the cells that were not acknowledged."""
        await asyncio.gather(*(end(task) for task in self._tasks))
        self._to_archive.abandon()

    async def _serve(self, writer: Writer) -> None:
        """Write whenever something is due; back off on failure."""
        schedule = self._schedules[writer.kind]
        retry_s = RETRY_S_MIN
        while True:
            await schedule.sleep()
            change, early = self._changed_at, self._early(writer) <= self._clock()
            try:
                await writer.write(early=early)
                retry_s = RETRY_S_MIN
                if early:
                    self._sent_early[writer.kind] = change
            except (ArchiveError, OutcomeUnknownError):
                self._counts.failures[writer.kind] += 1
                # Every attempt handles all cells that wait. Woken by news, it would be repeated
                # with every delta, and not bring the sink back.
                await asyncio.sleep(self._uniform(retry_s / 2, retry_s))
                retry_s = min(retry_s * 2, RETRY_S_MAX)

    def _due(self, writer: Writer) -> float:
        """Return when a writer has something to send."""
        return min(writer.due(), self._early(writer))

    def _early(self, writer: Writer) -> float:
        """Return when open cells are due, because nothing has changed for a while."""
        if not self._early_emit_s or not writer.takes_open:
            return NEVER
        if self._changed_at == self._sent_early.get(writer.kind, NEVER):
            return NEVER
        if not all(map(self._owner.state.is_known, self._owner.plan.layers)):
            return NEVER
        return self._changed_at + self._early_emit_s
