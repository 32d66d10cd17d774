"""Peers: the same job on other stream processors and here, on the same topic in one run.

The peers stand in a folder of their own, with a ``run.sh`` each that pins its system to the first
core, compares its output with the exact answer and appends a line to ``results.jsonl``. Kafka is on
the other core. Ours reads the same topic, and its archived rows are compared with the same answer.

    peer   CPU-seconds of all threads from the first to the last event, all and second half
    ours   of all threads from the worker's start until the last row is archived, less start-up;
           second half: from when half of the events were seen to be folded to the same end
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import orjson
import polars as pl

from benchmarks.cases import CASES
from benchmarks.runs import WorkerRun, made_map
from benchmarks.throughput import check_rows, startup
from tables.archive.embedded.archive import EmbeddedArchive
from treasure_map.query import QueryClient

EVENTS = 2_000_000
TOPIC = "peers-input"
SYSTEMS = {"kstreams": ("kstreams", "tuned"), "flink": ("flink",)}
"""Systems that are compared, each with its folder and the options of its ``run.sh``."""

OURS = "treasure-map"

_TRUTH = """
import sys, orjson
from common.expect import expected_windows
for (kind, entity, start), (count, total, least, most) in expected_windows().items():
    row = dict(type=kind, entity=entity, window_start=start, events=count, sum=total)
    sys.stdout.buffer.write(orjson.dumps(row | dict(min=least, max=most)) + b"\\n")
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One run of one system; ``warm`` is the second half of the events."""

    case: str
    format: str
    events: int
    events_per_cpu_second: float
    warm_events_per_cpu_second: float
    events_per_second: float
    peak_memory_bytes: int
    answer: str


class Peers:
    """The folder of the peers and the needs of its scripts.

    Args:
        folder: with ``setup.sh``, ``generate.py`` and a folder for each system.
        work: folder of the installed systems and of results.
        brokers: one broker, whose topics are used.
    """

    def __init__(self, folder: Path, work: Path, brokers: str) -> None:
        self._folder = folder
        self._work = work
        self._brokers = brokers
        self._environment = os.environ | {
            "KAFKA": brokers, "PEERS_WORK": str(work), "INPUT_TOPIC": TOPIC, "WORKER_CPU": "0",
        }  # fmt: skip

    def prepare(self, systems: Iterable[str], events: int) -> pl.DataFrame:
        """Install missing systems and fill the topic; return the exact answer."""
        missing = [name for name in systems if not (self._work / name / "classes").exists()]
        if missing or not self._python.exists():
            self._run(["./setup.sh", *missing])
        self._run([str(self._python), "generate.py", TOPIC, str(events)])
        lines = self._run([str(self._python), "-c", _TRUTH])
        kinds = {
            "type": pl.String, "entity": pl.String, "window_start": pl.Int64,
            "events": pl.Int64, "sum": pl.Float64, "min": pl.Float64, "max": pl.Float64,
        }  # fmt: skip
        rows = [orjson.loads(line) for line in lines.splitlines()]
        return pl.DataFrame(rows, schema=kinds).sort("type", "entity", "window_start")

    def run(self, system: str, events: int) -> Row:
        """Run one system; return its own report."""
        folder, *options = SYSTEMS[system]
        self._run([f"{folder}/run.sh", str(events), *options])
        lines = (self._work / "results.jsonl").read_bytes().splitlines()
        told, answer = (orjson.loads(line) for line in lines[-2:])
        return Row(
            case=" ".join(SYSTEMS[system]),
            format="json",
            events=events,
            events_per_cpu_second=1e6 / told["cpu_s_per_million"],
            warm_events_per_cpu_second=1e6 / told["second_half_cpu_s_per_million"],
            events_per_second=told["events_per_s"],
            peak_memory_bytes=told["rss_mb"] << 20,
            answer=answer["answer"],
        )

    @property
    def _python(self) -> Path:
        return self._work / "venv" / "tools" / "bin" / "python"

    def _run(self, command: Sequence[str]) -> bytes:
        environment = self._environment | {"PYTHONPATH": str(self._folder)}
        done = subprocess.run(  # noqa: S603 - the peers' own scripts
            command, cwd=self._folder, env=environment, capture_output=True, check=False
        )
        if done.returncode:
            told = (done.stdout + done.stderr).decode(errors="replace")[-3_000:]
            raise RuntimeError(f"cannot measure: {' '.join(command[:2])} failed\n{told}")
        return done.stdout


def run_ours(brokers: str, events: int, truth: pl.DataFrame, folder: Path) -> Row:
    """Take the peers' topic through one worker of ours."""
    name = f"p{uuid.uuid4().hex[:8]}"
    text = CASES["json"].map_text(name).replace(f'topic = "{name}.input"', f'topic = "{TOPIC}"')
    text = text.partition("[layers.minutes]")[0]
    map_file, themap = made_map(brokers, text, name, folder)
    spent = _startup(brokers, folder / "idle")

    half: list[tuple[int, float]] = []

    def done(client: QueryClient) -> bool:
        folded = client.ledger()["layers"]["five_seconds"]["folded"]
        if not half and folded >= events / 2:
            half.append((folded, worker.cpu_seconds()))
        (layer,) = client.layers()
        return bool(layer.archived_cells >= truth.height and worker.is_ready())

    # Windows that stay open at the end of the topic are emitted early, once nothing changes them.
    with WorkerRun(brokers, map_file, folder / "worker", early_emit_ms="500") as worker:
        seconds = worker.wait(done)
        whole, memory = worker.cpu_seconds(), worker.peak_memory_bytes()
    rows = check_rows(EmbeddedArchive(worker.archive_folder), themap, {"five_seconds": truth})
    (folded, cpu) = half[0]
    return Row(
        case=OURS,
        format="json",
        events=events,
        events_per_cpu_second=events / (whole - spent),
        warm_events_per_cpu_second=(events - folded) / (whole - cpu),
        events_per_second=events / seconds,
        peak_memory_bytes=memory,
        answer=f"exact, {rows} rows",
    )


def _startup(brokers: str, folder: Path) -> float:
    """Return the CPU time of a worker that has nothing to read, with topics of its own."""
    name = f"p{uuid.uuid4().hex[:8]}"
    text = CASES["json"].map_text(name).partition("[layers.minutes]")[0]
    map_file, _ = made_map(brokers, text, name, folder)
    return startup(brokers, map_file, folder / "worker")


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of medians by system, its head first, with the ratio of ours to each."""
    table = [["case", "events", "runs", "events/CPU-s", "warm half", "spread", "ours / warm half",
              "events/s", "peak MiB", "answer"]]  # fmt: skip
    groups = {case: list(group) for case, group in groupby(rows, key=lambda row: row.case)}
    ours = statistics.median(row.events_per_cpu_second for row in groups[OURS])
    for case, runs in groups.items():
        warm = [row.warm_events_per_cpu_second for row in runs]
        table.append([
            case, f"{runs[0].events:,}", str(len(runs)),
            f"{statistics.median(row.events_per_cpu_second for row in runs):,.0f}",
            f"{statistics.median(warm):,.0f}", f"{min(warm):,.0f}..{max(warm):,.0f}",
            f"{ours / statistics.median(warm):.2f}",
            f"{statistics.median(row.events_per_second for row in runs):,.0f}",
            f"{max(row.peak_memory_bytes for row in runs) / 2**20:,.0f}", runs[0].answer,
        ])  # fmt: skip
    return table
