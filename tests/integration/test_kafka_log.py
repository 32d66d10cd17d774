"""The log on brokers: the same battery on the embedded one and on real Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Container, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import ConsumerRecord

from app.demo.embedded_broker import EmbeddedBroker
from app.kafka.batch_producer import BatchProducer
from app.kafka.log import KafkaLog
from tables.model.errors import OffsetGoneError, OutcomeUnknownError, TreasureMapError
from tests.support import servers
from tests.support.waiting import thread_states, until

RECORD_BYTES_MAX = 4_000_000
DEADLINE_S = 2.0
# Above the deadline, and far below aiokafka's own 40 s.
ANSWER_SECONDS_MAX = 10.0


class EveryTopic:
    """Has all names."""

    def __contains__(self, name: object) -> bool:
        """Return that a name is among them."""
        return True


@pytest.fixture(params=["by aiokafka", "soon"])
async def log(brokers: str, request: pytest.FixtureRequest) -> AsyncIterator[KafkaLog]:
    """Connect to the broker with the deadlines of production; appends go either way."""
    repeatable = EveryTopic() if request.param == "soon" else ()
    log = KafkaLog(brokers, RECORD_BYTES_MAX, repeatable=repeatable)
    await log.start()
    yield log
    await log.stop()


async def topic_on(brokers: str, partitions: int = 1, **config: str) -> str:
    """Create a topic of its own and return its name."""
    name = f"t{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        configs = {key.replace("_", "."): value for key, value in config.items()}
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
    finally:
        await admin.close()
    return name


async def test_appends_get_consecutive_offsets_and_read_back(brokers: str, log: KafkaLog) -> None:
    """One after the other: offset, value and append time, and the bounds around them."""
    topic = await topic_on(brokers)
    assert await log.bounds(topic, 0) == (0, 0)
    before_ms = time.time_ns() // 1_000_000
    values = [b"%d" % number for number in range(20)]
    offsets = [await log.append(topic, 0, value, ()) for value in values]
    after_ms = time.time_ns() // 1_000_000
    assert offsets == list(range(20))
    assert await log.bounds(topic, 0) == (0, 20)
    records = await log.read(topic, 0, 0, 20)
    assert [(record.offset, record.value) for record in records] == list(enumerate(values))
    assert all(before_ms <= record.append_time_ms <= after_ms for record in records)


async def test_a_key_is_appended_with_its_record(brokers: str, log: KafkaLog) -> None:
    """Feeds have keys, by which Kafka compacts; other records have none."""
    topic = await topic_on(brokers)
    await log.append(topic, 0, b"one", (), key=b'["JFK",0,1]')
    await log.append(topic, 0, b"two", ())
    reader = AIOKafkaConsumer(topic, bootstrap_servers=brokers, auto_offset_reset="earliest")
    async with reader:
        found = [await reader.getone() for _ in range(2)]
    assert [(r.key, r.value) for r in found] == [(b'["JFK",0,1]', b"one"), (None, b"two")]


async def test_reading_one_record_unpacks_no_others_of_a_long_log(
    brokers: str, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim reads one record of its source, however much waits behind it.

    log  r r r ... 20,000      read  r      unpacked  r
    """
    topic = await topic_on(brokers)
    async with BatchProducer(brokers, topic) as feed:
        feed.add(0, [None] * 20_000, [b"%0100d" % number for number in range(20_000)])
    unpacked = []

    def count(*args: Any, **kwargs: Any) -> Any:
        unpacked.append(record := ConsumerRecord(*args, **kwargs))
        return record

    monkeypatch.setattr("aiokafka.consumer.fetcher.ConsumerRecord", count)
    (found,) = await log.read(topic, 0, 7, 8)
    assert (found.offset, found.value) == (7, b"%0100d" % 7)
    assert len(unpacked) == 1
    records = await log.read(topic, 0, 10, 20_000)
    assert [record.offset for record in records] == list(range(10, 20_000))


async def test_concurrent_appends_keep_the_order_of_their_calls(
    brokers: str, log: KafkaLog
) -> None:
    """The order holds in each partition, also if partitions share batches."""
    topic = await topic_on(brokers, 2)
    calls = [(number % 2, b"%d" % number) for number in range(400)]
    offsets = await asyncio.gather(*(log.append(topic, *call, ()) for call in calls))
    for partition in (0, 1):
        mine = [offset for offset, call in zip(offsets, calls, strict=True) if call[0] == partition]
        assert mine == list(range(200))
        records = await log.read(topic, partition, 0, 200)
        assert [record.value for record in records] == [v for p, v in calls if p == partition]


