"""Throughput: a preloaded topic through the whole job of one worker, answers checked first.

The job is that of the peers: four types of event, ten thousand entities of which few are busy,
windows of five seconds with count, sum, minimum and maximum, one second of allowed lateness; here
with a coarser layer beside it, so that what closes is archived and forwarded. Journal, local store,
checksums, late check and ledger are on, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import polars as pl

from app.feed import Feed, partition_of
from app.mapfile import parse_map
from app.replay import settled_ms
from app.topics import apply_topics
from benchmarks.runs import Row, WorkerRun
from client.query import QueryClient
from tables.archive import CellRange
from tables.archive_embedded import EmbeddedArchive
from tables.layer import Map

SMOKE_EVENTS = 20_000
START_MS = 1_700_000_000_000
WINDOW_MS, MINUTE_MS = 5_000, 60_000
TYPES = ("order.created", "order.paid", "order.shipped", "page.viewed")
ENTITIES = 10_000
# Fields that no layer needs, so that an event has the size of the peers' events, about 155 bytes.
_REST = ',"trace":"5f3c9a7e41b2d806","host":"edge-17.eu-west-1","unit":"cents","attempt":1}'
SEED = 7

MAP_TEXT = """
revision = 1
name = "{name}"
[sources.input]
topic = "{name}.input"
partitions = {partitions}
time = "ts"
type = "type"
keyed_by = ["entity"]
[sources.input.fields]
type = "string"
entity = "string"
value = "int"
[layers.five_seconds]
source = "input"
events = ["**"]
key = ["type", "entity"]
window = "5s"
max_out_of_orderness = "0s"
allowed_lateness = "1s"
measures = ["count", "sum(value)", "min(value)", "max(value)"]
[layers.minutes]
from = "five_seconds"
key = ["type"]
window = "1m"
partitions = 2
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One way to write the same events."""

    name: str
    format: Literal["json", "ndjson", "arrow"]
    per_record: int
    events: int
    partitions: int = 8


CASES = {
    case.name: case
    for case in (
        Case("json", "json", 1, 2_000_000),
        Case("ndjson", "ndjson", 500, 4_000_000),
        Case("arrow", "arrow", 2_000, 8_000_000),
    )
}


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What is in the topic, and what it comes to."""

    themap: Map
    map_file: Path
    brokers: str
    events: int
    truth: dict[str, pl.DataFrame]
    startup_cpu_seconds: float


@contextlib.contextmanager
def loaded(case: Case, brokers: str, events: int) -> Iterator[Load]:
    """Fill a topic of its own with events, and compute what they come to."""
    name = f"b{uuid.uuid4().hex[:8]}"
    text = MAP_TEXT.format(name=name, partitions=case.partitions)
    themap = parse_map(text, case.name)
    with TemporaryDirectory() as folder:
        map_file = Path(folder, "map.toml")
        map_file.write_text(text)
        asyncio.run(apply_topics(brokers, themap))
        startup = _startup(brokers, map_file, Path(folder, "idle"))
        frame = events_of(events)
        asyncio.run(_fill(case, brokers, themap, frame))
        yield Load(themap, map_file, brokers, events, truth_of(frame), startup)


def run(case: Case, load: Load, folder: Path) -> Row:
    """Take the load through one worker of an empty state; check its rows; return what it took.

    Each run has a journal of its own: its map has another name for it.
    """
    map_file, themap = _own_map(load, folder)
    wanted = {name: frame.height for name, frame in load.truth.items()}
    started: list[float] = []

    def done(client: QueryClient) -> bool:
        ledger = client.ledger()
        if not started and sum(row["read"] for row in _partitions(ledger)):
            started.append(time.monotonic())
        layers = {row["name"]: row["archived_cells"] for row in client.layers()}
        return all(layers[name] >= count for name, count in wanted.items())

    with WorkerRun(load.brokers, map_file, folder) as worker:
        worker.wait(done)
        seconds = time.monotonic() - started[0]
        cpu, memory = worker.cpu_seconds(), worker.peak_memory_bytes()
        with QueryClient(worker.url) as client:
            _check_ledger(client.ledger(), load.events)
    rows = _check_rows(themap, worker.archive_folder, load.truth)
    used = cpu - load.startup_cpu_seconds
    return Row(
        case=case.name,
        format=case.format,
        events=load.events,
        events_per_cpu_second=load.events / used,
        events_per_second=load.events / max(seconds, 1e-9),
        cpu_seconds=used,
        startup_cpu_seconds=load.startup_cpu_seconds,
        seconds=seconds,
        peak_memory_bytes=memory,
        windows_closed=load.truth["five_seconds"]["window_start"].n_unique(),
        rows_archived=rows,
    )


def events_of(count: int) -> pl.DataFrame:
    """Return events in time order: ``ts``, ``type``, ``entity``, ``value``; the same each time.

    Time runs so that 200 windows close. The entity of rank r has 1/r of the busiest one's share.
    """
    random = pl.select(u=pl.int_range(count).hash(SEED).cast(pl.Float64) / 2**64)["u"]
    # The inverse of Zipf's law for exponent 1: rank = ENTITIES ** u.
    rank = (random * math.log(ENTITIES)).exp().floor().cast(pl.Int64)
    place = pl.int_range(count, eager=True)
    return pl.DataFrame(
        {
            "ts": START_MS + place * (200 * WINDOW_MS) // count,
            "type": pl.Series(TYPES)[(place.hash(SEED + 1) % len(TYPES)).cast(pl.UInt32)],
            "entity": "e" + rank.cast(pl.String),
            "value": (place.hash(SEED + 2) % 10_000).cast(pl.Int64),
        }
    )


