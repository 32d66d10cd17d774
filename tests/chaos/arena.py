"""The processes of a chaos run: brokers, Cassandra, workers under a supervisor, the load."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

from app.host.children import start_child, stop_child
from tests import ROOT
from tests.support.cluster import Cluster, Worker
from tests.support.servers import CassandraServer, KafkaServer

MAP_FILE = Path(__file__).with_name("map.toml")
WORKERS_MIN, WORKERS_MAX = 2, 4
SUPERVISE_SECONDS = 0.3
STOP_SECONDS_MAX = 30
VERIFY_SECONDS_MAX = 240


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The report of ``verify``: compared rows, and the differences."""

    rows: int
    differing: list[str]


class SmallDisk:
    """A file system of a few MiB, for the state of one worker; use it in a ``with`` statement.

    Attributes:
        folder: its mount point; None if mounting is not permitted.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
        failed = subprocess.run(command, capture_output=True, check=False).returncode
        self.folder = None if failed else folder

    def __enter__(self) -> Self:
        """Mounted already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unmount it, after every worker has ended."""
        if self.folder is not None:
            subprocess.run(["umount", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no byte free."""
        assert self.folder is not None
        # The worker writes too, so the last of these bytes may find no room.
        with contextlib.suppress(OSError):
            (self.folder / "filler").write_bytes(bytes(shutil.disk_usage(self.folder).free))

    def clear(self) -> None:
        """Make place again."""
        assert self.folder is not None
        (self.folder / "filler").unlink()


class Arena:
    """The parts that faults act on. A process that ends is started again, and its reason kept.

    Attributes:
        random: decides who is hit, and when.
        counts: how often each fault came to its end.
        reasons: the last words of workers that ended by themselves.
        brokers: Kafka nodes that may be killed; none if there is only one.
        busy: workers that a fault is at work on.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        cluster: Cluster,
        cassandra: CassandraServer,
        *,
        brokers: Sequence[KafkaServer] = (),
        disk: SmallDisk | None = None,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.folder = folder
        self.cluster = cluster
        self.cassandra = cassandra
        self.brokers = list(brokers)
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.busy: set[Worker] = set()
        self.removed: set[Worker] = set()
        self.archive_lock, self.broker_lock = asyncio.Lock(), asyncio.Lock()
        self.disk_lock = asyncio.Lock()
        self.manifest = folder / "manifest.json"
        self._load: subprocess.Popen[bytes] | None = None
        self.disk = disk

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the first workers and supervise all; end everything at the end."""
        for _ in range(WORKERS_MIN):
            self.cluster.add()
        supervising = asyncio.create_task(self._supervise())
        try:
            yield
        finally:
            supervising.cancel()
            await asyncio.wait({supervising})
            if self._load is not None:
                stop_child(self._load, STOP_SECONDS_MAX)
        if not supervising.cancelled() and supervising.exception() is not None:
            await supervising

    def start_load(self, seconds: float, rate: float, *options: str) -> None:
        """Start the generator; :meth:`load_ended` waits for it."""
        command = [
            sys.executable, "-m", "app", "generate", "--map", str(MAP_FILE), "--source", "shop",
            "--brokers", self.cluster.brokers, "--manifest", str(self.manifest),
            "--seed", str(self.seed), "--seconds", str(seconds), "--rate", str(rate),
            "--processes", "1", *options,
        ]  # fmt: skip
        with (self.folder / "generate.log").open("wb") as log:
            self._load = start_child(command, log, os.environ, ROOT)

    async def load_ended(self) -> dict[str, Any]:
        """Wait for the generator; return its manifest."""
        assert self._load is not None
        code = await asyncio.to_thread(self._load.wait)
        assert code == 0, (self.folder / "generate.log").read_text(errors="replace")[-3_000:]
        found: dict[str, Any] = json.loads(self.manifest.read_bytes())
        return found

    async def verify(self) -> Report:
        """Recompute every row of the running system and compare."""
        urls = [option for worker in self.present() for option in ("--url", worker.url)]
        said = await asyncio.to_thread(
            self.cluster.run, "verify", "--json", "--deadline", str(VERIFY_SECONDS_MAX), *urls,
            codes=(0, 1),
        )  # fmt: skip
        report = json.loads(said)
        rows = sum(layer["expected"] for layer in report["layers"])
        differing = [
            f"{one['what']}: {one['where']}: got {one['got']}; want {one['want']}"
            for one in report["differences"]
        ]
        assert report["equal"] == (not differing)
        return Report(rows, [*differing, *report["notes"]])

    # Workers.

    @contextlib.contextmanager
    def victim(self) -> Any:
        """Choose a worker that no other fault is at work on; None if every worker has one."""
        free = [w for w in self.cluster.workers if w not in self.busy and w not in self.removed]
        if not free:
            yield None
            return
        worker = self.random.choice(free)
        self.busy.add(worker)
        try:
            yield worker
        finally:
            self.busy.discard(worker)

    def add_worker(self) -> Worker:
        """Start one more: one that was removed before, or a new one."""
        gone = sorted(self.removed, key=lambda worker: worker.node)
        if gone and self.random.random() < 0.5:
            worker = self.random.choice(gone)
            worker.start()
            self.removed.discard(worker)
            return worker
        return self.cluster.add()

    def note_end(self, worker: Worker, code: int) -> None:
        """Note why a worker ended by itself."""
        self.reasons[f"exit {code}: {worker.last_words()}"] += 1

    def present(self) -> list[Worker]:
        """Return the workers that belong to the cluster now."""
        return [worker for worker in self.cluster.workers if worker not in self.removed]

    async def ledgers(self) -> list[dict[str, Any]]:
        """Return the ledgers of the workers that answer."""
        asked = (asyncio.to_thread(worker.ledger_if_up) for worker in self.present())
        return [ledger for ledger in await asyncio.gather(*asked) if ledger is not None]

    async def readiness(self) -> str:
        """Return the report of each worker."""
        present = self.present()
        said = await asyncio.gather(*(asyncio.to_thread(worker.readiness) for worker in present))
        return "\n".join(f"{w.node}: {words}" for w, words in zip(present, said, strict=True))

    def shifting_clock(self) -> Path | None:
        """Return a library that shifts a process's wall clock; None without a compiler."""
        library = self.folder / "clock.so"
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        if not library.exists():
            source = Path(__file__).with_name("clock.c")
            command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
            subprocess.run(command, check=True)
        return library

    async def heal(self) -> None:
        """Let nothing be down any more, after all faults have ended."""
        for worker in self.present():
            worker.signal(signal.SIGCONT)
        while len(self.present()) < WORKERS_MIN:
            self.add_worker()

    async def _supervise(self) -> None:
        """Start workers again that ended by themselves, as systemd or Kubernetes would."""
        while True:
            await asyncio.sleep(SUPERVISE_SECONDS)
            for worker in self.present():
                if worker in self.busy:
                    continue
                code = worker.ended()
                if code is not None:
                    self.note_end(worker, code)
                    worker.start()
