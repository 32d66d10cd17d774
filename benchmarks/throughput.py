"""Throughput: a preloaded topic through the whole job of one worker, answers checked first.

Journal, local store, checksums, late check and ledger are on, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from app.cluster.topics import apply_topics
from app.mapfile.load import parse_map
from benchmarks.cases import Case
from benchmarks.load import events_of, fill, truth_of
from benchmarks.runs import Row, WorkerRun, made_map
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import Archive, CellRange
from tables.model.layer import Map
from treasure_map.query import QueryClient

SMOKE_EVENTS = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """The records of the topic, and the right rows.

    ``cassandra`` are the settings of a worker that archives there, empty for the embedded archive.
    """

    case: Case
    name: str
    brokers: str
    events: int
    truth: dict[str, pl.DataFrame]
    startup_cpu_seconds: float
    cassandra: Mapping[str, str]


@contextlib.contextmanager
def loaded(
    case: Case, brokers: str, events: int, cassandra: Mapping[str, str] | None = None
) -> Iterator[Load]:
    """Fill a topic of its own with events, and compute the right rows."""
    name = f"b{uuid.uuid4().hex[:8]}"
    text = case.map_text(name)
    themap = parse_map(text, case.name)
    with TemporaryDirectory() as folder:
        map_file = Path(folder, "map.toml")
        map_file.write_text(text)
        asyncio.run(apply_topics(brokers, themap))
        spent = startup(brokers, map_file, Path(folder, "idle"))
        frame = events_of(events, case.entities)
        asyncio.run(fill(case, brokers, themap, frame))
        truth = truth_of(frame, case.layers())
        yield Load(case, name, brokers, events, truth, spent, cassandra or {})


def run(load: Load, folder: Path, module: str = "app") -> Row:
    """Take the load through one worker of an empty state; check its rows; return the costs.

    Each run has a journal of its own: its map has another name for it. ``module`` runs the
    worker.
    """
    case = load.case
    map_file, themap = own_map(load, folder)
    wanted = {name: frame.height for name, frame in load.truth.items()}
    started: list[float] = []

    def done(client: QueryClient) -> bool:
        ledger = client.ledger()
        if not started and any(row["read"] for row in _partitions(ledger)):
            started.append(time.monotonic())
        layers = {row.name: row.archived_cells for row in client.layers()}
        return all(layers[name] >= count for name, count in wanted.items())

    settings = dict(load.cassandra)
    if settings:
        settings["cassandra_keyspace"] = themap.name
    with WorkerRun(load.brokers, map_file, folder, module, **settings) as worker:
        worker.wait(done)
        seconds = time.monotonic() - started[0]
        cpu, memory = worker.cpu_seconds(), worker.peak_memory_bytes()
        with QueryClient(worker.url) as client:
            _check_ledger(client.ledger(), load.events)
    rows = check_rows(archive_of(settings, worker.archive_folder), themap, load.truth)
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


def startup(brokers: str, map_file: Path, folder: Path) -> float:
    """Return the CPU time that a worker takes until it is ready, with nothing to read."""
    with WorkerRun(brokers, map_file, folder) as worker:
        worker.wait(lambda _: worker.is_ready())
        return worker.cpu_seconds()


def own_map(load: Load, folder: Path) -> tuple[Path, Map]:
    """Return a map that reads the same topic under a name, and with topics, of its own."""
    name = f"r{uuid.uuid4().hex[:8]}"
    text = load.case.map_text(load.name).replace(f'name = "{load.name}"', f'name = "{name}"')
    return made_map(load.brokers, text, name, folder)


def archive_of(settings: Mapping[str, str], folder: Path) -> Archive:
    """Return the archive of a worker with these settings; with none, the embedded one."""
    if not settings:
        return EmbeddedArchive(folder)
    from tables.archive.cassandra.archive import (  # noqa: PLC0415 - an extra
        CassandraArchive,
        CassandraSettings,
    )

    return CassandraArchive(
        CassandraSettings(
            hosts=(settings["cassandra_hosts"],),
            port=int(settings["cassandra_port"]),
            keyspace=settings["cassandra_keyspace"],
            replication=int(settings["cassandra_replication"]),
        )
    )


def _partitions(ledger: dict[str, dict[str, dict[str, dict[str, int]]]]) -> list[dict[str, int]]:
    return [row for rows in ledger["records"].values() for row in rows.values()]


def _check_ledger(ledger: dict[str, object], events: int) -> None:
    folded = ledger["layers"]["five_seconds"]["folded"]  # type: ignore[index]
    if not ledger["balanced"] or folded != events:
        raise AssertionError(f"the ledger is off: {folded} of {events} events; {ledger}")


def check_rows(archive: Archive, themap: Map, truth: dict[str, pl.DataFrame]) -> int:
    """Compare every archived row with the truth; return how many there are."""

    async def read() -> dict[str, pl.DataFrame]:
        await archive.open(themap)
        try:
            found = {}
            for layer in themap.layers:
                starts = truth[layer.name]["window_start"]
                first, last = int(starts.min()), int(starts.max())  # type: ignore[arg-type]
                span = CellRange(first, last + 1, rows_max=10**9)
                found[layer.name] = await archive.read(layer, span)
            return found
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
