"""Idle heartbeats: the owner of a silent source partition writes its time.

It does so only if the map sets ``idle_heartbeat``. The heartbeat is a record of the log like any
other: it moves stream time for every reader alike, so that no clock decides content, whoever
writes it and however often. Its time is

    M + time since the last record         of a partition that had events
    the smallest M of those that had some  of a partition that never had one

The time since the last record is the time that the owner itself has waited, by a clock that nobody
sets. Append times are not used, because the clocks of brokers and workers differ.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from agents.partition.owner import Owner
from agents.ports import ReadableLog
from agents.supervised import supervised
from tables.model.errors import JournalRefusedError, OffsetGoneError, OutcomeUnknownError
from tables.model.window import NEVER_MS, TIME_MS_MAX
from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat
from tables.state.input_plan import InputPlan
from tables.state.journal import Delta, decode_entry

log = logging.getLogger(__name__)

LOOK_BACK_ENTRIES = 8
"""Entries of another partition's journal that are searched for its last delta. Claims and
snapshots may follow that delta; an idle partition's next heartbeat makes a delta again."""


class StreamTimes:
    """Stream times of a source's partitions: of this worker's own, and of others by their journals.

    The time in a journal may be old, and then too small, because stream time never falls. It may
    come from a delta that does not stand, which is true of the log all the same. Journals are read
    once in ``idle_heartbeat`` for all partitions of this worker.
    """

    def __init__(self, to: ReadableLog, held: Callable[[str, int], Owner | None]) -> None:
        self._log = to
        self._held = held
        self._journaled: dict[tuple[str, int], tuple[float, int | None]] = {}

    async def slowest_other_ms(self, plan: InputPlan, partition: int) -> int:
        """Return the smallest M of a source's other partitions that had events.

        ``NEVER_MS`` if none had, or one is not known.
        """
        others = [p for p in range(plan.partitions) if p != partition]
        found = [await self._time_ms(plan, other) for other in others]
        return min((time for time in found if time is not None), default=NEVER_MS)

    async def _time_ms(self, plan: InputPlan, partition: int) -> int | None:
        """Return M of a partition, None if it never had an event."""
        owner = self._held(plan.topic, partition)
        if owner is not None:
            return owner.state.meta.stream_time_ms if owner.has_events else None
        assert plan.source is not None
        now = asyncio.get_running_loop().time()
        read_at, time_ms = self._journaled.get((plan.topic, partition), (-math.inf, None))
        if now >= read_at + plan.source.idle_heartbeat_ms / 1_000:
            time_ms = await self._read(plan, partition)
            self._journaled[plan.topic, partition] = (now, time_ms)
        return time_ms

    async def _read(self, plan: InputPlan, partition: int) -> int | None:
        first, end = await self._log.bounds(plan.journal, partition)
        start = max(first, end - LOOK_BACK_ENTRIES)
        for record in reversed(await self._log.read(plan.journal, partition, start, end)):
            try:
                entry = decode_entry(record.value or b"")
            except JournalRefusedError as error:
                # The partition's own owner fails with it; here only its time is not known.
                log.warning("%s[%d] gives no stream time: %s", plan.journal, partition, error)
                return NEVER_MS
            if isinstance(entry, Delta):
                return entry.stream_time_ms if entry.has_events else None
        return None if start == 0 else NEVER_MS


class IdleHeartbeat:
    """Writes heartbeats for one owned partition while no records come; ``seen`` reports records.

    It does nothing unless the map asks for it, and for layer topics, which have announcements.
    """

    def __init__(
        self,
        owner: Owner,
        to: ReadableLog,
        times: StreamTimes,
        failed: Callable[[BaseException], None],
    ) -> None:
        source = owner.plan.source
        self._idle_s = 0.0 if source is None else source.idle_heartbeat_ms / 1_000
        self._owner = owner
        self._log = to
        self._times = times
        self._failed = failed
        self._seen_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to wait."""
        self.seen()
        if self._idle_s:
            self._task = asyncio.create_task(supervised(self._run(), self._failed))

    def seen(self) -> None:
        """Restart the wait, because records have been applied just now."""
        self._seen_at = asyncio.get_running_loop().time()

    def stop(self) -> None:
        """Cancel the task. A heartbeat that is being appended does no harm."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        """Write a heartbeat, if it is due, after each ``idle_heartbeat`` without a record."""
        now = asyncio.get_running_loop().time
        looked_at = now()
        while True:
            wait_s = max(self._seen_at, looked_at) + self._idle_s - now()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue
            looked_at = now()
            try:
                await self._beat(int((looked_at - self._seen_at) * 1_000))
            except (OutcomeUnknownError, OffsetGoneError) as error:
                log.warning("an idle heartbeat was not written, trying again: %s", error)

    async def _beat(self, waited_ms: int) -> None:
        owner = self._owner
        topic, partition = owner.plan.topic, owner.partition
        if owner.has_events:
            time_ms = owner.state.meta.stream_time_ms + waited_ms
        else:
            time_ms = await self._times.slowest_other_ms(owner.plan, partition)
        time_ms = min(time_ms, TIME_MS_MAX)
        if time_ms <= owner.state.meta.stream_time_ms:
            return
        # Records that are in the log and not read yet say more than a clock: this worker is
        # behind, or another one has taken over.
        _, end = await self._log.bounds(topic, partition)
        if end > owner.position:
            return
        header = (HEARTBEAT_HEADER, encode_heartbeat(time_ms))
        await self._log.append(topic, partition, None, (header,))
