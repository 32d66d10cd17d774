"""Recovery: how fast a partition of many open cells comes back, from journal or local store.

A worker folds events of many keys, none of whose windows closes, and ends. Then its one partition
is claimed again by this process, as a new owner would: with an empty state folder, from the journal
alone (its latest snapshot and the deltas after it), and with the folder that the worker left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from agents.partition.owner import Owner
from agents.partition.partition_io import PartitionIO
from app.cluster.topics import apply_topics
from app.kafka.batch_producer import BatchProducer
from app.kafka.log import KafkaLog
from app.mapfile.load import parse_map
from benchmarks.cases import CASES
from benchmarks.load import START_MS, encode
from benchmarks.runs import WorkerRun
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Map
from tables.model.limits import RECORD_BYTES_MAX
from tables.state.input_plan import InputPlan, plans_of
from tables.state.store import PartitionStore
from treasure_map.query import QueryClient

CELLS = 1_000_000
SMOKE_CELLS = 20_000
EVENTS_PER_CELL = 3
LAYER = "days"

MAP_TEXT = """
revision = 1
name = "{name}"
[sources.input]
topic = "{name}.input"
partitions = 1
time = "at"
type = "type"
keyed_by = ["entity"]
[sources.input.fields]
type = "string"
entity = "string"
value = "float"
[layers.days]
source = "input"
events = ["**"]
key = ["type", "entity"]
window = "1d"
measures = ["count", "sum(value)", "min(value)", "max(value)"]
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The cost of one recovery, on one core, from the claim to a state that serves."""

    case: str
    cells: int
    seconds: float
    cpu_seconds: float
    cells_per_second: float
    journal_entries: int
    state_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """A partition whose worker has ended."""

    plan: InputPlan
    brokers: str
    cells: int
    folder: Path


def loaded(brokers: str, cells: int, folder: Path) -> Load:
    """Let a worker fold events into ``cells`` open cells of one partition, and end it."""
    name = f"b{uuid.uuid4().hex[:8]}"
    text = MAP_TEXT.format(name=name)
    themap = parse_map(text, name)
    folder.mkdir(parents=True, exist_ok=True)
    map_file = folder / "map.toml"
    map_file.write_text(text)
    asyncio.run(fill(brokers, themap, cells, EVENTS_PER_CELL))

    def done(client: QueryClient) -> bool:
        return bool(client.ledger()["layers"][LAYER]["folded"] == cells * EVENTS_PER_CELL)

    with WorkerRun(brokers, map_file, folder) as worker:
        worker.wait(done)
    plan = plans_of(themap)[themap.sources[0].topic]
    return Load(plan, brokers, cells, folder / "state" / themap.name / plan.topic / "0")


def run(case: str, load: Load, folder: Path) -> Row:
    """Claim the partition again, from the ``journal`` or the ``store``; check its cells."""
    if case == "store":
        shutil.copytree(load.folder, folder)
    return asyncio.run(_run(case, load, folder))


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of medians by case, its head first, with the spread of the seconds."""
    table = [["case", "cells", "runs", "seconds", "spread", "CPU-s", "cells/s", "state MiB"]]
    for case in dict.fromkeys(row.case for row in rows):
        runs = [row for row in rows if row.case == case]
        seconds = [row.seconds for row in runs]
        table.append([
            case, f"{runs[0].cells:,}", str(len(runs)), f"{statistics.median(seconds):.2f}",
            f"{min(seconds):.2f}..{max(seconds):.2f}",
            f"{statistics.median(row.cpu_seconds for row in runs):.2f}",
            f"{statistics.median(row.cells_per_second for row in runs):,.0f}",
            f"{runs[0].state_bytes / 2**20:,.0f}",
        ])  # fmt: skip
    return table


async def _run(case: str, load: Load, folder: Path) -> Row:
    log = KafkaLog(load.brokers, RECORD_BYTES_MAX)
    await log.start()
    try:
        begun, cpu = time.monotonic(), time.process_time()
        store = PartitionStore(folder)
        # It is never opened: the measured recovery reads journal and store.
        archive = EmbeddedArchive(folder.parent / "archive")
        owner = Owner(load.plan, 0, PartitionIO(load.plan, 0, log, store, archive=archive))
        await owner.claim()
        seconds, used = time.monotonic() - begun, time.process_time() - cpu
        first, end = await log.bounds(load.plan.journal, 0)
        store.close()
    finally:
        await log.stop()
    table = owner.state.tables[LAYER]
    found = table.cells().select(pl.len().alias("cells"), pl.col("events").sum()).row(0)
    if found != (load.cells, load.cells * EVENTS_PER_CELL):
        raise AssertionError(f"recovered {found} cells and events; want {load.cells} cells")
    size = sum(block.estimated_size() for block in table.blocks.values())
    return Row(case, load.cells, seconds, used, load.cells / seconds, end - first, int(size))


async def fill(brokers: str, themap: Map, cells: int, events_per_cell: int) -> None:
    """Make the map's topics, and write so many events of each of ``cells`` keys."""
    await apply_topics(brokers, themap)
    (source,) = themap.sources
    entities = pl.DataFrame({"entity": [f"user-{number}" for number in range(cells)]})
    async with BatchProducer(brokers, source.topic) as feed:
        for number in range(events_per_cell):
            events = entities.select(
                pl.lit("order.paid").alias("type"),
                pl.lit(START_MS + number).alias("at"),
                "entity",
                pl.lit("eu-west").alias("region"),
                pl.int_range(pl.len()).cast(pl.Float64).alias("value"),
            )
            records = encode(CASES["arrow"], events)
            feed.add(0, [None] * len(records), records)
            await feed.flush()
