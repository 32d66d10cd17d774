"""Verify: cost of a recomputation from the raw topic, beside a worker that has read it all.

Each run is ``python -m app verify`` in a process of its own, from its start to its end: it reads
the topic from Kafka, computes all rows, and asks the worker and its archive for them. Its report
has to be equal, with the rows and the events that were made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks.cases import Case, Format
from benchmarks.runs import ROOT, WorkerRun
from benchmarks.throughput import Load, own_map
from treasure_map.query import QueryClient

EVENTS, SMOKE_EVENTS = 10_000_000, 8_000
ENTITIES = 200
"""Entities of the full size, of ten types each, over 100 windows; a smaller load has fewer."""

DEADLINE_SECONDS = 600


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The cost of one run: the CPU time of all its threads, user and system; its greatest size."""

    case: str
    events: int
    layers: int
    rows: int
    cpu_seconds: float
    seconds: float
    peak_memory_bytes: int


def case_of(form: Format, events: int) -> Case:
    """Return five layers in all, four of them on the source."""
    entities = max(1, ENTITIES * events // EVENTS)
    return Case(form, form, base_layers=4, entities=entities)


@contextlib.contextmanager
def worked(load: Load, folder: Path) -> Iterator[tuple[WorkerRun, Path]]:
    """Give a worker that has taken the load through, and its map file."""
    map_file, _ = own_map(load, folder)
    wanted = {name: frame.height for name, frame in load.truth.items()}

    def done(client: QueryClient) -> bool:
        layers = {row.name: row.archived_cells for row in client.layers()}
        return all(layers[name] >= count for name, count in wanted.items())

    with WorkerRun(load.brokers, map_file, folder) as worker:
        worker.wait(done)
        yield worker, map_file


def run(load: Load, worker: WorkerRun, map_file: Path, folder: Path) -> Row:
    """Verify the worker; check the report; return the costs."""
    folder.mkdir(parents=True)
    command = [
        sys.executable, "-m", "app", "verify", "--json", "--map", str(map_file), "--brokers",
        load.brokers, "--url", worker.url, "--archive-folder", str(worker.archive_folder),
        "--deadline", str(DEADLINE_SECONDS),
    ]  # fmt: skip
    own = {k: v for k, v in os.environ.items() if not k.startswith("TREASURE_MAP_")}
    begun = time.monotonic()
    with (folder / "report.json").open("wb") as report, (folder / "error.txt").open("wb") as error:
        process = subprocess.Popen(  # noqa: S603 - this Python
            command, stdout=report, stderr=error, cwd=ROOT, env=own
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begun
    if process.returncode not in (0, 1):
        raise AssertionError(f"cannot measure: {(folder / 'error.txt').read_text()[-2_000:]}")
    rows = _check(orjson.loads((folder / "report.json").read_bytes()), load)
    return Row(
        case=load.case.title,
        events=load.events,
        layers=len(load.truth),
        rows=rows,
        cpu_seconds=used.ru_utime + used.ru_stime,
        seconds=seconds,
        peak_memory_bytes=used.ru_maxrss * 1024,
    )


def summary(rows: Iterable[Row]) -> list[list[str]]:
    """Return a table of medians by case, its head first, with the spread of the CPU times."""
    table = [
        ["case", "events", "layers", "rows", "runs", "CPU s", "spread", "us/event", "peak MiB"]
    ]
    for case, group in itertools.groupby(rows, key=lambda row: row.case):
        runs = list(group)
        spent = [row.cpu_seconds for row in runs]
        cpu = statistics.median(spent)
        peak = max(row.peak_memory_bytes for row in runs)
        table.append([
            case, f"{runs[0].events:,}", str(runs[0].layers), f"{runs[0].rows:,}", str(len(runs)),
            f"{cpu:,.1f}", f"{min(spent):,.1f}..{max(spent):,.1f}",
            f"{cpu / runs[0].events * 1e6:.2f}", f"{peak / 2**20:,.0f}",
        ])  # fmt: skip
    return table


def _check(report: dict[str, Any], load: Load) -> int:
    """Compare a report with the events that were made; return the number of rows."""
    got = {
        row["layer"]: (row["expected"], row["http"], row["archived"]) for row in report["layers"]
    }
    want = {name: (frame.height,) * 3 for name, frame in load.truth.items()}
    if not report["equal"] or got != want or report["ledger"]["events.classified"] != load.events:
        raise AssertionError(f"the report is off: got {got}, want {want}; {report['differences']}")
    return sum(frame.height for frame in load.truth.values())
