"""Query cost: the same events in Cassandra sharded by time and as layers, asked the same things.

Both are real: Kafka, one worker that archives into Cassandra, and a table of raw events by minute
beside it. Every answer of both is compared with the events before it counts.

    raw      all events of all minutes of a range  -> added up by the reader
    layers   the planner's cover, live and archived -> added up by the worker
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from app.kafka.batch_producer import BatchProducer, partition_of
from benchmarks.query_mix import Ask, Cells, answer_of, events_of, mix
from benchmarks.raw_events import MINUTE_MS, RawEvents
from benchmarks.runs import WorkerRun, made_map
from tables.archive.layout import bucket_ms
from tables.model.keyhash import key_hash
from tables.model.layer import Map
from treasure_map.query import QueryClient, QueryFailedError, Range
from treasure_map.query_async import AsyncQueryClient

EVENTS, SMOKE_EVENTS = 1_000_000, 8_000
SPAN_MS, SMOKE_SPAN_MS = 24 * 3_600_000, 2 * 3_600_000
"""Event time of the data: the smoke size queries two hours, the full size a day."""

ASKS, SMOKE_ASKS = 8, 3
CHECKED = ("layers", "layers, cached")
RATES = {"layers": (25, 50, 100, 200), "layers, cached": (200,)}
"""Requests a second of the mix. If every one of them reads Cassandra, on the two cores that all
of this shares, 200 are too many: the others tell how many are not."""

RATE_SECONDS = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")

MAP = """
revision = 1
name = "NAME"
[sources.input]
topic = "NAME.input"
partitions = 4
time = "at"
type = "type"
keyed_by = ["entity"]
[sources.input.fields]
entity = "string"
value = "float"

[layers.seconds]
source = "input"
events = ["**"]
key = ["entity"]
window = "5s"
allowed_lateness = "1s"
measures = ["count", "sum(value)", "max(value)"]

[layers.minutes]
from = "seconds"
key = ["entity"]
window = "1m"
slots = 1
partitions = 2

[layers.hours]
from = "minutes"
key = ["entity"]
window = "1h"
slots = 1
partitions = 2

