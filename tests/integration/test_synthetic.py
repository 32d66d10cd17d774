"""The demo's synthetic radar: it keeps its rate, its contacts are usable, and it ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import aiokafka
import orjson

from app.cluster.topics import apply_topics
from app.demo.embedded_broker import EmbeddedBroker
from app.demo.flights.events import MAP_FILE
from app.demo.run import radar
from app.load.generator import stream
from app.mapfile.load import load_map
from tables.model.clock import wall_clock_ms
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat


async def test_the_radar_keeps_its_rate_and_ends_with_heartbeats() -> None:
    """Exactly rate times seconds contacts, none late, and past them a time that seals all windows.

    A contact has a sector, and is of the type that the map's layers select.
    """
    themap = load_map(MAP_FILE)
    source = themap.source("radar")
    (layer,) = themap.base_layers("radar")
    told: list[int] = []
    with EmbeddedBroker() as broker:
        await apply_topics(broker.bootstrap, themap)
        start_ms = wall_clock_ms()
        plan = dataclasses.replace(radar(broker.bootstrap, seconds=0.5), rate=1_000)
        written = await stream(plan, told.append)
        end_ms = wall_clock_ms()
        async with aiokafka.AIOKafkaConsumer(bootstrap_servers=broker.bootstrap) as consumer:
            places = [aiokafka.TopicPartition(source.topic, n) for n in range(source.partitions)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            records: dict[aiokafka.TopicPartition, list[Any]] = {place: [] for place in places}
            while any(not own or own[-1].value is not None for own in records.values()):
                for place, got in (await consumer.getmany(timeout_ms=1_000)).items():
                    records[place] += got
    assert written == told[-1] == 500
    assert sum(bool(r.value) for own in records.values() for r in own) == 500
    disorder_ms = layer.max_out_of_orderness_ms
    for own in records.values():
        *contacts, last = own
        for record in contacts:
            event = orjson.loads(record.value)
            assert event[source.type_field] == "radar.contact"
            assert event["sector"].encode() == record.key
            assert start_ms - disorder_ms <= event[source.time_field] <= end_ms
        sealed_ms = decode_heartbeat(dict(last.headers)[HEARTBEAT_HEADER])
        hour_ms = 3_600_000
        assert sealed_ms >= (start_ms // hour_ms + 1) * hour_ms
