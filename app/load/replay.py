"""Replay: writes recorded events to their topic at a chosen speed, with heartbeats.

Every partition, empty ones too, gets a heartbeat when the events of one day are through, and a last
one that closes and seals every window which the events opened.

    day 1                day 2                     settled
    e e  e e e  e  e  e |  e e  e  e e e   e  | ... |
                        h                     h     h        on every partition
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from app.cluster.rights import Right
from app.cluster.rights_check import check_rights
from app.kafka.batch_producer import BatchProducer, partition_of
from tables.model.layer import Layer, Map, Source
from tables.model.window import DAY_MS

STEP_SECONDS = 0.05
MARGIN_MS = DAY_MS
SPREAD_SEED = 2013
"""A replay spreads its records over the same partitions every time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Records ``[first, last)``, when to send them, and the heartbeat that follows them if any."""

    first: int
    last: int
    due_seconds: float
    heartbeat_ms: int | None


def steps(times_ms: pl.Series, seconds: float, settled_ms: int) -> Iterator[Step]:
    """Cut records into steps that send them at an even rate over ``seconds``.

    Args:
        times_ms: the records' event times, in order.
        seconds: the time of the whole; 0 is as fast as possible.
        settled_ms: the time of the last heartbeat.
    """
    total = len(times_ms)
    share = STEP_SECONDS / seconds if seconds > STEP_SECONDS else 1.0
    size = max(1, int(total * share))
    days = (times_ms // DAY_MS).rle().struct.unnest()
    first = 0
    for length, day in days.iter_rows():
        end = first + length
        while first < end:
            # Steps are cut at days and at multiples of their size, so a day makes few small ones.
            last = min(end, first - first % size + size)
            heartbeat_ms = (day + 1) * DAY_MS if last == end else None
            yield Step(first, last, seconds * (last / total), heartbeat_ms)
            first = last
    yield Step(total, total, float(seconds), settled_ms)


def settled_ms(themap: Map, source: str, last_ms: int, margin_ms: int = MARGIN_MS) -> int:
    """Return a stream time at which no window that an event up to ``last_ms`` opened can change.

    That is the largest end of such a window over the layers that ``source`` feeds, plus the slack
    that they and the layers between allow events to be late, plus a margin.
    """
    ends = []
    for base in themap.base_layers(source):
        waiting: list[tuple[Layer, int]] = [(base, 0)]
        while waiting:
            layer, slack_ms = waiting.pop()
            slack_ms += layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
            ends.append(layer.window.end(layer.window.start(last_ms)) + slack_ms)
            waiting += [(coarser, slack_ms) for coarser in themap.coarser(layer.name)]
    return max(ends, default=last_ms) + margin_ms


def keyed(records: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Return the records as producers of ``source`` write them: without key if it promises none."""
    if source.keyed_by:
        return records
    return records.with_columns(key=pl.lit(None, pl.String))


async def replay(
    brokers: str,
    topic: str,
    records: pl.DataFrame,
    settled_ms: int,
    *,
    seconds: float,
    progress: Callable[[int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Write ``records`` to ``topic`` over ``seconds`` and return how many events were written.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        topic: the raw topic; it must exist.
        records: columns ``at`` (ms, in order), ``key`` and ``value`` (texts). One whose key is null
            goes to any partition.
        settled_ms: the time of the last heartbeat; see :func:`settled_ms`.
        seconds: the time of the whole; 0 is as fast as possible.
        progress: called with the number of events written so far.
        options: security options of aiokafka's clients.

    Raises:
        RightsError: this user may not write to the topic.
        ProducerError: the topic is missing, or records were refused.
        TreasureMapError: no broker answers.
    """
    await check_rights(
        brokers, options or {}, [Right("topic", topic, ("Write",))],
        cannot=f"cannot replay events into {topic}", role="producer", may_lack=True,
    )  # fmt: skip
    async with BatchProducer(brokers, topic, options=options) as feed:
        placed = _placed(records, feed.partitions)
        start = time.monotonic()
        for step in steps(records["at"], seconds, settled_ms):
            pause = start + step.due_seconds - time.monotonic()
            await asyncio.sleep(max(pause, 0.0))
            piece = placed.slice(step.first, step.last - step.first)
            for partition in range(feed.partitions):
                own = piece.filter(pl.col("partition") == partition)
                feed.add(partition, own["key"].to_list(), own["value"].to_list())
            if step.heartbeat_ms is not None:
                feed.heartbeat(step.heartbeat_ms)
            await feed.flush()
            if progress is not None:
                progress(feed.events)
    return feed.events


def _placed(records: pl.DataFrame, partitions: int) -> pl.DataFrame:
    """Return partition, key and value (both binary) of each record; their order stays."""
    keys = records["key"].unique().drop_nulls()
    targets = {key: partition_of(key.encode(), partitions) for key in keys}
    anywhere = (pl.int_range(pl.len()).shuffle(SPREAD_SEED) % partitions).cast(pl.Int32)
    return records.select(
        pl.col("key")
        .replace_strict(targets, default=anywhere, return_dtype=pl.Int32)
        .alias("partition"),
        pl.col("key").cast(pl.Binary),
        pl.col("value").cast(pl.Binary),
    )
