"""One partition as its owner sees it: journal and source in a log, local store and archive."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import TypeVar

from agents.ports import ReadableLog
from tables.archive.protocol import Archive
from tables.state.block_table import BlockWrite
from tables.state.input_plan import InputPlan
from tables.state.journal import Claimant, RecordFingerprint
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState
from tables.state.store import PartitionStore

T = TypeVar("T")

READ_BYTES_MAX = 32 << 20
"""Journal entries held at once while recovering; the store is saved after each read."""


class PartitionIO:
    """The I/O of an owner: all of its effects go through here.

    So the same owner runs under asyncio with Kafka and under a simulator that stops, kills and
    resumes it at every ``await``.

    Attributes:
        archive: the archive of the partition's rows.
        claimant: the identity that claims the partition.
    """

    def __init__(
        self,
        plan: InputPlan,
        partition: int,
        to: ReadableLog,
        store: PartitionStore,
        *,
        archive: Archive,
        claimant: Claimant | None = None,
    ) -> None:
        self.archive = archive
        self.claimant = claimant or Claimant()
        self._plan = plan
        self._partition = partition
        self._log = to
        self._store = store

    async def append(self, value: bytes) -> int:
        """Append to the journal; return the offset. Raises OutcomeUnknownError."""
        return await self._log.append(self._plan.journal, self._partition, value, ())

    async def read(self, start: int, stop: int) -> list[bytes]:
        """Return the journal entries of offsets ``[start, stop)``, or only the first of them.

        It returns at least one; the log chooses how many. An entry without value reads as empty,
        which is not an entry. Raises OffsetGoneError.
        """
        records = await self._log.read(
            self._plan.journal, self._partition, start, stop, READ_BYTES_MAX
        )
        return [record.value or b"" for record in records]

    async def truncate(self, before: int) -> None:
        """Delete the journal entries before an offset, if the log can do that.

        Raises OutcomeUnknownError.
        """
        await self._log.truncate(self._plan.journal, self._partition, before)

    async def journal_bounds(self) -> tuple[int, int]:
        """Return the journal's first offset and the one after its last."""
        return await self._log.bounds(self._plan.journal, self._partition)

    async def source_bounds(self) -> tuple[int, int]:
        """Return the source partition's first offset and the one after its last."""
        return await self._log.bounds(self._plan.topic, self._partition)

    async def record_fingerprint(self, offset: int) -> RecordFingerprint | None:
        """Return append time and CRC-32 of a source record, None if it is gone."""
        record = await self._log.record_at(self._plan.topic, self._partition, offset)
        if record is None:
            return None
        return RecordFingerprint(record.append_time_ms, zlib.crc32(record.value or b""))

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Run long work in a thread; nothing else may touch its data meanwhile.

        It runs to its end, even if the caller is cancelled: nobody may close the store before.
        """
        doing = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait([doing])
            raise

    def load(self) -> PartitionState | None:
        """Return the state of the local store, if it has one. Takes long if that is large."""
        return self._store.load(self._plan)

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Write to the local store in one atomic batch."""
        self._store.save(writes, meta)

    def discard(self) -> None:
        """Empty the local store."""
        self._store.clear()
