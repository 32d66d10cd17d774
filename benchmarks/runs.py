"""One measured run of a worker process: its CPU time, memory and results, read from outside."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from app.cluster.topics import apply_topics
from app.host.children import start_child, stop_child
from app.mapfile.load import parse_map
from tables.model.layer import Map
from treasure_map.query import QueryClient, QueryFailedError

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 600.0
POLL_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The result of one run.

    ``cpu_seconds`` are of all threads of the worker from its start until the last row was archived,
    without ``startup_cpu_seconds``, those of a worker that has nothing to do. ``seconds`` run from
    the first look at which something had been read.
    """

    case: str
    format: str
    events: int
    events_per_cpu_second: float
    events_per_second: float
    cpu_seconds: float
    startup_cpu_seconds: float
    seconds: float
    peak_memory_bytes: int
    windows_closed: int
    rows_archived: int


def made_map(brokers: str, text: str, name: str, folder: Path) -> tuple[Path, Map]:
    """Write a map into a new folder and make its topics; return its file and the map."""
    folder.mkdir(parents=True)
    map_file = folder / "map.toml"
    map_file.write_text(text)
    themap = parse_map(text, name)
    asyncio.run(apply_topics(brokers, themap))
    return map_file, themap


class WorkerRun:
    """A worker process, pinned to one core if there are more."""

    def __init__(
        self, brokers: str, map_file: Path, folder: Path, module: str = "app", **settings: str
    ) -> None:
        self._module = module
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.archive_folder = folder / "archive"
        own = {k: v for k, v in os.environ.items() if not k.startswith("TREASURE_MAP_")}
        self._environment = own | {
            "POLARS_MAX_THREADS": "1",
            "TREASURE_MAP_BROKERS": brokers,
            "TREASURE_MAP_MAP_FILE": str(map_file),
            "TREASURE_MAP_GROUP": f"benchmark-{time.time_ns()}",
            "TREASURE_MAP_WEB_PORT": str(port),
            "TREASURE_MAP_STATE_FOLDER": str(folder / "state"),
            "TREASURE_MAP_ARCHIVE_FOLDER": str(self.archive_folder),
            "PROFILE_FILE": str(folder / "profile.json"),
            **{f"TREASURE_MAP_{name.upper()}": value for name, value in settings.items()},
        }
        self._log = folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the process."""
        command = [sys.executable, "-m", self._module, "worker"]
        with self._log.open("ab") as log:
            self._process = start_child(command, log, self._environment, ROOT)
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(self._process.pid, {0})
        return self

    def __exit__(self, *_: object) -> None:
        """End it in order."""
        assert self._process is not None
        stop_child(self._process, 30)

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads so far."""
        assert self._process is not None
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_bytes(self) -> int:
        """Return the resident size."""
        return self._status_bytes("VmRSS")

    def peak_memory_bytes(self) -> int:
        """Return the largest resident size so far."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, name: str) -> int:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    def is_ready(self) -> bool:
        """Return whether the worker is restored and caught up."""
        with urllib.request.urlopen(f"{self.url}/readyz") as answer:  # noqa: S310 - its own URL
            return bool(answer.status == HTTPStatus.OK)

    def wait(self, done: Callable[[QueryClient], bool]) -> float:
        """Ask the worker again and again until ``done`` holds; return the seconds that took.

        Raises:
            RuntimeError: the worker ended, or the deadline passed.
        """
        assert self._process is not None
        begun = time.monotonic()
        deadline = begun + DEADLINE_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-3_000:]
                raise RuntimeError(f"cannot measure: the worker ended or took too long\n{tail}")
            try:
                with QueryClient(self.url) as client:
                    if done(client):
                        return time.monotonic() - begun
            except (QueryFailedError, OSError):
                pass
            time.sleep(POLL_SECONDS)


def summary(rows: Iterable[Row]) -> list[list[str]]:
    """Return a table of medians by case, its head first, with the spread of the rates."""
    head = ["case", "events", "runs", "events/CPU-s", "spread", "events/s", "peak MiB",
            "windows", "rows archived"]  # fmt: skip
    table = [head]
    for case, group in itertools.groupby(rows, key=lambda row: row.case):
        runs = list(group)

        def median(name: str, runs: list[Row] = runs) -> Any:
            return statistics.median(getattr(row, name) for row in runs)

        rates = [row.events_per_cpu_second for row in runs]
        table.append([
            case, f"{runs[0].events:,}", str(len(runs)),
            f"{median('events_per_cpu_second'):,.0f}", f"{min(rates):,.0f}..{max(rates):,.0f}",
            f"{median('events_per_second'):,.0f}", f"{median('peak_memory_bytes') / 2**20:,.0f}",
            f"{runs[0].windows_closed:,}", f"{runs[0].rows_archived:,}",
        ])  # fmt: skip
    return table
