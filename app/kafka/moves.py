"""Moves: owners of partitions are restored and let go, never both at once for a partition.

Nothing here is awaited by the group's coordinator for longer than a bound, because no heartbeat is
sent meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiokafka import ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition

from agents.supervised import supervised
from tables.model.errors import FencedError, JournalUnreadError, OutcomeUnknownError
from tables.model.topic_partition import TopicPartition

log = logging.getLogger(__name__)

RELEASE_SECONDS_MAX = 3.0

DOUBLED_MAX = 7
"""How often the wait for another try is doubled while a journal accepts claims and cannot be read:
up to some four minutes, and some hundred claims a day."""


class PartitionLifecycle(Protocol):
    """Keeps the state of partitions: opens, claims and reads it before a partition goes live."""

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Open the store, claim, read the journal; return the source position to resume from.

        May be cancelled when partitions are revoked. At most one runs per partition, and never
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


@dataclasses.dataclass(eq=False)
class Moves:
    """Restores the owners of partitions that were assigned, and releases those that are revoked.

    Before a partition is claimed again there is a random wait between the bounds ``retry_seconds``.
    ``stands`` returns whether a generation is still the one that this member reads in; ``live`` is
    called with partition, generation and the source position to resume from; ``failed`` with
    errors that another try cannot mend.

    Attributes:
        retries: restores that began again.
        slow_releases: releases that took longer than their bound; they continue after it.
    """

    owners: PartitionLifecycle
    retry_seconds: tuple[float, float]
    _: dataclasses.KW_ONLY
    stands: Callable[[int], bool]
    live: Callable[[TopicPartition, int, int], None]
    failed: Callable[[BaseException], None]
    retries: int = dataclasses.field(default=0, init=False)
    slow_releases: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self._restores: dict[TopicPartition, asyncio.Task[None]] = {}
        self._release: asyncio.Task[None] | None = None

    def restoring(self) -> list[TopicPartition]:
        """Return the partitions that are assigned here and not live yet."""
        return sorted(tp for tp, task in self._restores.items() if not task.done())

    def restore(self, tp: TopicPartition, generation: int, *, later: bool = False) -> None:
        """Begin to restore a partition; ``later`` waits first, because another owner may be there.

        Two live owners that claim at once would fence each other for ever.
        """
        previous = self._restores.get(tp)
        delay_seconds = self.retry_delay() if later else 0.0
        self._restores[tp] = asyncio.create_task(
            supervised(self._restore(tp, generation, delay_seconds, previous), self.failed)
        )

    async def release(self, owned: set[TopicPartition]) -> None:
        """Cancel all restores and let these partitions go, within a bounded time."""
        restores = [task for task in self._restores.values() if not task.done()]
        for task in restores:
            task.cancel()
        self._release = asyncio.create_task(
            supervised(self._drop(owned, restores, self._release), self.failed)
        )
        done, _ = await asyncio.wait([self._release], timeout=RELEASE_SECONDS_MAX)
        if not done:
            self.slow_releases += 1
            log.warning(
                "owners did not let go within %.0f s; the worker continues", RELEASE_SECONDS_MAX
            )

    async def _drop(
        self,
        owned: set[TopicPartition],
        restores: list[asyncio.Task[None]],
        previous: asyncio.Task[None] | None,
    ) -> None:
        """End restores, then owners. The next restore waits for this to end, however late."""
        if previous is not None:
            await asyncio.wait([previous])
        if restores:
            await asyncio.wait(restores)
        await self.owners.release(owned)

    async def _restore(
        self,
        tp: TopicPartition,
        generation: int,
        delay_seconds: float,
        previous: asyncio.Task[None] | None,
    ) -> None:
        earlier = [task for task in (previous, self._release) if task and not task.done()]
        if earlier:
            await asyncio.wait(earlier)
        tries = unread = 0
        while self.stands(generation):
            await asyncio.sleep(delay_seconds)
            try:
                position = await self.owners.restore(*tp, generation)
            except (FencedError, OutcomeUnknownError) as error:
                # Each try fails alike while brokers are away; so one line says it once.
                level = logging.DEBUG if tries else logging.WARNING
                log.log(level, "a restore starts again: %s[%d]: %s", *tp, error)
                tries += 1
                unread = unread + 1 if isinstance(error, JournalUnreadError) else 0
                self.retries += 1
                delay_seconds = self.retry_delay(unread)
                continue
            if tries > 1:
                log.warning("%s[%d] is restored after %d tries", *tp, tries + 1)
            if self.stands(generation):
                self.live(tp, generation, position)
            return

    def retry_delay(self, unread: int = 0) -> float:
        """Return the seconds before another try; ``unread`` ones left a claim in the journal."""
        doubled: int = 2 ** min(unread, DOUBLED_MAX)
        return random.SystemRandom().uniform(*self.retry_seconds) * doubled


@dataclasses.dataclass(eq=False)
class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka comes without types here
    """aiokafka only logs errors of a listener; this one calls ``failed``."""

    revoked: Callable[[], Awaitable[None]]
    assigned: Callable[[set[TopicPartition]], Awaitable[None]]
    failed: Callable[[BaseException], None]

    async def on_partitions_revoked(self, revoked: set[KafkaPartition]) -> None:
        """Release the partitions, before a join."""
        del revoked
        await self._guarded(self.revoked())

    async def on_partitions_assigned(self, assigned: set[KafkaPartition]) -> None:
        """Restore the partitions, after a join."""
        partitions = {(tp.topic, tp.partition) for tp in assigned}
        await self._guarded(self.assigned(partitions))

    async def _guarded(self, work: Awaitable[None]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await supervised(work, self.failed)
