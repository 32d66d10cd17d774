"""Group commits: hints for lag displays; workers never resume from them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from agents.tasks import within
from tables.model.topic_partition import TopicPartition

log = logging.getLogger(__name__)

COMMIT_SECONDS_MAX = 5.0


class OffsetCommits:
    """Positions that were handled and are not committed yet, and the loop that commits them.

    Attributes:
        failures: commits that the brokers did not accept. They are logged and counted, never fatal.
    """

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._handled: dict[TopicPartition, int] = {}
        self.failures = 0

    def note(self, tp: TopicPartition, position: int) -> None:
        """Remember that a partition was handled up to ``position``."""
        self._handled[tp] = position

    def forget(self, tp: TopicPartition) -> None:
        """Drop the noted position of a partition."""
        self._handled.pop(tp, None)

    def take(self) -> dict[TopicPartition, int]:
        """Return the positions noted since the last call, and forget them."""
        handled, self._handled = self._handled, {}
        return handled

    async def run(self, consumer: Any) -> None:
        """Commit at intervals until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.commit(consumer, self.take(), COMMIT_SECONDS_MAX)

    async def commit(
        self, consumer: Any, handled: Mapping[TopicPartition, int], seconds_max: float
    ) -> None:
        """Commit positions within a bounded time."""
        if not handled:
            return
        offsets = {KafkaPartition(*tp): position for tp, position in handled.items()}
        try:
            await within(seconds_max, consumer.commit(offsets))
        except (KafkaError, TimeoutError) as error:
            self.failures += 1
            log.warning("positions were not committed; only lag displays miss them: %r", error)
