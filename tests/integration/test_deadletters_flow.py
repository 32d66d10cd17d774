"""Bad input and its fix: letters of a running worker, a better map, a replay, all rows."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from aiokafka import AIOKafkaProducer

from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat
from tests.support.cluster import Cluster, Worker
from tests.support.waiting import until
from treasure_map.query import QueryClient

MAP_TEXT = """
revision = {revision}
name = "fix"
[sources.shop]
topic = "fix.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["store"]
record_bytes_max = {limit}
[sources.shop.fields]
store = "string"
amount = "int"
[layers.orders]
source = "shop"
events = {events}
key = ["store"]
window = "1m"
allowed_lateness = "1h"
measures = ["count", "sum(amount)"]
"""
BEFORE = MAP_TEXT.format(revision=1, limit=2_000, events='["order.paid"]')
AFTER = MAP_TEXT.format(revision=2, limit=100_000, events='["order.*"]')
WITH_LATE = (
    AFTER.replace("revision = 2", "revision = 3")
    + """
[sources.late]
topic = "fix.too-late"
partitions = 2
time = "at"
type = "type"
keyed_by = ["store"]
[sources.late.fields]
store = "string"
amount = "int"
[layers.orders_late]
source = "late"
events = ["order.*"]
key = ["store"]
window = "1m"
allowed_lateness = "30d"
measures = ["count", "sum(amount)"]
"""
)
START_MS = 1_700_000_040_000  # the start of a minute
RECORDS = 60
"""Those of :func:`write_events`, ten events each."""


def events() -> list[dict[str, Any]]:
    """Return 600 events of ten minutes, of two types in turn."""
    return [
        {
            "at": START_MS + number * 1_000,
            "type": ("order.paid", "order.lost")[number % 2],
            "store": f"s{number % 3}",
            "amount": number,
        }
        for number in range(600)
    ]


def record(kind: int, batch: list[dict[str, Any]]) -> bytes:
    """Return a batch as lines of JSON, or as Arrow."""
    if kind == 0:
        return b"\n".join(map(orjson.dumps, batch))
    file = io.BytesIO()
    pl.DataFrame(batch).write_ipc_stream(file, compression="lz4")
    return file.getvalue()


async def write_events(producer: AIOKafkaProducer) -> None:
    """Write the events; those of one store go to one partition."""
    for partition, stores in ((0, {"s0", "s2"}), (1, {"s1"})):
        own = [event for event in events() if event["store"] in stores]
        for first in range(0, len(own), 10):
            await producer.send_and_wait(
                "fix.raw", record(first // 10 % 2, own[first : first + 10]), partition=partition
            )


async def heartbeat(producer: AIOKafkaProducer, time_ms: int) -> None:
    """Say on both partitions that there is nothing before a time."""
    headers = [(HEARTBEAT_HEADER, encode_heartbeat(time_ms))]
    for partition in range(2):
        await producer.send_and_wait("fix.raw", key=b"", partition=partition, headers=headers)


async def write(brokers: str) -> None:
    """Write the events, and some more in a record that is too large for the first map."""
    producer = AIOKafkaProducer(bootstrap_servers=brokers)
    await producer.start()
    await write_events(producer)
    # Forty lines of JSON are more than the first map lets a record have.
    more = [event | {"at": event["at"] + 1} for event in events() if event["store"] == "s1"][:40]
    await producer.send_and_wait("fix.raw", record(0, more), partition=1)
    await heartbeat(producer, START_MS + 600_000)
    await producer.stop()


async def applied(worker: Worker, records: int = 0) -> dict[str, Any]:
    """Return the ledger once all that is in the source has been applied, at least so many records.

    A worker knows the end of a partition as of its last fetch.
    """
    found: dict[str, Any] = {}

    async def all_read() -> bool:
        nonlocal found
        found = await asyncio.to_thread(worker.get, "ledger") or {}
        rows = found.get("records", {}).get("fix.raw", {}).values()
        enough = sum(row["position"] for row in rows) >= records
        return enough and len(rows) == 2 and all(row["position"] == row["end"] for row in rows)

    await until(all_read, 60)
    return found


def answers(worker: Worker, layer: str = "orders") -> dict[tuple[str, int], tuple[Any, Any]]:
    """Return count and sum of every cell."""
    with QueryClient(worker.url) as client:
        answer = client.cells(layer, {}, START_MS, START_MS + 3_600_000, limit=1_000)
    return {
        (str(cell.key["store"]), cell.window_start): (
            cell.measures["count"],
            cell.measures["sum_amount"],
        )
        for cell in answer.cells
    }


def truth(*, more: bool = True) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the right cells once every event was folded."""
    again = [event | {"at": event["at"] + 1} for event in events() if event["store"] == "s1"][:40]
    cells: dict[tuple[str, int], tuple[int, int]] = {}
    for event in [*events(), *again] if more else events():
        place = (event["store"], event["at"] - event["at"] % 60_000)
        count, total = cells.get(place, (0, 0))
        cells[place] = (count + 1, total + event["amount"])
    return cells