async def test_a_range_is_read_whole_over_several_fetches(brokers: str, log: KafkaLog) -> None:
    """More bytes than one fetch of a partition brings; nothing outside the range comes along."""
    topic = await topic_on(brokers)
    values = [bytes([number]) * 900_000 for number in range(22)]
    for value in values:
        await log.append(topic, 0, value, ())
    records = await log.read(topic, 0, 1, 21)
    assert [record.offset for record in records] == list(range(1, 21))
    assert [record.value for record in records] == values[1:21]
    assert await log.read(topic, 0, 5, 5) == []


async def test_more_reads_at_once_than_readers_all_get_theirs(brokers: str, log: KafkaLog) -> None:
    """They wait for each other."""
    topic = await topic_on(brokers)
    for number in range(12):
        await log.append(topic, 0, b"%d" % number, ())
    found = await asyncio.gather(*(log.read(topic, 0, at, at + 1) for at in range(12)))
    assert [[record.value for record in records] for records in found] == [
        [b"%d" % number] for number in range(12)
    ]


async def test_headers_arrive_and_no_value_becomes_an_empty_one(
    brokers: str, log: KafkaLog
) -> None:
    """A heartbeat that is set aside has headers only, and aiokafka takes no such record."""
    topic = await topic_on(brokers)
    headers = (("topic", b"flights.raw"), ("reason", b"malformed heartbeat"))
    assert await log.append(topic, 0, None, headers) == 0
    (record,) = await log.read(topic, 0, 0, 1)
    assert record.value == b""
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=brokers, auto_offset_reset="earliest"
    ) as consumer:
        async with asyncio.timeout(20):
            seen = await consumer.getone()
    assert (seen.value, seen.headers) == (b"", headers)


async def test_a_range_past_the_end_is_gone(brokers: str, log: KafkaLog) -> None:
    """The error comes soon, not after a deadline: a topic made anew is not a slow broker."""
    topic = await topic_on(brokers)
    for _ in range(3):
        await log.append(topic, 0, b"value", ())
    ranges = [(3, 4), (2, 5), (90, 91)]
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        found = await asyncio.gather(
            *(log.read(topic, 0, *offsets) for offsets in ranges), return_exceptions=True
        )
    assert [type(error) for error in found] == [OffsetGoneError] * 3
    for (start, stop), error in zip(ranges, found, strict=True):
        assert f"[0] from {start} to {stop}: the log has no such offset" in str(error)


async def test_a_record_at_an_offset_is_there_or_not(brokers: str, log: KafkaLog) -> None:
    """Soon, and not after a deadline."""
    topic = await topic_on(brokers)
    for number in range(3):
        await log.append(topic, 0, b"%d" % number, ())
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        found = await asyncio.gather(*(log.record_at(topic, 0, offset) for offset in (0, 2, 3, 9)))
    assert [record and record.value for record in found] == [b"0", b"2", None, None]


@pytest.mark.kafka
async def test_a_marker_of_a_transaction_is_no_record(kafka: str) -> None:
    """It is the last of its log, so that no later record comes in its place."""
    topic = await topic_on(kafka)
    async with (
        AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic) as producer,
        producer.transaction(),
    ):
        await producer.send_and_wait(topic, b"value", partition=0)
    log = KafkaLog(kafka, RECORD_BYTES_MAX)
    await log.start()
    assert await log.bounds(topic, 0) == (0, 2)
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        assert await log.record_at(topic, 0, 1) is None
        record = await log.record_at(topic, 0, 0)
    assert record is not None
    assert record.value == b"value"
    await log.stop()


@pytest.mark.kafka
async def test_a_range_before_the_start_is_gone(kafka: str) -> None:
    """Records that were deleted are not skipped over."""
    topic = await topic_on(kafka)
    log = KafkaLog(kafka, RECORD_BYTES_MAX)
    await log.start()
    for number in range(5):
        await log.append(topic, 0, b"%d" % number, ())
    await log.truncate(topic, 0, 3)
    assert await log.bounds(topic, 0) == (3, 5)
    await log.truncate(topic, 0, 1)
    assert await log.bounds(topic, 0) == (3, 5)
    with pytest.raises(OffsetGoneError, match="or its records deleted"):
        await log.read(topic, 0, 2, 5)
    assert [record.value for record in await log.read(topic, 0, 3, 5)] == [b"3", b"4"]
    await log.stop()


