"""An administrator's client, and topics that it makes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.waiting import until


@contextlib.asynccontextmanager
async def admin_of(brokers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect as an administrator."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def partitions_at(brokers: str, prefix: str) -> dict[str, int]:
    """Return the topics whose names begin so, with their partitions, as the broker has them."""
    async with admin_of(brokers) as admin:
        topics = await admin.describe_topics()
    return {
        topic["topic"]: len(topic["partitions"])
        for topic in topics
        if topic["topic"].startswith(prefix)
    }


async def make(brokers: str, name: str, partitions: int, config: dict[str, str]) -> None:
    """Make a topic beforehand; return when the broker tells of it, which may be later."""
    async with admin_of(brokers) as admin:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])

    async def visible() -> bool:
        return await partitions_at(brokers, name) == {name: partitions}

    await until(visible)