def truth_of(events: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return what each layer must hold, from the events alone."""
    value = pl.col("value")
    sums = [pl.len().alias("events"), value.sum().alias("sum"), value.min().alias("min"),
            value.max().alias("max")]  # fmt: skip
    windows = {"five_seconds": (WINDOW_MS, ["type", "entity"]), "minutes": (MINUTE_MS, ["type"])}
    found = {}
    for name, (length_ms, key) in windows.items():
        start = (pl.col("ts") // length_ms * length_ms).alias("window_start")
        found[name] = events.group_by(*key, start).agg(*sums).sort(*key, "window_start")
    return found


def encode(case: Case, events: pl.DataFrame) -> list[bytes]:
    """Return the records of one partition's events."""
    if case.format == "arrow":
        records = []
        coded = events.with_columns(pl.col("type", "entity").cast(pl.Categorical))
        for piece in coded.iter_slices(case.per_record):
            file = io.BytesIO()
            piece.write_ipc_stream(file, compression="lz4")
            records.append(file.getvalue())
        return records
    line = pl.concat_str(
        pl.lit('{"ts":'), "ts", pl.lit(',"type":"'), "type", pl.lit('","entity":"'), "entity",
        pl.lit('","value":'), "value", pl.lit(_REST),
    ).alias("line")  # fmt: skip
    lines = events.select(line)
    if case.per_record > 1:
        record = pl.int_range(pl.len()) // case.per_record
        lines = lines.group_by(record, maintain_order=True).agg(pl.col("line").str.join("\n"))
    return [text.encode() for text in lines["line"]]


async def _fill(case: Case, brokers: str, themap: Map, events: pl.DataFrame) -> None:
    (source,) = themap.sources
    names = events["entity"].unique().to_list()
    places = {name: partition_of(name.encode(), source.partitions) for name in names}
    target = events["entity"].replace_strict(places, return_dtype=pl.Int32)
    async with Feed(brokers, source.topic) as feed:
        for partition in range(source.partitions):
            records = encode(case, events.filter(target == partition))
            for first in range(0, len(records), 20_000):
                piece = records[first : first + 20_000]
                feed.add(partition, [None] * len(piece), piece)
                await feed.flush()
        feed.heartbeat(settled_ms(themap, source.name, START_MS + 200 * WINDOW_MS))


def _startup(brokers: str, map_file: Path, folder: Path) -> float:
    """Return the CPU time that a worker takes until it is ready, with nothing to read."""
    with WorkerRun(brokers, map_file, folder) as worker:
        worker.wait(lambda _: worker.is_ready())
        return worker.cpu_seconds()


def _own_map(load: Load, folder: Path) -> tuple[Path, Map]:
    """Return a map that reads the same topic under a name, and with topics, of its own."""
    name = f"r{uuid.uuid4().hex[:8]}"
    text = load.map_file.read_text().replace(f'name = "{load.themap.name}"', f'name = "{name}"')
    folder.mkdir(parents=True)
    map_file = folder / "map.toml"
    map_file.write_text(text)
    themap = parse_map(text, name)
    asyncio.run(apply_topics(load.brokers, themap))
    return map_file, themap


def _partitions(ledger: dict[str, dict[str, dict[str, dict[str, int]]]]) -> list[dict[str, int]]:
    return [row for rows in ledger["records"].values() for row in rows.values()]


def _check_ledger(ledger: dict[str, object], events: int) -> None:
    folded = ledger["layers"]["five_seconds"]["folded"]  # type: ignore[index]
    if not ledger["balanced"] or folded != events:
        raise AssertionError(f"the ledger is off: {folded} of {events} events; {ledger}")


def _check_rows(themap: Map, folder: Path, truth: dict[str, pl.DataFrame]) -> int:
    """Compare every archived row with the truth; return how many there are."""

    async def read() -> dict[str, pl.DataFrame]:
        archive = EmbeddedArchive(folder)
        await archive.open(themap)
        try:
            span = CellRange(0, 2**62, rows_max=10**9)
            return {layer.name: await archive.read(layer, span) for layer in themap.layers}
        finally:
            await archive.close()

    rows = 0
    for name, frame in asyncio.run(read()).items():
        keys = [column for column in frame.columns if column.startswith("key_")]
        found = frame.select(
            *(pl.col(key).alias(key.removeprefix("key_")) for key in keys),
            "window_start",
            pl.col("events").cast(pl.UInt32),
            pl.col("sum_value").cast(pl.Int64).alias("sum"),
            pl.col("min_value").alias("min"),
            pl.col("max_value").alias("max"),
        ).sort(*(key.removeprefix("key_") for key in keys), "window_start")
        wanted = truth[name].cast({"events": pl.UInt32})
        if not found.equals(wanted):
            raise AssertionError(f"layer {name}: {found.height} rows; want {wanted.height}")
        rows += found.height
    return rows
