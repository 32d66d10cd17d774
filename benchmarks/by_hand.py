"""A consumer by hand in the fewest lines, which decodes and counts in a dict.

It has no journal, no store, no archive, no lateness and no ledger, and loses everything when it
ends. It shows the share of producer, broker and client library in a latency, without any job.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.timed import SCHEMA

QUIET_MS = 500
"""The input has ended if nothing came for this time after its end."""


class _Event(msgspec.Struct):
    """The fields that the job's first layer needs."""

    type: str
    at: int
    entity: str
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Topic:
    """The topic that is read."""

    brokers: str
    name: str
    partitions: int


def consume(topic: Topic, file: Path, ready: Event, end: Event) -> None:
    """Count the topic's events until ``end``; write when each run of records was counted.

    Runs in a process of its own, on the core that the benchmarks give to a worker.
    """
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {0})
    rows = uvloop.run(_consume(topic, ready, end))
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_ipc(file)


async def _consume(topic: Topic, ready: Event, end: Event) -> list[tuple[Any, ...]]:
    decode = msgspec.json.Decoder(_Event).decode
    counts: Counter[tuple[str, str, int]] = Counter()
    rows: list[tuple[Any, ...]] = []
    given = {"bootstrap_servers": topic.brokers, "fetch_max_wait_ms": 50}
    async with AIOKafkaConsumer(**given) as consumer:
        places = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ready.set()
        found: dict[Any, Any] = {}
        while found or not end.is_set():
            found = await consumer.getmany(timeout_ms=QUIET_MS)
            for place, records in found.items():
                for record in records:
                    event = decode(record.value)
                    counts[event.entity, event.type, event.at // 5_000] += 1
                last = records[-1].offset + 1
                at_ns = time.monotonic_ns()
                rows.append(("delta", topic.name, place.partition, records[0].offset, last, at_ns))
            await asyncio.sleep(0)
    assert sum(counts.values()) == sum(stop - start for _, _, _, start, stop, _ in rows)
    return rows
