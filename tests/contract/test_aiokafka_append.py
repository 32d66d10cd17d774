"""Appends in one request: offsets as aiokafka's producer gives them, errors told, not retried."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    KafkaConnectionError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
)

from app.kafka import produce_request as aiokafka_append
from app.kafka.produce_request import Appends

PARTITIONS = 3


@pytest.fixture
async def producer(brokers: str) -> AsyncIterator[AIOKafkaProducer]:
    """Start a producer."""
    producer = AIOKafkaProducer(bootstrap_servers=brokers, client_id="größer")
    await producer.start()
    yield producer
    await producer.stop()


async def known_topics(brokers: str, producer: AIOKafkaProducer, count: int) -> list[str]:
    """Make topics whose leaders the producer knows, and to which it has a connection."""
    names = [f"t{uuid.uuid4().hex}" for _ in range(count)]
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    finally:
        await admin.close()
    async with AIOKafkaConsumer(bootstrap_servers=brokers) as consumer:
        # A new partition's leader is known a moment before it leads; this waits for all.
        await consumer.end_offsets([TopicPartition(n, p) for n in names for p in range(PARTITIONS)])
    for name in names:
        await producer.send_and_wait(name, b"first", partition=0)
    return names


async def values_of(brokers: str, topic: str, partition: int) -> list[bytes]:
    """Return all values of a partition."""
    place = TopicPartition(topic, partition)
    async with AIOKafkaConsumer(bootstrap_servers=brokers) as consumer:
        consumer.assign([place])
        (end,) = (await consumer.end_offsets([place])).values()
        consumer.seek(place, 0)
        found: list[bytes] = []
        while len(found) < end:
            some = await consumer.getmany(timeout_ms=500)
            found += [record.value for record in some.get(place, [])]
    return found


async def test_records_of_many_partitions_get_their_offsets(
    brokers: str, producer: AIOKafkaProducer
) -> None:
    """Appends go at once, several to one partition; each partition keeps its order."""
    topics = await known_topics(brokers, producer, 2)
    appends = Appends(producer, deadline_s=20.0)
    given = [
        (topic, partition, b"%d" % number)
        for number in range(5)
        for topic in topics
        for partition in range(PARTITIONS)
    ]
    offsets = await asyncio.gather(*(appends.append(*one) for one in given))
    for topic in topics:
        for partition in range(PARTITIONS):
            mine = [
                (offset, value)
                for offset, (name, place, value) in zip(offsets, given, strict=True)
                if (name, place) == (topic, partition)
            ]
            values = await values_of(brokers, topic, partition)
            assert [values[offset] for offset, _ in mine] == [value for _, value in mine]
            assert [offset for offset, _ in mine] == sorted(offset for offset, _ in mine)
            assert len(values) == len(mine) + (partition == 0)


async def test_what_is_too_much_for_one_request_goes_in_several(
    brokers: str, producer: AIOKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that alone is too much goes alone; nothing is left behind."""
    (topic,) = await known_topics(brokers, producer, 1)
    monkeypatch.setattr(aiokafka_append, "REQUEST_BYTES_MAX", 1_000)
    appends = Appends(producer, deadline_s=20.0)
    values = [bytes([number]) * size for number, size in enumerate((300, 900, 2_000, 10, 10))]
    places = [0, 1, 2, 0, 1]
    offsets = await asyncio.gather(
        *(appends.append(topic, place, value) for place, value in zip(places, values, strict=True))
    )
    assert offsets == [1, 0, 0, 2, 1]
    assert await values_of(brokers, topic, 1) == [values[1], values[4]]


async def test_a_request_in_flight_does_not_hold_back_the_next(
    brokers: str, producer: AIOKafkaProducer
) -> None:
    """Requests follow each other on one connection, and are answered in order."""
    (topic,) = await known_topics(brokers, producer, 1)
    appends = Appends(producer, deadline_s=20.0)
    waiting = []
    for number in range(20):
        waiting.append(appends.append(topic, 1, b"%d" % number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiting) == list(range(20))


async def test_without_leader_or_connection_nothing_is_sent(
    brokers: str, producer: AIOKafkaProducer
) -> None:
    """Both are told at once, for the producer to find them; then it works."""
    appends = Appends(producer, deadline_s=20.0)
    with pytest.raises(LeaderNotAvailableError, match=r"no leader of nowhere\[0\] is known"):
        appends.append("nowhere", 0, b"")
    (topic,) = await known_topics(brokers, producer, 1)
    await producer.client.close()
    with pytest.raises(NodeNotReadyError, match="no connection to node"):
        await appends.append(topic, 1, b"nobody")
    await producer.send_and_wait(topic, b"opens it", partition=0)
    assert await appends.append(topic, 1, b"somebody") == 0


async def test_a_connection_that_breaks_ends_what_it_carries(
    brokers: str, producer: AIOKafkaProducer
) -> None:
    """Nothing tells whether the append landed."""
    (topic,) = await known_topics(brokers, producer, 1)
    appends = Appends(producer, deadline_s=20.0)
    sent = appends.append(topic, 1, b"perhaps")
    await asyncio.sleep(0)
    await producer.client.close()
    with pytest.raises(KafkaConnectionError, match="closed"):
        await sent


@pytest.mark.kafka
async def test_what_a_broker_refuses_is_told_for_that_record_alone(kafka: str) -> None:
    """The others of the request have landed."""
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        (topic,) = await known_topics(kafka, producer, 1)
        appends = Appends(producer, deadline_s=20.0)
        small, large = appends.append(topic, 1, b"small"), appends.append(topic, 2, bytes(4 << 20))
        with pytest.raises(MessageSizeTooLargeError):
            await large
        assert await small == 0
        assert await values_of(kafka, topic, 2) == []


async def test_who_gives_up_takes_nothing_from_the_others(
    brokers: str, producer: AIOKafkaProducer
) -> None:
    """A cancelled wait is not told anything; its record lands all the same."""
    (topic,) = await known_topics(brokers, producer, 1)
    appends = Appends(producer, deadline_s=20.0)
    given_up, other = appends.append(topic, 1, b"one"), appends.append(topic, 2, b"two")
    given_up.cancel()
    assert await other == 0
    assert await values_of(brokers, topic, 1) == [b"one"]
