"""Feeds from end to end: a real worker at a real Kafka, amended, killed, and followed."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.cluster import Cluster
from tests.support.waiting import until
from treasure_map import FeedCell, Follower, QueryClient, follow

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
LAYERS = ("minute", "quarter", "hour")
MAP = """
revision = 1
name = "{name}"
[sources.orders]
topic = "{name}.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["store"]
[sources.orders.fields]
store = "string"
item = "string"
amount = "int"
[layers.minute]
source = "orders"
events = ["order"]
key = ["store", "item"]
window = "1m"
allowed_lateness = "1d"
measures = ["count", "sum(amount)", "mean(amount)"]
publish = true
[layers.quarter]
source = "orders"
events = ["order"]
key = ["store"]
window = "15m"
allowed_lateness = "1d"
measures = ["count", "max(amount)"]
publish = "arrow"
# Merged, as the source is not keyed by items.
[layers.hour]
source = "orders"
events = ["order"]
key = ["item"]
window = "1h"
allowed_lateness = "1d"
measures = ["sum(amount)"]
partitions = 3
publish = "json"
"""


class Scene:
    """A cluster of one worker, a producer, and a follower of each layer."""

    def __init__(self, cluster: Cluster, producer: AIOKafkaProducer) -> None:
        self.cluster = cluster
        self.followers: dict[str, Follower] = {}
        self.seen: dict[str, list[FeedCell]] = {}
        self._producer = producer

    async def order(self, at: int, store: str, item: str, amount: int) -> None:
        """Write one event, in the partition of its store."""
        event = {"at": at, "type": "order", "store": store, "item": item, "amount": amount}
        topic = self.cluster.map.source("orders").topic
        partition = int(store == "south")
        await self._producer.send_and_wait(topic, json.dumps(event).encode(), partition=partition)

    async def hour_passes(self, hour: int) -> None:
        """Write an event in each partition that closes all windows up to an hour."""
        for store in ("north", "south"):
            await self.order(hour * HOUR_MS, store, "rye", 1)

    async def follow(self, layer: str) -> None:
        """Collect the cells that a layer publishes, until cancelled."""
        seen = self.seen[layer] = []
        follower = follow(layer, self.cluster.brokers, map_name=self.cluster.map.name)
        self.followers[layer] = follower
        async with follower:
            async for cell in follower:
                seen.append(cell)  # noqa: PERF401 - each is looked at as it comes

    def newest(self, layer: str) -> dict[tuple[Any, ...], FeedCell]:
        """Return the last version seen of each cell."""
        return newest(self.seen.get(layer, []))

    async def answered(self, layer: str, hours: int) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Return the measures of the cells of the first hours, as the worker answers."""

        def ask() -> dict[tuple[Any, ...], dict[str, Any]]:
            with QueryClient(self.cluster.workers[0].url) as client:
                cells = client.cells(layer, {}, 0, hours * HOUR_MS).cells
            return {(cell.window_start, *cell.key.values()): cell.measures for cell in cells}

        return await asyncio.to_thread(ask)


def newest(cells: Iterator[FeedCell] | list[FeedCell]) -> dict[tuple[Any, ...], FeedCell]:
    """Return the last of each cell."""
    return {(cell.window_start, *cell.key.values()): cell for cell in cells}


def measures(cells: dict[tuple[Any, ...], FeedCell]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the measures of cells."""
    return {place: cell.measures for place, cell in cells.items()}


@pytest.fixture
async def scene(kafka: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """Return a scene with a running worker and followers."""
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.replace("{name}", f"m{uuid.uuid4().hex[:8]}"))
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    with Cluster(kafka, tmp_path, map_file=map_file) as cluster:
        cluster.add()
        made = Scene(cluster, producer)
        tasks = [asyncio.create_task(made.follow(layer)) for layer in LAYERS]
        yield made
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended
    await producer.stop()


def followed(brokers: str, map_name: str, layer: str) -> dict[tuple[Any, ...], FeedCell]:
    """Return the newest cells of a feed, read without async from its beginning to its end."""
    with follow(layer, brokers, map_name=map_name, to_end=True) as cells:
        return newest(cells)


async def test_feeds_are_right_over_late_events_and_restarts(scene: Scene) -> None:
    """Each follower ends with the worker's answers, and is given no version twice.

    hour 0            hour 1       hour 2        hour 3
    e e e             e            e (late, 0)   kill, e
    """
    for minute, store, item, amount in (
        (0, "north", "rye", 2**62), (0, "north", "rye", 2**62), (3, "north", "oat", 7),
        (3, "south", "rye", 2**62), (20, "south", "oat", -5),
    ):  # fmt: skip
        await scene.order(minute * MINUTE_MS, store, item, amount)
    await scene.hour_passes(1)

    async def closed() -> bool:
        return [len(scene.newest(layer)) for layer in LAYERS] == [4, 3, 2]

    await until(closed, 60)
    first = {layer: scene.newest(layer) for layer in LAYERS}
    rye = first["minute"][0, "north", "rye"]
    assert rye.measures == {"count": 2, "sum_amount": 2**63, "mean_amount": 2.0**62}
    assert (rye.layer, rye.map_revision, rye.window_end) == ("minute", 1, MINUTE_MS)
    assert first["hour"][0, "rye"].measures == {"sum_amount": 3 * 2**62}

    await scene.order(MINUTE_MS // 2, "north", "rye", 11)

    async def amended() -> bool:
        return all(
            scene.newest(layer)[place].version > first[layer][place].version
            for layer, place in (
                ("minute", (0, "north", "rye")), ("quarter", (0, "north")), ("hour", (0, "rye")),
            )
        )  # fmt: skip

    await until(amended, 60)
    amended_rye = scene.newest("minute")[0, "north", "rye"]
    assert amended_rye.measures["sum_amount"] == 2**63 + 11
    oat = 3 * MINUTE_MS, "north", "oat"
    assert scene.newest("minute")[oat] == first["minute"][oat]

    (worker,) = scene.cluster.workers
    worker.signal(signal.SIGKILL)
    worker.start()
    await scene.hour_passes(2)

    async def repeated() -> bool:
        there: dict[str, set[tuple[Any, ...]]] = {
            "minute": {(HOUR_MS, "north", "rye"), (HOUR_MS, "south", "rye")},
            "quarter": {(HOUR_MS, "north"), (HOUR_MS, "south")},
            "hour": {(HOUR_MS, "rye")},
        }
        return all(
            scene.followers[layer].repeated and places <= scene.newest(layer).keys()
            for layer, places in there.items()
        )

    await until(repeated, 90)
    for layer in LAYERS:
        identities = [
            (cell.window_start, *cell.key.values(), cell.version) for cell in scene.seen[layer]
        ]
        assert len(set(identities)) == len(identities)
        found = measures(scene.newest(layer))
        assert found == await scene.answered(layer, 2)
        again = await asyncio.to_thread(
            followed, scene.cluster.brokers, scene.cluster.map.name, layer
        )
        assert measures(again) == found
    assert [f.unreadable for f in scene.followers.values()] == [0, 0, 0]
