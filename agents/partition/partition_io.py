"""The I/O of an owner: all of its effects go through this protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tables.archive.protocol import Archive
from tables.state.journal import Claimant, RecordFingerprint
from tables.state.layer_table import BlockWrite
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState

T = TypeVar("T")


class PartitionIO(Protocol):
    """One journal partition, its source partition and its local store.

    The same owner runs under asyncio with Kafka and under a simulator that stops, kills and resumes
    it at every ``await``.

    Attributes:
        archive: the archive of the partition's rows.
        claimant: the identity that claims the partition.
    """

    archive: Archive
    claimant: Claimant

    async def append(self, value: bytes) -> int:
        """Append to the journal; return the offset. Raises OutcomeUnknownError."""

    async def read(self, start: int, stop: int) -> list[bytes]:
        """Return the journal entries of offsets ``[start, stop)``, or only the first of them.

        It returns at least one; the log chooses how many. Raises OffsetGoneError.
        """

    async def truncate(self, before: int) -> None:
        """Delete the journal entries before an offset, if the log can do that.

        Raises OutcomeUnknownError.
        """

    async def journal_bounds(self) -> tuple[int, int]:
        """Return the journal's first offset and the one after its last."""

    async def source_bounds(self) -> tuple[int, int]:
        """Return the source partition's first offset and the one after its last."""

    async def record_fingerprint(self, offset: int) -> RecordFingerprint | None:
        """Return append time and CRC-32 of a source record, None if it is gone."""

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Run long work in a thread; nothing else may touch its data meanwhile.

        It runs to its end, even if the caller is cancelled.
        """

    def load(self) -> PartitionState | None:
        """Return the state of the local store, if it has one. Takes long if that is large."""

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Write to the local store in one atomic batch."""

    def discard(self) -> None:
        """Empty the local store."""
