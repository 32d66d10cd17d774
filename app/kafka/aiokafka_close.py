"""The ends of consumers: of a group, without waiting for its join, and whatever the fetcher does.

They use private names of the pinned aiokafka; ``tests/contract/test_aiokafka_private.py`` fails
when one changes.
"""

# ruff: noqa: SLF001 - this file is for private names

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaConsumer

from agents.tasks import within

log = logging.getLogger(__name__)

LEAVE_SECONDS_MAX = 2.0


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer that commits by itself nothing, and leave its group, also in generation 0.

    ``consumer.stop()`` does not leave that one, because Kafka's first generation is 1. The embedded
    broker's is 0, and it shows a member that did not leave until another one joins.
    """
    coordinator = consumer._coordinator
    if coordinator is not None and coordinator.generation == 0:
        coordinator.generation = 1
    await consumer.stop()


async def abandon(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer whose ``stop()`` does not end: leave the group without waiting for its join.

    ``stop()`` lets a running join end first, and a join waits for all members.
    """
    coordinator = consumer._coordinator
    consumer._closed = True
    if coordinator is not None:
        tasks = [coordinator._coordination_task, coordinator._heartbeat_task]
        running = [task for task in tasks if task is not None and not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=LEAVE_SECONDS_MAX)
        await asyncio.wait([coordinator.maybe_leave_group()], timeout=LEAVE_SECONDS_MAX)
    await _disconnect(consumer)


async def _disconnect(consumer: AIOKafkaConsumer) -> None:
    if consumer._fetcher is not None:
        # Its end is a cancellation if a fetch was about to be tried again.
        closing = asyncio.create_task(consumer._fetcher.close())
        await asyncio.wait([closing], timeout=LEAVE_SECONDS_MAX)
    await consumer._client.close()


async def close(consumer: AIOKafkaConsumer, seconds: float) -> None:
    """Close a consumer of no group, whatever its fetcher is at.

    A fetcher that changes its assignment loses a cancellation, and one whose broker has gone passes
    it on: then the connections are closed without it.
    """
    try:
        await within(seconds, consumer.stop())
    except TimeoutError:
        try:
            await within(seconds, _disconnect(consumer))
        except TimeoutError:
            log.warning("a consumer did not stop within %g s; it is left", seconds)