async def test_a_broker_that_cannot_delete_records_keeps_them(embedded: str) -> None:
    """Truncation saves space and reading; nothing depends on it, and appends go on.

    The embedded broker hangs up on the request.
    """
    topic = await topic_on(embedded)
    log = KafkaLog(embedded, RECORD_BYTES_MAX)
    await log.start()
    for number in range(4):
        await log.append(topic, 0, b"%d" % number, ())
    with pytest.raises(OutcomeUnknownError, match="cannot delete records"):
        await log.truncate(topic, 0, 3)
    await log.append(topic, 0, b"4", ())
    assert await log.bounds(topic, 0) == (0, 5)
    await log.stop()


async def test_a_bounded_read_ends_once_it_has_enough(brokers: str, log: KafkaLog) -> None:
    """It returns the first records of the range, at least one."""
    topic = await topic_on(brokers)
    for number in range(20):
        await log.append(topic, 0, b"%02d" % number * 100_000, ())
    records = await log.read(topic, 0, 2, 20, 1_000)
    assert records
    assert [record.offset for record in records] == list(range(2, 2 + len(records)))
    assert len(await log.read(topic, 0, 2, 20, 1 << 40)) == 18


@pytest.mark.kafka
async def test_a_range_with_markers_of_transactions_ends_where_it_should(kafka: str) -> None:
    """Markers take offsets and are not records."""
    topic = await topic_on(kafka)
    async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic) as producer:
        for number in range(3):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"%d" % number, partition=0)
    log = KafkaLog(kafka, RECORD_BYTES_MAX)
    await log.start()
    records = await log.read(topic, 0, 0, 6)
    assert [(record.offset, record.value) for record in records] == [
        (0, b"0"), (2, b"1"), (4, b"2"),
    ]  # fmt: skip
    assert await log.read(topic, 0, 5, 6) == []
    await log.stop()


async def test_a_record_that_is_too_large_is_refused_for_good(brokers: str, log: KafkaLog) -> None:
    """A worker that claims and tries again would never end."""
    topic = await topic_on(brokers)
    with pytest.raises(
        TreasureMapError, match=r"too large; got 4000000 .* chunk_records"
    ) as raised:
        await log.append(topic, 0, bytes(RECORD_BYTES_MAX), ())
    assert not isinstance(raised.value, OutcomeUnknownError)
    assert await log.append(topic, 0, b"small", ()) == 0


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_message_bytes": "1000"}, r"the record is too large; got 2000 bytes"),
        ({"cleanup_policy": "compact"}, r"want a broker that accepts it; mend it"),
    ],
)
async def test_what_the_topic_never_takes_is_refused_for_good(
    kafka: str, config: dict[str, Any], message: str
) -> None:
    """The broker refuses it: too large for the topic; without a key if the topic is compacted."""
    topic = await topic_on(kafka, **config)
    log = KafkaLog(kafka, RECORD_BYTES_MAX)
    await log.start()
    with pytest.raises(TreasureMapError, match=message) as raised:
        await log.append(topic, 0, bytes(2_000), ())
    assert not isinstance(raised.value, OutcomeUnknownError)
    await log.stop()


@pytest.mark.kafka
async def test_what_the_broker_may_take_later_has_an_unknown_outcome(kafka: str) -> None:
    """A topic that is not there yet: brokers learn of a new one at different times."""
    log = KafkaLog(kafka, RECORD_BYTES_MAX, append_deadline_s=0.5)
    await log.start()
    with pytest.raises(OutcomeUnknownError, match=r"cannot append to .*: no answer within 0\.5 s"):
        await log.append(uuid.uuid4().hex, 0, b"value", ())
    await log.stop()


async def test_no_broker_is_named_with_what_to_do() -> None:
    """A worker that cannot start says why; stopping a log that never started does nothing."""
    (port,) = servers.free_ports(1)
    log = KafkaLog(f"127.0.0.1:{port}", RECORD_BYTES_MAX)
    with pytest.raises(TreasureMapError, match=rf"brokers 127.0.0.1:{port}; .*`brokers`") as raised:
        await log.start()
    assert isinstance(raised.value.__cause__, KafkaConnectionError)
    await log.stop()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def pausable(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[str, int]]:
    """Run a broker that nobody else uses meanwhile; give its address and its process."""
    if request.param == "embedded":
        with EmbeddedBroker() as broker:
            assert broker.pid is not None
            pid = broker.pid
            yield broker.bootstrap, pid
            # In order it would wait for connections that a stopped log has given up.
            os.kill(pid, signal.SIGKILL)
        return
    server: servers.KafkaServer = request.getfixturevalue("kafka_server")
    yield server.bootstrap, server.pid


