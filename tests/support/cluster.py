"""Worker processes for tests: started, killed and asked over HTTP like in production."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from app.host.children import start_child, stop_child
from app.mapfile.load import load_map
from tables.model.layer import combiner_of
from tests import ROOT
from tests.support import servers
from tests.support.waiting import until
from treasure_map.query import QueryClient, QueryFailedError

FLIGHTS_MAP = ROOT / "app" / "demo" / "flights" / "map.toml"
SESSION_MS = 6_000
YEAR_END_MS = 1_388_534_400_000  # 2014-01-01
STOP_SECONDS_MAX = 30


class Worker:
    """One worker process of a house; it may be started again after it was killed."""

    def __init__(self, node: str, folder: Path, environment: dict[str, str]) -> None:
        (port,) = servers.free_ports(1)
        self.node = node
        self.url = f"http://127.0.0.1:{port}"
        self.state_folder = folder / f"state-{node}"
        self._log = folder / f"{node}.log"
        self._environment = environment | {
            "TREASURE_MAP_NODE": node,
            "TREASURE_MAP_WEB_PORT": str(port),
            "TREASURE_MAP_STATE_FOLDER": str(self.state_folder),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the process, with further environment variables if given."""
        command = [sys.executable, "-m", "app", "worker"]
        with self._log.open("ab") as log:
            self._process = start_child(
                command, log, self._environment | dict(environment or {}), ROOT
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; after SIGKILL, wait for the end."""
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()

    def stop(self) -> int:
        """End the process in order; return its exit code."""
        process, self._process = self._process, None
        return stop_child(process, STOP_SECONDS_MAX) if process is not None else 0

    async def stop_aside(self) -> int:
        """End the process in order while the event loop goes on; return its exit code."""
        assert self._process is not None
        return await asyncio.to_thread(stop_child, self._process, STOP_SECONDS_MAX)

    def ended(self) -> int | None:
        """Return the exit code of a process that has ended, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def last_words(self) -> str:
        """Return the reason that the process gave for its end, or the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line for line in lines[:-6:-1] if "error:" in line), "\n".join(lines[-5:]))

    def wipe_state(self) -> None:
        """Remove the state folder of a dead process."""
        if self.state_folder.exists():
            shutil.rmtree(self.state_folder)

    def use_state_folder(self, folder: Path, free_bytes_min: int) -> None:
        """Keep state elsewhere from the next start on, on a disk that pauses input when so full."""
        self.state_folder = folder
        self._environment["TREASURE_MAP_STATE_FOLDER"] = str(folder)
        self._environment["TREASURE_MAP_DISK_FREE_BYTES_MIN"] = str(free_bytes_min)

    def readiness(self) -> str:
        """Return the worker's answer at ``/readyz``, or why it gives none."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:  # noqa: S310
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError as error:
            return repr(error)

    def get(self, what: str) -> Any:
        """Return ``ledger`` or ``layers`` of this worker; None while it does not answer."""
        assert self._process is not None
        if self._process.poll() is not None:
            tail = self._log.read_text(errors="replace")[-3_000:]
            raise AssertionError(f"worker {self.node} ended: {self._process.returncode}\n{tail}")
        return self._asked(what)

    def ledger_if_up(self) -> Any:
        """Return the ledger; None if the worker does not answer, also because it has ended."""
        return self._asked("ledger")

    def _asked(self, what: str) -> Any:
        try:
            with QueryClient(self.url) as client:
                return getattr(client, what)()
        except (QueryFailedError, OSError):
            return None


class Cluster:
    """Workers over one broker, one map and one archive."""

    def __init__(
        self, brokers: str, folder: Path, *, map_file: Path = FLIGHTS_MAP, **settings: str
    ) -> None:
        self.map = load_map(map_file)
        self._map_file = map_file
        self.brokers = brokers
        own = {name: value for name, value in os.environ.items() if "TREASURE_MAP" not in name}
        self._environment = own | {
            "TREASURE_MAP_BROKERS": brokers,
            "TREASURE_MAP_MAP_FILE": str(map_file),
            "TREASURE_MAP_SESSION_TIMEOUT_MS": str(SESSION_MS),
            "TREASURE_MAP_ARCHIVE_FOLDER": str(folder / "archive"),
            **{f"TREASURE_MAP_{name.upper()}": value for name, value in settings.items()},
        }
        self._folder = folder
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        """Make the map's topics."""
        self.run("map", "apply", str(self._map_file))
        return self

    def __exit__(self, *_: object) -> None:
        """End every process."""
        for worker in self.workers:
            worker.stop()

    def add(self) -> Worker:
        """Start another worker."""
        worker = Worker(f"node{len(self.workers)}", self._folder, self._environment)
        self.workers.append(worker)
        worker.start()
        return worker

    def run(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """Run a command to its end, with one of these exit codes; return its output."""
        command = [sys.executable, "-m", "app", *arguments]
        done = subprocess.run(
            command, env=self._environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    async def ledgers(self) -> list[dict[str, Any]]:
        """Return the ledger of every worker that answers."""
        found = await asyncio.gather(*(asyncio.to_thread(w.get, "ledger") for w in self.workers))
        return [ledger for ledger in found if ledger is not None]

    async def folded(self) -> int:
        """Return how many events of base layers of the flights are folded, over all workers."""
        source = self.map.source("flights")
        bases = self.map.base_layers("flights")
        # Of a merged layer, the events are folded by its combiner.
        names = [combiner_of(source, base).name if base.merged else base.name for base in bases]
        return sum(
            ledger["layers"][name]["folded"] for ledger in await self.ledgers() for name in names
        )

    async def folded_more_than(self, count: int) -> None:
        """Wait until more than ``count`` events are folded."""

        async def enough() -> bool:
            return await self.folded() > count

        await until(enough, 90)

    async def sealed(self, deadline_s: float = 150) -> None:
        """Wait until every window of the flights' year is sealed and sent."""
        await until(self._all_sealed, deadline_s)

    async def _all_sealed(self) -> bool:
        partitions: dict[str, set[int]] = {}
        for worker in self.workers:
            layers = await asyncio.to_thread(worker.get, "layers")
            if layers is None:
                return False
            for row in layers:
                if row.name.startswith("contacts"):
                    continue
                sealed = row.floor_ms is not None and row.floor_ms >= YEAR_END_MS
                if row.partitions and (not sealed or row.unacknowledged_windows):
                    return False
                partitions.setdefault(row.name, set()).update(row.partitions)
        whole = {name: set(range(self.map.layer(name).partitions)) for name in partitions}
        return partitions == whole