@pytest.mark.slow
async def test_letters_of_a_poor_map_are_folded_after_its_fix(broker: str, tmp_path: Path) -> None:
    """Types that no layer selected, and records over the limit, are there in the end, once each."""
    file = tmp_path / "map.toml"
    file.write_text(BEFORE)
    with Cluster(broker, tmp_path, map_file=file, archive="embedded") as cluster:
        worker = cluster.add()
        await write(broker)
        ledger = await applied(worker, RECORDS + 3)
        assert ledger["events"]["unclassified"] == 300
        assert ledger["records"]["fix.raw"]["1"]["oversized"] == 1
        assert ledger["layers"]["orders"]["folded"] == 300
        counted = await asyncio.to_thread(cluster.run, "deadletters", "count", "--json")
        rows = {row["reason"]: row for row in map(orjson.loads, counted.splitlines())}
        assert rows["unclassified"]["events"] == 300
        assert rows["oversized"]["letters"] == 1
        assert worker.stop() == 0

        file.write_text(AFTER)
        worker = cluster.add()
        told = await asyncio.to_thread(cluster.run, "deadletters", "replay")
        assert "is folded and not shown" in told
        await until(lambda: _folded(worker, 640), 60)
        ledger = await applied(worker)
        assert ledger["balanced"], ledger["problems"]
        assert answers(worker) == truth()
        assert await asyncio.to_thread(cluster.run, "deadletters", "count", "--json") == ""

        # The day is over; then all events come once more, and are late.
        before = sum(row["position"] for row in ledger["records"]["fix.raw"].values())
        producer = AIOKafkaProducer(bootstrap_servers=broker)
        await producer.start()
        await heartbeat(producer, START_MS + 86_400_000)
        await write_events(producer)
        await producer.stop()
        ledger = await applied(worker, before + RECORDS + 2)
        assert ledger["layers"]["orders"]["too_late"] == 600
        assert worker.stop() == 0
        file.write_text(WITH_LATE)
        await asyncio.to_thread(cluster.run, "map", "apply", str(file))
        worker = cluster.add()
        late = ["deadletters", "replay", "--late", "--layer", "orders", "--to", "fix.too-late"]
        assert "replayed 60 letters" in await asyncio.to_thread(cluster.run, *late)
        await until(lambda: _folded(worker, 600, "orders_late"), 60)
        assert answers(worker, "orders_late") == truth(more=False)
        assert answers(worker) == truth()
        assert "replayed 0 letters" in await asyncio.to_thread(cluster.run, *late)


async def _folded(worker: Worker, count: int, layer: str = "orders") -> bool:
    ledger = await asyncio.to_thread(worker.get, "ledger")
    return ledger is not None and ledger["layers"][layer]["folded"] == count
