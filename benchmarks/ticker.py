"""The open loop of the latency benchmark: events at a fixed rate, whatever becomes of them.

Events are made before a tick of a fixed interval and sent at it, uncompressed as Kafka's producers
do by default. The events of a tick are noted with the moment it was due, so that a feed that falls
behind shows as latency, not as a lower rate.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import selectors
import time
from pathlib import Path

import polars as pl

from app.kafka.batch_producer import BatchProducer, partition_of
from benchmarks.load import events_of

PROBE = "probe"
POOL_EVENTS = 50_000
SCHEMA = {"tick": pl.Int64, "partition": pl.Int64, "first_offset": pl.Int64, "count": pl.Int64,
          "due_ns": pl.Int64, "time_ms": pl.Int64}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Events to ``topic`` every ``interval_ms``: in each phase so many a second, for so long."""

    brokers: str
    topic: str
    interval_ms: int
    phases: tuple[tuple[int, float], ...]

    def ticks(self) -> list[int]:
        """Return how many events each tick sends, without its probe."""
        return [
            rate * self.interval_ms // 1_000
            for rate, seconds in self.phases
            for _ in range(round(seconds * 1_000 / self.interval_ms))
        ]


def tick(schedule: Schedule, file: Path) -> None:
    """Send events when they are due; write the ticks to ``file``.

    Runs in a process of its own, on another core than the worker's if there are more.
    """
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    # The default loop's timers are rounded up to a millisecond, by epoll; select(2) has finer ones.
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        rows = runner.run(_tick(schedule))
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_ipc(file)


def _precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _tick(schedule: Schedule) -> list[tuple[int, ...]]:
    interval_ms = schedule.interval_ms
    rows: list[tuple[int, ...]] = []
    async with BatchProducer(schedule.brokers, schedule.topic, compressed=False) as feed:
        pool = _pool(feed.partitions)
        probe = partition_of(PROBE.encode(), feed.partitions)
        offsets = [0] * feed.partitions
        first = 0
        begun_ns, begun_ms = time.monotonic_ns(), time.time_ns() // 1_000_000
        for number, count in enumerate(schedule.ticks()):
            due_ns = begun_ns + number * interval_ms * 1_000_000
            time_ms = begun_ms + number * interval_ms
            values: list[list[bytes]] = [[] for _ in range(feed.partitions)]
            at = b"%d" % time_ms
            first, last = first + count, first + count
            for place in range(last - count, last):
                partition, head, tail = pool[place % POOL_EVENTS]
                values[partition].append(head + at + tail)
            values[probe].append(
                b'{"type":"probe","at":%d,"entity":"probe","value":%d}' % (time_ms, number)
            )
            for partition, some in enumerate(values):
                if some:
                    feed.add(partition, [None] * len(some), some)
                    rows.append((number, partition, offsets[partition], len(some), due_ns, time_ms))
                    offsets[partition] += len(some)
            wait_ns = due_ns - time.monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / 1e9)
            await feed.flush()
        await feed.drain()
    return rows


def _pool(partitions: int) -> list[tuple[int, bytes, bytes]]:
    """Return the peers' events as partition, the bytes before the time, and those after it."""
    found = []
    for row in events_of(POOL_EVENTS).iter_rows(named=True):
        head = f'{{"id":"{row["id"]}","type":"{row["type"]}","at":'
        tail = (
            f',"entity":"{row["entity"]}","region":"{row["region"]}","value":{row["value"]},'
            f'"attributes":{{"session":"{row["session"]}","v":3}}}}'
        )
        target = partition_of(row["entity"].encode(), partitions)
        found.append((target, head.encode(), tail.encode()))
    return found
