"""Calls of aiokafka when partitions move, passed on; an error there stops the worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiokafka import ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition

from agents.supervised import supervised
from app.kafka.assignor import TopicPartition


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka comes without types here
    """aiokafka only logs errors of a listener; this one calls ``failed``."""

    def __init__(
        self,
        revoked: Callable[[], Awaitable[None]],
        assigned: Callable[[set[TopicPartition]], Awaitable[None]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._revoked = revoked
        self._assigned = assigned
        self._failed = failed

    async def on_partitions_revoked(self, revoked: set[KafkaPartition]) -> None:
        """Before a join."""
        del revoked
        await self._guarded(self._revoked())

    async def on_partitions_assigned(self, assigned: set[KafkaPartition]) -> None:
        """After a join."""
        partitions = {(tp.topic, tp.partition) for tp in assigned}
        await self._guarded(self._assigned(partitions))

    async def _guarded(self, work: Awaitable[None]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await supervised(work, self._failed)
