"""The load: the peers' events as records in a topic, and the rows that every layer must have."""

from __future__ import annotations

import io
from collections.abc import Sequence

import polars as pl

from app.kafka.batch_producer import BatchProducer, partition_of
from app.load.replay import settled_ms
from benchmarks.cases import ENTITIES, WINDOW_MS, BenchmarkLayer, Case
from tables.model.layer import Map

START_MS = 1_700_000_000_000
WINDOWS = 100
DISORDER_MS = 200
TYPES = (
    "order.created", "order.paid", "order.shipped", "page.view", "page.click", "sensor.temp",
    "sensor.power", "auth.login", "auth.logout", "cart.add",
)  # fmt: skip
REGIONS = ("eu-west", "us-east", "ap-south", "af-south")
PARETO_SHAPE = 1.1
SEED = 7
RECORDS_AT_ONCE = 20_000


def events_of(count: int, entities: int = ENTITIES) -> pl.DataFrame:
    """Return events with the peers' fields, in the order of writing; always the same.

    Event time runs over 100 windows, whatever the count, with 200 ms of disorder either way. The
    peers' entities follow a Pareto law, so that a few are very busy; other numbers are uniform.
    """
    place = pl.int_range(count, eager=True)

    def chance(seed: int) -> pl.Series:
        return place.hash(SEED + seed).cast(pl.Float64) / 2**64

    def among(names: Sequence[str], seed: int) -> pl.Series:
        return pl.Series(names)[(place.hash(SEED + seed) % len(names)).cast(pl.UInt32)]

    if entities == ENTITIES:
        rank = (chance(0) ** (-1 / PARETO_SHAPE)).clip(1, 2**53).cast(pl.Int64) % entities
    else:
        rank = place.hash(SEED) % entities
    disorder = (chance(1) * (2 * DISORDER_MS + 1)).cast(pl.Int64) - DISORDER_MS
    return pl.DataFrame(
        {
            "id": place.cast(pl.String).str.zfill(16),
            "type": among(TYPES, 2),
            "at": START_MS + DISORDER_MS + place * (WINDOWS * WINDOW_MS) // count + disorder,
            "entity": "user-" + rank.cast(pl.String),
            "region": among(REGIONS, 3),
            "value": (chance(4) * 100).round(2),
            "session": "s" + (place.hash(SEED + 5) % 100_000).cast(pl.String),
        }
    )


def truth_of(events: pl.DataFrame, layers: Sequence[BenchmarkLayer]) -> dict[str, pl.DataFrame]:
    """Return the rows that each layer must have, from the events alone."""
    value = pl.col("value")
    sums = [pl.len().cast(pl.Int64).alias("events"), value.sum().alias("sum"),
            value.min().alias("min"), value.max().alias("max")]  # fmt: skip
    found = {}
    for layer in layers:
        start = (pl.col("at") // layer.window_ms * layer.window_ms).alias("window_start")
        cells = events.group_by(*layer.key, start).agg(*sums)
        found[layer.name] = cells.sort(*layer.key, "window_start")
    return found


_AROUND_VALUE = {
    "flat": ('","value":', ""),
    "nested": ('","data":{"value":', "}"),
    "array": ('","data":[', "]"),
}


def encode(case: Case, events: pl.DataFrame) -> list[bytes]:
    """Return the records of one partition's events."""
    if case.format == "arrow":
        records = []
        coded = events.with_columns(pl.col("type", "entity", "region").cast(pl.Categorical))
        for piece in coded.iter_slices(case.per_record):
            file = io.BytesIO()
            piece.write_ipc_stream(file, compression="lz4")
            records.append(file.getvalue())
        return records
    before, after = _AROUND_VALUE[case.value]
    line = pl.concat_str(
        pl.lit('{"id":"'), "id", pl.lit('","type":"'), "type", pl.lit('","at":'), "at",
        pl.lit(',"entity":"'), "entity", pl.lit('","region":"'), "region", pl.lit(before),
        "value", pl.lit(after + ',"attributes":{"session":"'), "session", pl.lit('","v":3}}'),
    ).alias("line")  # fmt: skip
    lines = events.select(line)
    if case.per_record > 1:
        record = pl.int_range(pl.len()) // case.per_record
        lines = lines.group_by(record, maintain_order=True).agg(pl.col("line").str.join("\n"))
    return [text.encode() for text in lines["line"]]


async def fill(case: Case, brokers: str, themap: Map, events: pl.DataFrame) -> None:
    """Write all events to the source's topic, keyed by entity, then heartbeats that close all."""
    (source,) = themap.sources
    names = events["entity"].unique().to_list()
    places = {name: partition_of(name.encode(), source.partitions) for name in names}
    target = events["entity"].replace_strict(places, return_dtype=pl.Int32)
    async with BatchProducer(brokers, source.topic) as feed:
        for partition in range(source.partitions):
            mine = events.filter(target == partition)
            for some in mine.iter_slices(RECORDS_AT_ONCE * min(case.per_record, 20)):
                records = encode(case, some)
                feed.add(partition, [None] * len(records), records)
                await feed.flush()
        feed.heartbeat(settled_ms(themap, source.name, START_MS + WINDOWS * WINDOW_MS))
