"""The lifecycle of partitions, which the transport drives and the owners of state carry out."""

from __future__ import annotations

from typing import Protocol

from tables.model.topic_partition import TopicPartition


class PartitionLifecycle(Protocol):
    """Keeps the state of partitions: opens, claims and reads it before a partition goes live."""

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Open the store, claim, read the journal; return the source position to go on from.

        May be cancelled when partitions are revoked. At most one runs per partition, and none
        beside a release of it.

        Raises:
            FencedError: another owner claimed meanwhile; it is called again after a while.
            OutcomeUnknownError: as FencedError.
            JournalUnreadError: as FencedError, after an ever longer while.
        """

    async def release(self, partitions: set[TopicPartition]) -> None:
        """Drop the memory of partitions that are revoked, and close all that is open.

        Called with every partition assigned last, restored or not.
        """

    def held(self) -> set[TopicPartition]:
        """Return the partitions whose local store is on this node's disk."""
