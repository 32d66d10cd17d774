"""Throughput: a preloaded topic through the whole job of one worker, answers checked first.

The job is that of the peers: ten types of event, ten thousand entities of which few are very busy,
windows of five seconds with count, sum, minimum and maximum, one second of allowed lateness; here
with an archive and a coarser layer, so that what closes is archived and forwarded. Journal, local
store, checksums, late check and ledger are on, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import time
import uuid
from collections.abc import Iterator, Sequence
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
WINDOWS, WINDOW_MS, MINUTE_MS = 100, 5_000, 60_000
DISORDER_MS = 200
TYPES = (
    "order.created", "order.paid", "order.shipped", "page.view", "page.click", "sensor.temp",
    "sensor.power", "auth.login", "auth.logout", "cart.add",
)  # fmt: skip
REGIONS = ("eu-west", "us-east", "ap-south", "af-south")
ENTITIES = 10_000
PARETO_SHAPE = 1.1
SEED = 7

MAP_TEXT = """
revision = 1
name = "{name}"
[sources.input]
topic = "{name}.input"
partitions = {partitions}
time = "at"
type = "type"
keyed_by = ["entity"]
[sources.input.fields]
type = "string"
entity = "string"
value = "float"
[layers.five_seconds]
source = "input"
events = ["**"]
key = ["type", "entity"]
window = "5s"
max_out_of_orderness = "200ms"
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
    """One way to write the same events; with ``ids`` the map's source has an id."""

    name: str
    format: Literal["json", "ndjson", "arrow"]
    per_record: int
    events: int
    partitions: int = 8
    ids: bool = False

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.name}, ids" if self.ids else self.name


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
    if case.ids:
        text = text.replace("[sources.input]\n", '[sources.input]\nid = "id"\n')
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
        case=case.title,
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
    """Return events with the peers' fields and skew, in the order of writing; always the same.

    Event time runs over 100 windows, whatever the count, with 200 ms of disorder either way. The
    entities follow a Pareto law, so that a few are very busy.
    """
    place = pl.int_range(count, eager=True)

    def chance(seed: int) -> pl.Series:
        return place.hash(SEED + seed).cast(pl.Float64) / 2**64

    def among(names: Sequence[str], seed: int) -> pl.Series:
        return pl.Series(names)[(place.hash(SEED + seed) % len(names)).cast(pl.UInt32)]

    rank = (chance(0) ** (-1 / PARETO_SHAPE)).clip(1, 2**53).cast(pl.Int64) % ENTITIES
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


def truth_of(events: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return what each layer must hold, from the events alone."""
    value = pl.col("value")
    sums = [pl.len().cast(pl.Int64).alias("events"), value.sum().alias("sum"),
            value.min().alias("min"), value.max().alias("max")]  # fmt: skip
    windows = {"five_seconds": (WINDOW_MS, ["type", "entity"]), "minutes": (MINUTE_MS, ["type"])}
    found = {}
    for name, (length_ms, key) in windows.items():
        start = (pl.col("at") // length_ms * length_ms).alias("window_start")
        found[name] = events.group_by(*key, start).agg(*sums).sort(*key, "window_start")
    return found


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
    line = pl.concat_str(
        pl.lit('{"id":"'), "id", pl.lit('","type":"'), "type", pl.lit('","at":'), "at",
        pl.lit(',"entity":"'), "entity", pl.lit('","region":"'), "region", pl.lit('","value":'),
        "value", pl.lit(',"attributes":{"session":"'), "session", pl.lit('","v":3}}'),
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
        feed.heartbeat(settled_ms(themap, source.name, START_MS + WINDOWS * WINDOW_MS))


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
            "events",
            *(pl.col(f"{kind}_value").alias(kind) for kind in ("sum", "min", "max")),
        )
        found = found.sort(*found.columns[: len(keys) + 1])
        # The last bits of a sum of floats depend on the order of adding.
        close = (found["sum"] - truth[name]["sum"]).abs() <= truth[name]["sum"].abs() * 1e-12
        if not found.drop("sum").equals(truth[name].drop("sum")) or not close.all():
            raise AssertionError(f"layer {name}: {found.height} rows; want {truth[name].height}")
        rows += found.height
    return rows