[layers.days]
from = "hours"
key = ["entity"]
window = "1d"
slots = 1
partitions = 1
"""
"""A hundred keys: one slot is right for a layer (docs/formats/map.md), but for the finest, whose
writes are spread."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The cost of one kind of query under one design: the median of several asks, but for p99.

    ``bytes`` are of the rows in memory; ``cpu_ms`` of the reader (raw) or the worker (layers), and
    ``cassandra_cpu_ms`` of Cassandra, an ask. ``age_ms`` is how old the worker's data was.
    ``refused_share`` is of requests at a rate that were turned away, because too many were there.
    """

    case: str
    design: str
    query: str
    rows: float
    partitions: float
    bytes: float
    cpu_ms: float
    cassandra_cpu_ms: float
    p50_ms: float
    p99_ms: float
    age_ms: float | None = None
    refused_share: float | None = None
    read_reduction: float | None = None
    busiest_partition_share: float | None = None


def run(
    brokers: str, cassandra: Mapping[str, str], pid: int, folder: Path, *, smoke: bool
) -> list[Row]:
    """Load both designs, send both the mix, compare all answers; return the costs.

    Args:
        brokers: Kafka's.
        cassandra: settings of a worker that archives there.
        pid: Cassandra's process, on this machine.
        folder: a new one for maps and state.
        smoke: whether few events and asks will do.

    Raises:
        AssertionError: an answer differs from that of the events.
    """
    count, span_ms = (SMOKE_EVENTS, SMOKE_SPAN_MS) if smoke else (EVENTS, SPAN_MS)
    asks = SMOKE_ASKS if smoke else ASKS
    events = events_of(count, span_ms)
    name = f"q{uuid.uuid4().hex[:8]}"
    map_file, themap = made_map(brokers, MAP.replace("NAME", name), name, folder)
    raw = RawEvents(cassandra["cassandra_hosts"], int(cassandra["cassandra_port"]), f"raw_{name}")
    rows: list[Row] = []
    try:
        raw.write(events)
        rows += _ask_raw(raw, events, span_ms, asks, pid)
    finally:
        raw.close()
    settings = dict(cassandra) | {"cassandra_keyspace": name, "query_concurrency_max": "64"}
    for design, bytes_max in (("layers", 0), ("layers, cached", 64 << 20)):
        with WorkerRun(
            brokers, map_file, folder / design.replace(", ", "-"), **settings,
            query_cache_bytes_max=str(bytes_max), group=f"{name}-{bytes_max}",
        ) as worker:  # fmt: skip
            if not bytes_max:
                # The worker starts before the events: cells that it has evicted by the time a
                # coarser layer hears of it first would be missing there.
                worker.wait(lambda _: worker.is_ready())
                asyncio.run(_send(brokers, themap, events))
            worker.wait(lambda client: _is_folded(worker, client, count))
            warm = asks if bytes_max else 0
            rows += _ask_layers(worker, design, events, span_ms, asks=(warm, asks), pid=pid)
            if not smoke:
                rates = RATES[design]
                # The first round is not counted: it warms Java's compiler, connections and cache.
                for number, rate in enumerate((rates[0], *rates)):
                    found = asyncio.run(_at_rate(worker.url, design, rate, events, span_ms))
                    rows += found if number else []
    return _with_reductions(rows, events, themap)


async def _send(brokers: str, themap: Map, events: pl.DataFrame) -> None:
    """Write the events, and no heartbeat: the last windows stay open, as if events went on."""
    (source,) = themap.sources
    line = pl.concat_str(
        pl.lit('{"type":"x","at":'), "at", pl.lit(',"entity":"'), "entity",
        pl.lit('","value":'), "value", pl.lit("}"),
    )  # fmt: skip
    names = events["entity"].unique().to_list()
    places = {name: partition_of(name.encode(), source.partitions) for name in names}
    target = pl.col("entity").replace_strict(places, return_dtype=pl.Int32)
    lines = events.select(line.alias("line"), target.alias("target"))
    async with BatchProducer(brokers, source.topic) as feed:
        for some in lines.iter_slices(20_000):
            # In order of time in each partition, or most would be too late.
            parts = some.partition_by("target", as_dict=True, maintain_order=True)
            for (partition, *_), part in parts.items():
                values = [text.encode() for text in part["line"]]
                feed.add(int(partition), [None] * len(values), values)
            await feed.flush()


def _is_folded(worker: WorkerRun, client: QueryClient, count: int) -> bool:
    ledger = client.ledger()
    layers = client.layers()
    waiting = sum(row.unacknowledged_windows for row in layers)
    folded = ledger["layers"]["seconds"]["folded"]
    return bool(folded == count and not waiting and worker.is_ready())


def _ask_raw(raw: RawEvents, events: pl.DataFrame, span_ms: int, asks: int, pid: int) -> list[Row]:
    rng = random.Random(5)  # noqa: S311 - which keys are asked for
    taken: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(asks):
        for ask in mix(_now(events), span_ms, rng):
            own, theirs, begun = time.process_time(), _cpu_seconds(pid), time.perf_counter()
            found, partitions = raw.read(ask.from_ms, ask.to_ms)
            answer = answer_of(found, ask)
            seconds = time.perf_counter() - begun
            cpu, others = time.process_time() - own, _cpu_seconds(pid) - theirs
            _check("raw", ask, answer, answer_of(events, ask))
            size = float(found.estimated_size())
            taken.setdefault(ask.query, []).append(
                (found.height, partitions, size, cpu, others, seconds)
            )
    return [_row("raw", query, some) for query, some in taken.items()]


def _ask_layers(
    worker: WorkerRun, design: str, events: pl.DataFrame, span_ms: int, *,
    asks: tuple[int, int], pid: int,
) -> list[Row]:  # fmt: skip
    """Ask ``asks[0]`` times first, to warm caches, and then ``asks[1]`` times."""
    taken: dict[str, list[tuple[float, ...]]] = {}
    ages: dict[str, list[int]] = {}
    rng = random.Random(5)  # noqa: S311 - which keys are asked for
    with QueryClient(worker.url) as client:
        rounds = [mix(_now(events), span_ms, rng) for _ in range(max(asks))]
        for number, ask in [(-1, ask) for some in rounds[: asks[0]] for ask in some] + [
            (number, ask) for number, some in enumerate(rounds) for ask in some
        ]:
            own, theirs, begun = worker.cpu_seconds(), _cpu_seconds(pid), time.perf_counter()
            body = _asked(client, ask)
            seconds = time.perf_counter() - begun
            cpu, others = worker.cpu_seconds() - own, _cpu_seconds(pid) - theirs
            _check(design, ask, _cells(body), answer_of(events, ask))
            if number < 0:
                continue
            cost = body.cost
            read = sum(one.live_rows + one.archived_rows for one in cost.layers.values())
            taken.setdefault(ask.query, []).append(
                (read, cost.archive_partitions, cost.archive_bytes, cpu, others, seconds)
            )
            if body.data_age_ms is not None:
                ages.setdefault(ask.query, []).append(body.data_age_ms)
    return [
        dataclasses.replace(_row(design, query, some), age_ms=_median(ages.get(query, [])))
        for query, some in taken.items()
    ]


async def _at_rate(
    url: str, design: str, rate: int, events: pl.DataFrame, span_ms: int
) -> list[Row]:
    """Ask at a fixed rate, an open loop; return the times of each kind."""
    rng = random.Random(6)  # noqa: S311 - likewise
    asks: list[Ask] = []
    while len(asks) < rate * RATE_SECONDS:
        asks += mix(_now(events), span_ms, rng)
    taken: dict[str, list[float]] = {}
    refused = Counter[str]()
    loop = asyncio.get_running_loop()
    begun = loop.time() + 0.5

    async def one(client: AsyncQueryClient, number: int, ask: Ask) -> None:
        due = begun + number / rate
        await asyncio.sleep(due - loop.time())
        try:
            if ask.top:
                await client.top("seconds", "count", Range(ask.from_ms, ask.to_ms), n=ask.top)
            else:
                await client.rows("seconds", ask.range(), limit=10_000, page_rows=10_000)
        except QueryFailedError as error:
            if error.retry_after_s is None:
                raise
            refused[ask.query] += 1
            return
        # From when it was due: the wait behind a slow request counts too.
        taken.setdefault(ask.query, []).append(loop.time() - due)

    async with AsyncQueryClient(url) as client:
        await asyncio.gather(*(one(client, number, ask) for number, ask in enumerate(asks)))
    return [
        dataclasses.replace(
            _row(f"{design}, {rate}/s", query, [(0, 0, 0, 0, 0, seconds) for seconds in some]),
            refused_share=refused[query] / (refused[query] + len(some)),
        )
        for query, some in taken.items()
    ]


def _asked(client: QueryClient, ask: Ask) -> Any:
    if ask.top:
        return client.top("seconds", "count", Range(ask.from_ms, ask.to_ms), n=ask.top)
    return client.family_page("seconds", ask.range(), limit=10_000)


def _cells(body: Any) -> Cells:
    return {
        (row.key["entity"], row.window_start): (row.measures["count"], row.measures["max_value"])
        for row in body.cells
    }


def _check(design: str, ask: Ask, found: Cells, want: Cells) -> None:
    if found != want:
        differ = {
            place for place in found.keys() | want.keys() if found.get(place) != want.get(place)
        }
        raise AssertionError(f"{design}: {ask} differs at {sorted(differ)[:5]}; want {len(want)}")


def _row(design: str, query: str, taken: Sequence[tuple[float, ...]]) -> Row:
    rows, partitions, size, cpu, others, _ = (
        _median(column) for column in zip(*taken, strict=True)
    )
    # CPU times have the kernel's grain of 10 ms: only their mean over many asks says something.
    cpu = sum(one[3] for one in taken) / len(taken)
    others = sum(one[4] for one in taken) / len(taken)
    seconds = sorted(one[5] for one in taken)
    return Row(
        case=f"{design}: {query}",
        design=design,
        query=query,
        rows=rows or 0,
        partitions=partitions or 0,
        bytes=size or 0,
        cpu_ms=cpu * 1_000,
        cassandra_cpu_ms=others * 1_000,
        p50_ms=seconds[len(seconds) // 2] * 1_000,
        p99_ms=seconds[math.ceil(len(seconds) * 0.99) - 1] * 1_000,
    )


def _with_reductions(rows: list[Row], events: pl.DataFrame, themap: Map) -> list[Row]:
    """Add the savings against raw events, and the share of the busiest partition."""
    raw = {row.query: row.rows for row in rows if row.design == "raw"}
    shares = {"raw": 1.0, "layers": busiest_share(events, themap)}
    return [
        dataclasses.replace(
            row,
            read_reduction=(
                1 - row.rows / raw[row.query]
                if row.design in CHECKED and raw[row.query]
                else None
            ),
            busiest_partition_share=shares.get(row.design),
        )
        for row in rows
    ]  # fmt: skip


def busiest_share(events: pl.DataFrame, themap: Map) -> float:
    """Return the greatest share of a minute's rows of the finest layer in one partition.

    Raw events of a minute are all in one.
    """
    layer = themap.layer("seconds")
    names = events["entity"].unique().to_list()
    slots = {name: key_hash([name]) % layer.slots for name in names}
    cells = events.select(
        pl.col("entity").replace_strict(slots, return_dtype=pl.Int64).alias("slot"),
        pl.col("entity"),
        (pl.col("at") // 5_000 * 5_000).alias("window"),
    ).unique()
    placed = cells.with_columns(
        minute=pl.col("window") // MINUTE_MS, bucket=pl.col("window") // bucket_ms(layer)
    )
    by_place = placed.group_by("minute", "slot", "bucket").agg(pl.len())
    share = by_place.group_by("minute").agg(pl.col("len").max() / pl.col("len").sum())
    median = share["len"].median()
    return median if isinstance(median, float) else 0.0


def summary(rows: Iterable[Row]) -> list[list[str]]:
    """Return a table, its head first."""
    table = [["design", "query", "rows", "partitions", "KiB", "less read", "CPU ms", "Cassandra ms",
              "p50 ms", "p99 ms", "age ms", "refused"]]  # fmt: skip
    for row in rows:
        less = (
            "" if row.read_reduction is None or row.design == "raw" else f"{row.read_reduction:.2%}"
        )
        table.append([
            row.design, row.query, f"{row.rows:,.0f}", f"{row.partitions:,.0f}",
            f"{row.bytes / 1024:,.0f}", less, f"{row.cpu_ms:.1f}", f"{row.cassandra_cpu_ms:.1f}",
            f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}",
            "" if row.age_ms is None else f"{row.age_ms:.0f}",
            "" if row.refused_share is None else f"{row.refused_share:.1%}",
        ])  # fmt: skip
    return table


def _now(events: pl.DataFrame) -> int:
    last = events["at"].max()
    assert isinstance(last, int)
    return last


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
