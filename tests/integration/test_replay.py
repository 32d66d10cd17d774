"""A replay writes every event once, in order, with the heartbeats that let windows close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import aiokafka
import msgspec
import polars as pl
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from app.commands.replay import command
from app.demo.embedded_broker import EmbeddedBroker
from app.demo.flights import events
from app.kafka.batch_producer import BATCH_BYTES_MAX, BatchProducer, ProducerError, partition_of
from app.kafka.brokers import has_idempotent_producer
from app.load.replay import Step, keyed, replay, settled_ms, steps
from app.mapfile.load import load_map
from tables.model.errors import TreasureMapError
from tables.model.window import DAY_MS
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat

HOUR_MS = DAY_MS // 24
# 1 January 2013, 00:00 UTC.
NEW_YEAR_MS = 1_356_998_400_000


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """Run an embedded broker; give its bootstrap address. Tests bring their own topics."""
    with EmbeddedBroker() as running:
        yield running.bootstrap


async def make_topic(broker: str, topic: str, partitions: int) -> None:
    """Make a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1)])
    await admin.close()


async def read_topic(broker: str, topic: str, partitions: int) -> dict[int, list[ConsumerRecord]]:
    """Return everything that stands in a topic, by partition."""
    async with aiokafka.AIOKafkaConsumer(
        bootstrap_servers=broker, auto_offset_reset="earliest"
    ) as consumer:
        places = [aiokafka.TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        records: dict[int, list[ConsumerRecord]] = {place.partition: [] for place in places}
        while any(len(records[place.partition]) < ends[place] for place in places):
            for place, got in (await consumer.getmany(timeout_ms=1_000)).items():
                records[place.partition] += got
    return records


def recording(times_ms: list[int], keys: str = "AB") -> pl.DataFrame:
    """Return records at ``times_ms``, of keys in turn."""
    return pl.DataFrame(
        {
            "at": times_ms,
            "key": [keys[number % len(keys)] for number in range(len(times_ms))],
            "value": [f'{{"at":{at}}}' for at in times_ms],
        },
        schema_overrides={"at": pl.Int64},
    )


def beats(records: list[ConsumerRecord]) -> list[int]:
    """Return the times of the heartbeats among ``records``."""
    return [
        decode_heartbeat(dict(record.headers)[HEARTBEAT_HEADER])
        for record in records
        if record.value is None
    ]


def test_steps_end_at_days_with_a_heartbeat_for_the_next() -> None:
    """Two events on day 0, one on day 2, then the settled time.

    day 0     1      2      9
      e e |      |   e  |   |
          h             h   h
    """
    times = pl.Series([5, 7, 2 * DAY_MS + 1])
    assert list(steps(times, 0, 9 * DAY_MS)) == [
        Step(0, 2, 0.0, DAY_MS),
        Step(2, 3, 0.0, 3 * DAY_MS),
        Step(3, 3, 0.0, 9 * DAY_MS),
    ]


@given(
    st.lists(st.integers(0, 20 * DAY_MS), min_size=1, max_size=300).map(sorted),
    st.floats(0, 100),
)
def test_steps_cover_every_record_once_and_never_promise_too_much(
    times: list[int], seconds: float
) -> None:
    """They join up, fall due in order, and no record comes after a heartbeat past it."""
    made = list(steps(pl.Series(times, dtype=pl.Int64), seconds, 99 * DAY_MS))
    assert [step.first for step in made] == [0, *(step.last for step in made[:-1])]
    assert made[-1].last == len(times)
    assert made[-1].heartbeat_ms == 99 * DAY_MS
    due = [step.due_seconds for step in made]
    assert due == sorted(due)
    assert due[-1] == pytest.approx(seconds)
    promised = 0
    for step in made:
        assert all(time_ms >= promised for time_ms in times[step.first : step.last])
        promised = step.heartbeat_ms or promised


def test_the_last_heartbeat_lies_past_every_window_and_lateness() -> None:
    """The flights' last event is in January 2014, so its month ends with that month."""
    themap = load_map(events.MAP_FILE)
    last_ms = NEW_YEAR_MS + 365 * DAY_MS + 5 * HOUR_MS
    settled = settled_ms(themap, "flights", last_ms)
    assert settled == NEW_YEAR_MS + (365 + 31) * DAY_MS + HOUR_MS + DAY_MS
    for layer in themap.layers:
        end_ms = layer.window.end(layer.window.start(last_ms))
        slack_ms = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
        assert layer.name.startswith("contacts") or settled - slack_ms >= end_ms


def test_partitions_are_those_of_kafkas_own_producers() -> None:
    """Numbers of org.apache.kafka.common.utils.Utils.murmur2, from Kafka's UtilsTest."""
    murmur2 = {b"21": -973_932_308, b"foobar": -790_332_482, b"abc": 479_470_107}
    for key, number in murmur2.items():
        assert partition_of(key, 1_000_003) == (number & 0x7FFFFFFF) % 1_000_003


async def test_records_of_a_replay_stand_in_time_order_on_their_keys_partition(
    broker: str,
) -> None:
    """Every record once, with key, value and an append time of now."""
    await make_topic(broker, "ordered", 4)
    times = [NEW_YEAR_MS + number * HOUR_MS for number in range(100)]
    before_ms = time.time_ns() // 1_000_000
    written = await replay(
        broker, "ordered", recording(times, "ABCDE"), NEW_YEAR_MS + 30 * DAY_MS, seconds=0
    )
    found = await read_topic(broker, "ordered", 4)
    assert written == 100
    values = []
    for partition, records in found.items():
        own = [record for record in records if record.value is not None]
        assert all(partition_of(record.key, 4) == partition for record in own)
        assert all(record.timestamp >= before_ms for record in own)
        at = [int(record.value[6:-1]) for record in own]
        assert at == sorted(at)
        values += at
    assert sorted(values) == times


async def test_records_without_key_are_spread_over_all_partitions_in_time_order(
    broker: str,
) -> None:
    """A source that is keyed by nothing gets them without key, evenly and each once."""
    await make_topic(broker, "spread", 4)
    source = load_map(events.MAP_FILE).source("flights")
    times = [NEW_YEAR_MS + number * HOUR_MS for number in range(100)]
    assert keyed(recording(times, "AB"), source)["key"].null_count() == 0
    records = keyed(recording(times, "AB"), msgspec.structs.replace(source, keyed_by=()))
    await replay(broker, "spread", records, NEW_YEAR_MS + 30 * DAY_MS, seconds=0)
    found = await read_topic(broker, "spread", 4)
    values = []
    for partition in range(4):
        own = [record for record in found[partition] if record.value is not None]
        assert [record.key for record in own] == [None] * 25
        at = [int(record.value[6:-1]) for record in own]
        assert at == sorted(at)
        assert at != times[partition::4]
        values += at
    assert sorted(values) == times


async def test_every_partition_gets_every_heartbeat_even_an_empty_one(broker: str) -> None:
    """One key fills one of three partitions; all get three days and the settled time."""
    await make_topic(broker, "beating", 3)
    times = [NEW_YEAR_MS + number * HOUR_MS for number in range(60)]
    settled = NEW_YEAR_MS + 99 * DAY_MS
    await replay(broker, "beating", recording(times, "A"), settled, seconds=0)
    found = await read_topic(broker, "beating", 3)
    wanted = [NEW_YEAR_MS + day * DAY_MS for day in (1, 2, 3)] + [settled]
    assert [beats(records) for records in found.values()] == [wanted] * 3
    [own] = [records for records in found.values() if len(records) > len(wanted)]
    assert [record.offset for record in own if record.value is None] == [24, 49, 62, 63]


async def test_a_replay_takes_the_time_it_is_given(broker: str) -> None:
    """The last event and heartbeat are due at the end, none of them much before."""
    await make_topic(broker, "paced", 1)
    start = time.monotonic()
    seen: list[tuple[float, int]] = []
    await replay(
        broker, "paced", recording(list(range(1_000))), DAY_MS, seconds=0.5,
        progress=lambda count: seen.append((time.monotonic() - start, count)),
    )  # fmt: skip
    assert seen[-1][1] == 1_000
    assert seen[-1][0] >= 0.5
    # At every moment no more is out than is due, up to the step that is being sent.
    assert all(count <= 1_000 * (elapsed / 0.5) + 1 for elapsed, count in seen)


async def test_more_than_a_batch_of_records_keeps_its_order(broker: str) -> None:
    """Full batches are put aside until the flush, heartbeats among them too."""
    await make_topic(broker, "large", 1)
    value = b"x" * (BATCH_BYTES_MAX // 10)
    async with BatchProducer(broker, "large") as feed:
        feed.add(0, [b"%d" % number for number in range(35)], [value] * 35)
        feed.heartbeat(5)
        feed.add(0, [b"35"], [value])
    [records] = (await read_topic(broker, "large", 1)).values()
    keys = [record.key for record in records]
    assert keys == [*(b"%d" % number for number in range(35)), None, b"35"]


async def test_a_missing_topic_is_named_with_how_to_make_it(broker: str) -> None:
    """A replay before the map was applied says so."""
    with pytest.raises(ProducerError, match=r"map apply FILE"):
        await replay(broker, "absent", recording([1]), DAY_MS, seconds=0)


async def test_an_unreachable_broker_is_named() -> None:
    """Nothing listens on port 1."""
    with pytest.raises(TreasureMapError, match=r"nothing listens at 127\.0\.0\.1:1; .*`brokers`"):
        await replay("127.0.0.1:1", "any", recording([1]), DAY_MS, seconds=0)


async def test_the_embedded_broker_has_no_idempotent_producer(broker: str) -> None:
    """It knows the request and answers it with an error."""
    assert not await has_idempotent_producer(broker)


@pytest.mark.kafka
async def test_kafka_has_an_idempotent_producer_and_takes_a_replay(kafka: str) -> None:
    """The same replay, through an idempotent producer."""
    await make_topic(kafka, "replayed", 2)
    assert await has_idempotent_producer(kafka)
    times = [NEW_YEAR_MS + number * HOUR_MS for number in range(50)]
    await replay(kafka, "replayed", recording(times), NEW_YEAR_MS + 9 * DAY_MS, seconds=0)
    found = await read_topic(kafka, "replayed", 2)
    values = [record.value for records in found.values() for record in records if record.value]
    assert sorted(values) == sorted(f'{{"at":{at}}}'.encode() for at in times)


@pytest.mark.slow
async def test_the_command_replays_all_flights(broker: str) -> None:
    """Every event of the year stands in the topic, with 366 days of heartbeats and the last."""
    await make_topic(broker, "flights.raw", 4)
    done = await asyncio.to_thread(
        CliRunner().invoke, command, ["flights", "--brokers", broker, "--seconds", "0"]
    )
    assert done.exit_code == 0, done.output
    assert "wrote 1,001,615 events" in done.output
    async with aiokafka.AIOKafkaConsumer(bootstrap_servers=broker) as consumer:
        places = [aiokafka.TopicPartition("flights.raw", number) for number in range(4)]
        ends = await consumer.end_offsets(places)
    assert sum(ends.values()) == 1_001_615 + 4 * 367