@pytest.mark.parametrize("repeatable", [(), EveryTopic()], ids=["by aiokafka", "soon"])
async def test_a_broker_that_stops_answering_leaves_outcomes_unknown(
    pausable: tuple[str, int], repeatable: Container[str]
) -> None:
    """Appends, reads and bounds end within their deadlines; later all is as if they were late."""
    brokers, pid = pausable
    topic = await topic_on(brokers)
    log, stopped = (
        KafkaLog(
            brokers,
            RECORD_BYTES_MAX,
            repeatable=repeatable,
            append_deadline_s=DEADLINE_S,
            read_deadline_s=DEADLINE_S,
        )
        for _ in range(2)
    )
    await log.start()
    await stopped.start()
    first = await log.append(topic, 0, b"first", ())
    await stopped.append(topic, 0, b"second", ())
    os.kill(pid, signal.SIGSTOP)
    # All threads of a process are stopped soon after, not at once.
    await until(lambda: set(thread_states(pid)) == {"T"})
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        outcomes = await asyncio.gather(
            log.append(topic, 0, b"unknown", ()),
            log.bounds(topic, 0),
            log.read(topic, 0, 0, 1),
            stopped.append(topic, 0, b"left", ()),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError] * 4
    assert [str(outcome).split(" ")[:2] for outcome in outcomes] == [
        ["cannot", "append"], ["cannot", "read"], ["cannot", "read"],
        ["cannot", "append"],
    ]  # fmt: skip
    # A worker must end although its last append is never answered.
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await stopped.stop()
    with pytest.raises(OutcomeUnknownError, match="ProducerClosed"):
        await stopped.append(topic, 0, b"after", ())
    os.kill(pid, signal.SIGCONT)
    last = await _append_until_taken(log, topic, b"last")
    records = await log.read(topic, 0, first, last + 1)
    values = [record.value for record in records]
    assert (values[0], values[1], values[-1]) == (b"first", b"second", b"last")
    assert set(values[2:-1]) <= {b"unknown", b"left", b"last"}
    await log.stop()


async def _append_until_taken(log: KafkaLog, topic: str, value: bytes) -> int:
    async with asyncio.timeout(60):
        while True:
            try:
                return await log.append(topic, 0, value, ())
            except OutcomeUnknownError:
                continue


async def test_a_long_read_goes_on_as_long_as_records_come(
    embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is for each step: a journal of hours is read in more than one deadline."""
    topic = await topic_on(embedded)
    log = KafkaLog(embedded, RECORD_BYTES_MAX, read_deadline_s=1.0)
    await log.start()
    for number in range(6):
        await log.append(topic, 0, b"%d" % number, ())
    original = AIOKafkaConsumer.getmany
    loop = asyncio.get_running_loop()
    clock, ahead_s = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead_s)

    async def slowly(
        self: AIOKafkaConsumer, *keys: TopicPartition, timeout_ms: int, max_records: int
    ) -> Any:
        nonlocal ahead_s
        assert max_records > 0
        ahead_s += 0.6
        return await original(self, *keys, timeout_ms=timeout_ms, max_records=1)

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", slowly)
    records = await log.read(topic, 0, 0, 6)
    assert ahead_s > 3
    assert [record.offset for record in records] == list(range(6))
    await log.stop()


async def test_a_client_whose_metadata_task_has_ended_is_not_tried_for_ever(
    log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append without answer would be claimed again and again; this one ends the worker."""

    async def broken(*_: Any) -> bool:
        raise ValueError("no metadata")

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    producer: Any = log._producer
    monkeypatch.setattr(producer, "send", hang)
    monkeypatch.setattr(log, "append_deadline_s", 0.1)
    with pytest.raises(OutcomeUnknownError):
        await log.append("t", 0, b"", ())
    monkeypatch.setattr(producer.client, "_metadata_update", broken)
    producer.client.force_metadata_update()
    with pytest.raises(TreasureMapError, match="task for metadata has ended: ValueError") as caught:
        await log.append("t", 0, b"", ())
    assert not isinstance(caught.value, OutcomeUnknownError)
    # The client's own stop would raise it once more.
    producer.client._sync_task = None
