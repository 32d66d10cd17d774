"""Silent partitions of a running worker: sent early by its timer, closed by its heartbeats."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.config.settings import load_settings
from app.kafka.batch_producer import BatchProducer
from app.verify import verify
from tests.support.cluster import Cluster, Worker
from tests.support.waiting import until

MAP_TEXT = """
revision = {revision}
name = "quiet"
[sources.shop]
topic = "quiet.raw"
partitions = 3
time = "at"
type = "type"
keyed_by = ["store"]
idle_heartbeat = "{idle_heartbeat}"
[sources.shop.fields]
store = "string"
type = "string"
[layers.fine]
source = "shop"
events = ["order"]
key = ["store"]
window = "500ms"
allowed_lateness = "500ms"
measures = ["count"]
[layers.coarse]
from = "fine"
key = ["store"]
window = "1s"
[layers.kinds]
source = "shop"
events = ["order"]
key = ["type"]
window = "500ms"
measures = ["count"]
"""
ARCHIVED = {"fine": 2, "coarse": 2, "kinds": 1}
START_MS = 1_700_000_040_000


async def write(brokers: str) -> None:
    """Write two events to each of two partitions; nothing follows."""
    async with BatchProducer(brokers, "quiet.raw") as feed:
        for partition, store in enumerate(("a", "b")):
            event = {"at": START_MS + partition, "type": "order", "store": store}
            feed.add(partition, [None] * 2, [orjson.dumps(event)] * 2)


async def layers(worker: Worker) -> dict[str, Any]:
    """Return the worker's status of its layers, by name."""
    found = await asyncio.to_thread(worker.get, "layers")
    return {row.name: row for row in found or []}


@pytest.mark.slow
async def test_open_cells_of_silent_partitions_are_archived_and_heartbeats_close_them(
    broker: str, tmp_path: Path
) -> None:
    """One partition never has an event; a coarser and a merged layer wait for it too.

    Open windows are verified as well: every layer has all that was written, closed or not.
    """
    file = tmp_path / "map.toml"
    file.write_text(MAP_TEXT.format(revision=1, idle_heartbeat="0s"))
    with Cluster(
        broker, tmp_path, map_file=file, archive="embedded", early_emit_ms="200"
    ) as cluster:
        worker = cluster.add()
        await write(broker)
        flags = {"map_file": str(file), "brokers": broker, "early_emit_ms": "200"}
        settings = load_settings(flags | {"archive_folder": str(tmp_path / "archive")}, {})

        async def sent_early() -> bool:
            found = await layers(worker)
            return bool(found) and all(row.archived_cells for row in found.values())

        await until(sent_early, 60)
        found = await layers(worker)
        assert {row.watermark_ms for row in found.values()} == {None}
        report = await verify(settings, urls=[worker.url])
        assert report.equal, [str(one) for one in report.differences]
        assert {one.layer: one.archived for one in report.layers} == ARCHIVED
        assert worker.stop() == 0

        file.write_text(MAP_TEXT.format(revision=2, idle_heartbeat="200ms"))
        worker.start()

        async def closed() -> bool:
            found = await layers(worker)
            return bool(found) and all(
                (row.floor_ms or 0) >= START_MS + 1_000 and not row.open_cells
                for row in found.values()
            )

        await until(closed, 60)
        ledger = await asyncio.to_thread(worker.get, "ledger")
        assert ledger["balanced"], ledger["problems"]
        records = ledger["records"]["quiet.raw"]
        assert [records[str(number)]["with_events"] for number in range(3)] == [2, 2, 0]
        assert all(row["heartbeat"] > 0 for row in records.values())
        assert worker.stop() == 0
