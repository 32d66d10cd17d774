"""The last records of a topic, read without a group, so that its readers are not disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from app.kafka.brokers import connect_error
from tables.model.errors import TreasureMapError

DEADLINE_SECONDS = 30.0
"""How long the reading of a partition may take."""

BYTES_MAX = 64 << 20
"""Bytes of all values."""


class LastRecordsError(TreasureMapError):
    """A topic that cannot be read."""


async def last_records(
    brokers: str, topic: str, records_max: int, options: Mapping[str, Any]
) -> list[list[bytes]]:
    """Return by partition the values of a topic's last records, in their order.

    Records without value, such as heartbeats, are left out.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        topic: the topic.
        records_max: records of all partitions, which have the same share.
        options: security options of aiokafka's clients.

    Raises:
        LastRecordsError: no broker answers, or the topic is not there.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=brokers, enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_wait_ms=50, **options,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await consumer.start()
            found = await consumer.topics()
        if topic not in found:
            raise LastRecordsError(
                f"cannot read {topic}: the brokers at {brokers} show this user no such topic; want"
                " a topic with events, and the right to Describe and Read it"
            )
        partitions = sorted(consumer.partitions_for_topic(topic) or ())
        share = -(-records_max // max(1, len(partitions)))
        values = []
        for partition in partitions:
            async with asyncio.timeout(DEADLINE_SECONDS):
                bytes_max = BYTES_MAX // len(partitions)
                values.append(
                    await _last(consumer, KafkaPartition(topic, partition), share, bytes_max)
                )
    except (KafkaError, TimeoutError) as error:
        told = await connect_error(error, f"cannot read {topic}", brokers, options)
        raise LastRecordsError(str(told)) from error
    finally:
        await consumer.stop()
    return values


async def _last(
    consumer: AIOKafkaConsumer, place: KafkaPartition, records_max: int, bytes_max: int
) -> list[bytes]:
    consumer.assign([place])
    start = (await consumer.beginning_offsets([place]))[place]
    end = (await consumer.end_offsets([place]))[place]
    consumer.seek(place, max(start, end - records_max))
    values: list[bytes] = []
    size = 0
    # Offsets of transactions' markers carry no record, so that the position decides.
    while True:
        for record in (await consumer.getmany(place, timeout_ms=200)).get(place, ()):
            if record.value is not None:
                values.append(record.value)
                size += len(record.value)
        # Fetches tell the end; the embedded broker lists that of the last batch's first record.
        known = consumer.highwater(place)
        if size > bytes_max or (known is not None and await consumer.position(place) >= known):
            return values[-records_max:]
