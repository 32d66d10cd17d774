"""Avro of a schema registry on a real worker: schemas that it learns, an outage, unknown ids."""

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
from tests.support.cluster import Cluster
from tests.support.schema_registry import FakeRegistry
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


def record(chance: random.Random, number: int, schema: Any, now_ms: int) -> bytes:
    """Return a reading of the last minutes."""
    at = (now_ms - chance.randrange(60_000)) * 1_000
    value: Any = chance.choice([None, chance.choice([5, 7]) if schema is LATER else 1.5])
    event = {"kind": "reading.a", "meta": {"at": at, "device": "d"}, "value": value, "unit": "K"}
    return framed(number, encoded(schema, event))


@pytest.mark.slow
async def test_records_of_a_registry_wait_for_it_and_are_exact(broker: str, tmp_path: Path) -> None:
    """Those of an unknown id, and broken ones, become dead letters; no others do."""
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP)
    chance = random.Random(5)
    with FakeRegistry({1: json.dumps(FIRST)}) as registry:
        registry.is_away = True
        given = {"schema_registry_url": registry.url}
        with Cluster(broker, tmp_path, map_file=map_file, archive="embedded", **given) as cluster:
            now_ms = wall_clock_ms()
            async with BatchProducer(broker, "plant.readings") as feed:
                for part in range(2):
                    values = [record(chance, 1, FIRST, now_ms) for _ in range(500)]
                    feed.add(part, [None] * len(values), values)
            worker = cluster.add()

            async def is_held_back() -> bool:
                said = await asyncio.to_thread(worker.readiness)
                return "the schema registry does not answer" in said

            await until(is_held_back, 60)
            ledger = await asyncio.to_thread(worker.get, "ledger")
            rows = ledger["records"]["plant.readings"].values()
            assert sum(row["with_events"] + row["unreadable"] for row in rows) == 0
            registry.schemas[2] = json.dumps(LATER)
            registry.is_away = False
            async with BatchProducer(broker, "plant.readings") as feed:
                values = [record(chance, 2, LATER, now_ms) for _ in range(300)]
                values += [b"\1" + values[0], values[1][:-3], framed(9, b"\2\2"), b"\0\0", b"{}"]
                chance.shuffle(values)
                feed.add(0, [None] * len(values), values)

            async def is_done() -> bool:
                found = await asyncio.to_thread(worker.get, "ledger") or {}
                rows = found.get("records", {}).get("plant.readings", {}).values()
                return bool(sum(row["with_events"] for row in rows) == 1_300)

            await until(is_done, 60)
            flags = {"map_file": str(map_file), "brokers": broker, **given}
            settings = load_settings(flags | {"archive_folder": str(tmp_path / "archive")}, {})
            report = await verify(settings, urls=[worker.url])
            assert report.equal, [str(one) for one in report.differences]
            assert report.ledger["events.classified"] == 1_300
            assert report.ledger["unreadable.avro"] == 5
            assert registry.asked.count("/schemas/ids/2") < 3
