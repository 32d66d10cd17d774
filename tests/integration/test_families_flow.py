"""Families of real workers: while they come, die and go, every exact answer is the truth.

Kafka and Cassandra are real. Readers ask any worker for random ranges of two families, one keyed
and one merged, and keep the answers; when all is over, each answer that says ``exact`` is
compared with a fold of the log that was written, up to its ``as_of``, in plain Python.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiokafka import AIOKafkaProducer

from tests.support.cluster import Cluster, Worker
from tests.support.waiting import beats, until

MAP = """
revision = 1
name = "NAME"

[sources.shop]
topic = "NAME.raw"
partitions = 4
time = "at"
type = "type"
keyed_by = ["store"]

[sources.shop.fields]
store = "int"
region = "string"
cents = "int"

[layers.orders]
source = "shop"
events = ["order"]
key = ["store", "region"]
window = "5s"
allowed_lateness = "10s"
measures = ["count", "sum(cents)", "max(cents)"]

[layers.orders_minute]
from = "orders"
key = ["region"]
window = "1m"
partitions = 2

[layers.payments]
source = "shop"
events = ["payment"]
key = ["region"]
window = "5s"
allowed_lateness = "10s"
partitions = 2
measures = ["count", "sum(cents)", "max(cents)"]

[layers.payments_minute]
from = "payments"
key = ["region"]
window = "1m"
partitions = 1
"""
WINDOW_MS, LATENESS_MS, MINUTE_MS = 5_000, 10_000, 60_000
START_MS = 1_700_000_040_000
"""A multiple of a minute."""

SPEED = 20
"""Event time goes so much faster than the clock: a minute's window is sealed in four seconds."""

REGIONS = ("north", "south", "west")
SECONDS = 28.0
LOAD_S_MAX = 4 * SECONDS


@dataclasses.dataclass(slots=True)
class Told:
    """The answer of a worker to a request."""

    family: str
    words: list[tuple[str, str]]
    body: dict[str, Any]


