"""Avro of a schema registry on a worker: schemas that it learns, an outage, unusable ids."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.config.settings import load_settings
from app.kafka.batch_producer import BatchProducer
from app.verify import verify
from tables.model.clock import wall_clock_ms
from tests.support.avro import encoded, framed
from tests.support.cluster import Cluster, Worker
from tests.support.schema_registry import register
from tests.support.servers import ApicurioServer
from tests.support.waiting import until

MAP = """
revision = 1
name = "plant"
[sources.readings]
topic = "plant.readings"
partitions = 2
format = "avro"
time = {path = "meta.at"}
type = "kind"
keyed_by = ["device"]
[sources.readings.fields]
device = {path = "meta.device", type = "string", required = true}
value = "float"
[layers.minutes]
source = "readings"
events = ["reading.*"]
key = ["device"]
window = "1m"
allowed_lateness = "1h"
measures = ["count", "sum(value)"]
"""
META = {"type": "record", "name": "Meta", "fields": [
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "device", "type": "string"},
]}  # fmt: skip
FIRST: dict[str, Any] = {"type": "record", "name": "Reading", "fields": [
    {"name": "kind", "type": "string"}, {"name": "meta", "type": META},
    {"name": "value", "type": ["null", "double"]},
]}  # fmt: skip
LATER = FIRST | {"fields": [
    {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["K"]}},
    *FIRST["fields"][:2],
    {"name": "value", "type": ["null", "long", {
        "type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}]},
]}  # fmt: skip


SUBJECT = "plant.readings-value"
REFERRING = {"type": "record", "name": "Pair", "fields": [{"name": "left", "type": "Reading"}]}
UNUSABLE: tuple[tuple[str, dict[str, Any]], ...] = (
    ('{"$schema": "http://json-schema.org/draft-07/schema#"}', {"schemaType": "JSON"}),
    ('syntax = "proto3"; message Reading { int32 at = 1; }', {"schemaType": "PROTOBUF"}),
    (json.dumps(REFERRING),
     {"references": [{"name": "Reading", "subject": SUBJECT, "version": 1}]}),
)  # fmt: skip
"""Schemas of a registry that events are not read with."""

UNKNOWN = (0, 999, 2**31 - 1, 2**31, 2**32 - 1)
"""Ids that the registry has not given; it takes the last two for a wrong path."""


def record(chance: random.Random, number: int, schema: Any, now_ms: int) -> bytes:
    """Return a reading of the last minutes."""
    at = (now_ms - chance.randrange(60_000)) * 1_000
    value: Any = chance.choice([None, chance.choice([5, 7]) if schema is LATER else 1.5])
    event = {"kind": "reading.a", "meta": {"at": at, "device": "d"}, "value": value, "unit": "K"}
    return framed(number, encoded(schema, event))


@pytest.mark.slow
@pytest.mark.apicurio
async def test_records_of_a_registry_wait_for_it_and_are_exact(
    broker: str, schema_registry: ApicurioServer, tmp_path: Path
) -> None:
    """Those of an unusable id, and broken ones, become dead letters; no others do."""
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP)
    chance = random.Random(5)
    url = schema_registry.url
    first, later = (register(url, SUBJECT, json.dumps(schema)) for schema in (FIRST, LATER))
    bad_ids = [register(url, f"unusable{at}", text, **more)
               for at, (text, more) in enumerate(UNUSABLE)]  # fmt: skip
    bad_ids += UNKNOWN
    given = {"schema_registry_url": url}
    with Cluster(broker, tmp_path, map_file=map_file, archive="embedded", **given) as cluster:
        now_ms = wall_clock_ms()
        worker = cluster.add()
        for part in range(2):
            await send(broker, part, [record(chance, first, FIRST, now_ms) for _ in range(500)])
        await until(lambda: counts(worker) == (1_000, 0), 60)

        schema_registry.stop()
        values = [record(chance, later, LATER, now_ms) for _ in range(300)]
        bad = [b"\1" + values[0], values[1][:-3], b"\0\0", b"{}"]
        bad += [framed(number, b"\2\2") for number in bad_ids]
        mixed = [*values[1:], *bad]
        chance.shuffle(mixed)
        await send(broker, 0, [values[0], *mixed])
        await until(lambda: "the schema registry does not answer" in worker.readiness(), 60)
        assert counts(worker) == (1_000, 0)

        schema_registry.spawn()
        await asyncio.to_thread(schema_registry.wait_until_serving)
        await until(lambda: counts(worker) == (1_300, len(bad)), 60)
        flags = {"map_file": str(map_file), "brokers": broker, **given}
        settings = load_settings(flags | {"archive_folder": str(tmp_path / "archive")}, {})
        report = await verify(settings, urls=[worker.url])
        assert report.equal, [str(one) for one in report.differences]
        assert report.ledger["events.classified"] == 1_300
        assert report.ledger["unreadable.avro"] == len(bad)


async def send(broker: str, part: int, values: list[bytes]) -> None:
    """Write records to a partition."""
    async with BatchProducer(broker, "plant.readings") as feed:
        feed.add(part, [None] * len(values), values)


def counts(worker: Worker) -> tuple[int, int]:
    """Return how many records of a worker had events, and how many were unreadable."""
    ledger = worker.get("ledger") or {}
    rows = ledger.get("records", {}).get("plant.readings", {}).values()
    return sum(row["with_events"] for row in rows), sum(row["unreadable"] for row in rows)
