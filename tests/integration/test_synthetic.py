"""The synthetic radar: the same for the same seed, skewed, a little out of order, and it ends."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
import time
from typing import Any

import aiokafka
import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.demo import radar as synthetic
from app.demo.embedded_broker import EmbeddedBroker
from app.demo.flights.events import MAP_FILE
from app.demo.radar import DISORDER_MS_MAX, SECTORS, contacts, stream
from app.mapfile.load import load_map
from tables.model.layer import Map
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat

NOW_MS = 1_700_000_000_000


@pytest.fixture
def themap() -> Map:
    """Give the map of the demo."""
    return load_map(MAP_FILE)


def test_the_same_seed_gives_the_same_contacts() -> None:
    """And another seed gives others."""
    one, same, other = (list(contacts(random.Random(seed), NOW_MS, 100)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_contacts_have_the_fields_and_types_of_the_map(themap: Map) -> None:
    """A contact is never malformed."""
    source = themap.source(synthetic.SOURCE)
    types = {"string": str, "int": int, "float": float}
    for sector, value in contacts(random.Random(3), NOW_MS, 500):
        event = orjson.loads(value)
        assert event["sector"] == sector
        assert event[source.type_field] == "radar.contact"
        assert type(event[source.time_field]) is int
        assert all(type(event[field.name]) is types[field.type] for field in source.fields)


def test_event_times_lie_at_most_the_disorder_before_now() -> None:
    """They are out of order, and never ahead of the clock."""
    at = [orjson.loads(value)["at"] for _, value in contacts(random.Random(4), NOW_MS, 5_000)]
    assert NOW_MS - DISORDER_MS_MAX <= min(at) < NOW_MS - DISORDER_MS_MAX // 2
    assert max(at) == NOW_MS
    assert any(later < earlier for earlier, later in itertools.pairwise(at))


def test_the_maps_disorder_covers_the_streams(themap: Map) -> None:
    """No contact is late if nothing but the stream's own disorder delays it."""
    [layer] = themap.base_layers(synthetic.SOURCE)
    assert layer.max_out_of_orderness_ms >= DISORDER_MS_MAX


def test_sectors_are_skewed() -> None:
    """The busiest of 16 sees over a quarter, the quietest under a thirtieth; all see something."""
    counts = collections.Counter(s for s, _ in contacts(random.Random(5), NOW_MS, 20_000))
    assert set(counts) == set(SECTORS)
    assert counts[SECTORS[0]] > 20_000 / 4
    assert counts[SECTORS[-1]] < 20_000 / 30


async def make_topic(broker: str, themap: Map) -> None:
    """Make the radar's topic as the map has it."""
    source = themap.source(synthetic.SOURCE)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    await admin.create_topics([NewTopic(source.topic, source.partitions, 1)])
    await admin.close()


async def test_the_stream_keeps_its_rate_and_ends_with_heartbeats(themap: Map) -> None:
    """Exactly rate times seconds contacts, and past them a time at which all windows are sealed."""
    source = themap.source(synthetic.SOURCE)
    with EmbeddedBroker() as broker:
        await make_topic(broker.bootstrap, themap)
        start_ms = time.time_ns() // 1_000_000
        written = await stream(broker.bootstrap, themap, seconds=0.5, rate=1_000, seed=6)
        end_ms = time.time_ns() // 1_000_000
        async with aiokafka.AIOKafkaConsumer(bootstrap_servers=broker.bootstrap) as consumer:
            places = [aiokafka.TopicPartition(source.topic, n) for n in range(source.partitions)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            ends = await consumer.end_offsets(places)
            records: dict[aiokafka.TopicPartition, list[Any]] = {place: [] for place in places}
            while any(len(records[place]) < ends[place] for place in places):
                for place, got in (await consumer.getmany(timeout_ms=1_000)).items():
                    records[place] += got
    assert written == 500
    assert sum(bool(r.value) for own in records.values() for r in own) == 500
    for own in records.values():
        promised_ms = 0
        for record in own:
            if record.value is None:
                promised_ms = decode_heartbeat(dict(record.headers)[HEARTBEAT_HEADER])
            else:
                at = orjson.loads(record.value)["at"]
                assert promised_ms <= at
                assert start_ms - DISORDER_MS_MAX <= at <= end_ms
        assert own[-1].value is None
        hour_ms = 3_600_000
        assert promised_ms >= (start_ms // hour_ms + 1) * hour_ms


async def test_a_stream_that_is_stopped_still_ends_with_heartbeats(themap: Map) -> None:
    """Stopping is an end like any other, long before the time is up."""
    stop = asyncio.Event()
    with EmbeddedBroker() as broker:
        await make_topic(broker.bootstrap, themap)

        def progress(count: int) -> None:
            if count >= 100:
                stop.set()

        async with asyncio.timeout(30):
            written = await stream(
                broker.bootstrap, themap, seconds=3_600, rate=2_000, stop=stop, progress=progress
            )
        source = themap.source(synthetic.SOURCE)
        async with aiokafka.AIOKafkaConsumer(bootstrap_servers=broker.bootstrap) as consumer:
            places = [aiokafka.TopicPartition(source.topic, n) for n in range(source.partitions)]
            ends = await consumer.end_offsets(places)
    assert 100 <= written < 3_600 * 2_000
    # Each partition has the first heartbeat and the last; more if a second went by.
    assert sum(ends.values()) >= written + 2 * source.partitions