class Load:
    """Writes events, some of them late, and keeps each with its partition and offset."""

    def __init__(self, topic: str, rng: random.Random) -> None:
        self.topic = topic
        self.rng = rng
        self.log: list[dict[int, dict[str, Any]]] = [{} for _ in range(4)]
        self.now_ms = START_MS
        self.share = 0.0

    async def run(self, brokers: str, seconds: float) -> None:
        """Write some hundred events a second, then heartbeats by way of late nothing."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
            async for _ in beats(0.02):
                elapsed = loop.time() - started
                self.share = elapsed / seconds
                if elapsed >= seconds:
                    return
                self.now_ms = START_MS + int(elapsed * 1_000 * SPEED)
                sent = []
                for _ in range(self.rng.randint(1, 12)):
                    event = self._event()
                    partition = event["store"] % 4
                    value = orjson.dumps(event)
                    future = await producer.send(self.topic, value, partition=partition)
                    sent.append((event, future))
                for event, future in sent:
                    told = await future
                    self.log[told.partition][told.offset] = event

    def _event(self) -> dict[str, Any]:
        late_ms = self.rng.choice([0] * 8 + [4_000, 30_000])
        return {
            "at": self.now_ms - self.rng.randrange(1_000) - late_ms,
            "type": self.rng.choice(["order", "payment"]),
            "store": self.rng.randrange(20),
            "region": self.rng.choice(REGIONS),
            "cents": self.rng.randrange(-50, 5_000),
        }

    def folded(self, kind: str) -> list[list[tuple[int, dict[str, Any]]]]:
        """Return, by partition, offset and event of all that are not too late."""
        found: list[list[tuple[int, dict[str, Any]]]] = []
        for events in self.log:
            newest = -(2**62)
            found.append([])
            for offset in range(len(events)):
                event = events[offset]
                end = event["at"] // WINDOW_MS * WINDOW_MS + WINDOW_MS
                if event["type"] == kind and end > newest - LATENESS_MS:
                    found[-1].append((offset, event))
                newest = max(newest, event["at"])
        return found


def some_words(rng: random.Random, now_ms: int) -> list[tuple[str, str]]:
    """Return a random request; most ranges end about now."""
    span = rng.choice([1, 3, 12, 40, 160]) * WINDOW_MS
    stop = now_ms // WINDOW_MS * WINDOW_MS + rng.choice([WINDOW_MS, -20 * WINDOW_MS, 0])
    start = max(stop - span, START_MS - MINUTE_MS)
    words = [("from", str(start)), ("to", str(max(stop, start + WINDOW_MS)))]
    words += rng.choice([[], [("key.region", "north")], [("key.region", "north"),
                                                        ("key.region", "west")]])  # fmt: skip
    words += rng.choice([[("group", "-")], [("group", "region")]])
    words += rng.choice([[], [("step", "1m")], [("step", "5s")], [("step", "2m")]])
    return [*words, ("limit", "10000")]


async def ask(workers: list[Worker], load: Load, rng: random.Random, told: list[Told]) -> None:
    """Ask one worker after the other, for as long as the load runs."""
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async for _ in beats(lambda: rng.random() * 0.05):
            family = rng.choice(["orders", "payments"])
            words = some_words(rng, load.now_ms)
            url = f"{rng.choice(workers).url}/v1/families/{family}/cells"
            try:
                async with session.get(url, params=words) as response:
                    body = await response.json(content_type=None)
                    # Too busy, or the archive's connection is just being made.
                    assert response.status in (200, 503, 504), body
                    if response.status == 200:
                        told.append(Told(family, words, body))
            except (aiohttp.ClientError, TimeoutError):
                pass  # it was killed, or has not started yet


def expected(log: list[list[tuple[int, dict[str, Any]]]], one: Told) -> list[dict[str, Any]]:
    """Return the cells of an exact answer, from the events up to its ``as_of``."""
    words = dict(one.words)
    start, stop = int(words["from"]), int(words["to"])
    step = {"1m": MINUTE_MS, "2m": 2 * MINUTE_MS, "5s": WINDOW_MS}.get(words.get("step", ""))
    regions = [text for name, text in one.words if name == "key.region"] or REGIONS
    (as_of,) = one.body["as_of"].values()
    rows: dict[tuple[Any, ...], list[int]] = {}
    for partition, events in enumerate(log):
        upto = as_of.get(str(partition), 2**62 if one.body["final"] else 0)
        for offset, event in events:
            if offset < upto and start <= event["at"] < stop and event["region"] in regions:
                at = max(start, event["at"] // step * step) if step else start
                key = (event["region"],) if words["group"] == "region" else ()
                rows.setdefault((at, *key), []).append(event["cents"])
    return [
        {
            "key": {"region": key[0]} if key else {},
            "window_start": at,
            "window_end": min(stop, at // step * step + step) if step else stop,
            "measures": {"count": len(cents), "sum_cents": sum(cents), "max_cents": max(cents)},
        }
        for (at, *key), cents in sorted(rows.items())
    ]


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
async def test_every_exact_answer_is_the_truth_while_workers_come_and_go(
    kafka: str, cassandra: tuple[str, int], tmp_path: Path
) -> None:
    """Three workers, a fourth, a kill, its return, and one that is stopped in order."""
    name = f"families{uuid.uuid4().hex[:8]}"
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.replace("NAME", name))
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    rng = random.Random(seed)
    load = Load(f"{name}.raw", rng)
    told: list[Told] = []
    settings = {
        "archive": "cassandra", "cassandra_hosts": cassandra[0],
        "cassandra_port": str(cassandra[1]), "cassandra_keyspace": name, "insecure": "true",
        "query_concurrency_max": "8", "group": name,
    }  # fmt: skip
    with Cluster(kafka, tmp_path, map_file=map_file, **settings) as cluster:
        first = [cluster.add() for _ in range(3)]

        async def all_ready() -> bool:
            found = await asyncio.gather(*(asyncio.to_thread(w.readiness) for w in first))
            return all('"ready":true' in text for text in found)

        await until(all_ready, 90)
        readers = [
            asyncio.create_task(ask(cluster.workers, load, random.Random(seed + i), told))
            for i in range(3)
        ]
        loading = asyncio.create_task(load.run(kafka, SECONDS))
        await until(lambda: load.share > 0.2, LOAD_S_MAX)
        cluster.add()
        await until(lambda: load.share > 0.4, LOAD_S_MAX)
        first[0].signal(signal.SIGKILL)
        await until(lambda: load.share > 0.55, LOAD_S_MAX)
        first[0].start()
        await until(lambda: load.share > 0.7, LOAD_S_MAX)
        assert await first[1].stop_aside() == 0
        await loading
        quiet_from = len(told)

        async def enough() -> bool:
            exact = [one for one in told if one.body["exactness"] == "exact"]
            last = [one.body["exactness"] for one in told[quiet_from:]]
            coarse = sum(map(from_coarser, exact))
            return last[-20:].count("exact") == 20 and len(exact) > 100 and coarse > 20

        # On a busy machine few questions are answered while the load runs: more come after it.
        await until(enough, 120)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    check(load, told)


def from_coarser(one: Told) -> bool:
    """Return whether a coarser layer gave a part of the answer."""
    return any(segment["layer"].endswith("_minute") for segment in one.body["plan"]["segments"])


def check(load: Load, told: list[Told]) -> None:
    """Compare every exact answer with the truth."""
    truth = {"orders": load.folded("order"), "payments": load.folded("payment")}
    kinds = Counter(one.body["exactness"] for one in told)
    print(dict(kinds), f"{sum(map(from_coarser, told))} from coarser layers")  # noqa: T201
    for one in told:
        if one.body["exactness"] == "exact":
            assert one.body["cells"] == expected(truth[one.family], one), one
