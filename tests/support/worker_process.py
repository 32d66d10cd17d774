"""One worker process with a map, a group and folders of its own, for tests of how it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer

from app.cluster.topics import apply_topics
from app.host.children import start_child, stop_child
from app.mapfile.load import load_map
from tests import ROOT
from tests.support import servers
from tests.support.waiting import until

HOUR_MS = 3_600_000
SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
# Faust's start and stop, and aiokafka's tables of topics; a traceback is not among them.
LINES_MAX = 160
MAP = """
revision = 1
name = "{name}"

[sources.flights]
topic = "{name}.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["origin"]

[sources.flights.fields]
origin = "string"
carrier = "string"
delay = "int"

[layers.hour]
source = "flights"
events = ["flight.*"]
key = ["origin", "carrier"]
window = "1h"
measures = ["count"]

[layers.day]
from = "hour"
key = ["carrier"]
window = "1d"
partitions = 2
"""
MODULE = (sys.executable, "-m", "app", "worker")
FAUST = (
    str(Path(sys.executable).with_name("faust")),
    *("-A", "app.worker", "worker", "-l", "info"),
)
COMMANDS = {"module": MODULE, "faust": FAUST}


AWAY = "Kafka does not answer; "
"""The words of the line with which a worker says that its brokers went away."""


class Process:
    """A worker process with a map, a group and folders of its own."""

    def __init__(self, brokers: str, folder: Path, **settings: str) -> None:
        (self.port,) = servers.free_ports(1)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.map_name = f"t{uuid.uuid4().hex[:12]}"
        self.map_file = folder / "map.toml"
        self.map_file.write_text(MAP.format(name=self.map_name))
        self.log_file = folder / "worker.log"
        self.settings = {
            "brokers": brokers,
            "map_file": str(self.map_file),
            "group": self.map_name,
            "web_port": str(self.port),
            "state_folder": str(folder / "state"),
            "archive_folder": str(folder / "archive"),
        } | settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: tuple[str, ...] = MODULE, *flags: str) -> None:
        """Start the process."""
        environment = {k: v for k, v in os.environ.items() if "TREASURE_MAP" not in k}
        environment |= {f"TREASURE_MAP_{k.upper()}": v for k, v in self.settings.items()}
        with self.log_file.open("wb") as log:
            self._process = start_child([*command, *flags], log, environment, ROOT)

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The started process."""
        assert self._process is not None
        return self._process

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process is not None:
            stop_child(self._process, STOP_SECONDS_MAX)

    def log(self) -> str:
        """Return the log that the process wrote."""
        return self.log_file.read_text(errors="replace")

    async def ended(self, seconds_max: float = SECONDS_MAX) -> int:
        """Wait for the end; return the exit code."""
        try:
            return await asyncio.to_thread(self.running.wait, seconds_max)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds_max} s:\n{self.log()}") from None

    async def stop(self) -> int:
        """Ask the process to end, and wait for it as long as a supervisor would."""
        self.running.send_signal(signal.SIGTERM)
        return await self.ended(STOP_SECONDS_MAX)

    async def says(self, text: str) -> None:
        """Wait until the log has ``text``."""

        async def said() -> bool:
            assert self.running.poll() is None, self.log()
            return text in self.log()

        await until(said, SECONDS_MAX)

    async def ready(self) -> None:
        """Wait until the worker is ready."""

        async def answers() -> bool:
            assert self.running.poll() is None, self.log()
            with contextlib.suppress(OSError):
                return (await self.get("/readyz"))[0] == 200
            return False

        await until(answers, SECONDS_MAX)

    async def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON answer of a path; None if the answer is not JSON."""
        status, body = await self.ask(path)
        with contextlib.suppress(orjson.JSONDecodeError):
            return status, orjson.loads(body)
        return status, None

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a path."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body

    async def send(self, topic: str, *records: tuple[int, bytes]) -> None:
        """Write records, each a partition and a value."""
        async with AIOKafkaProducer(bootstrap_servers=self.settings["brokers"]) as producer:
            for partition, value in records:
                await producer.send_and_wait(topic, value, partition=partition)


async def apply(process: Process) -> None:
    """Make the topics of a process's map."""
    await apply_topics(process.settings["brokers"], load_map(process.map_file))


def last_words(process: Process) -> str:
    """Return the message that the output ends with, of an output without traceback."""
    log = process.log()
    assert "Traceback" not in log
    assert len(log.splitlines()) < LINES_MAX
    _, found, words = f"\n{log}".rpartition("\nerror: ")
    assert found, f"no last words:\n{log}"
    assert " INFO " not in words, f"not the last words:\n{log}"
    return words.rstrip()


def unready(worker: Process, *beginnings: str) -> Callable[[], Awaitable[bool]]:
    """Return a condition: /readyz is 503 and gives these reasons."""

    async def told() -> bool:
        status, state = await worker.get("/readyz")
        reasons = state["reasons"]
        return status == 503 and all(any(r.startswith(b) for r in reasons) for b in beginnings)

    return told
