"""The transport's soak: worker processes on real Kafka through many rebalances, with a toy journal.

    python -m tests.integration.soak_transport --rebalances 100 --seed 1

Members join, leave, are killed, are stopped past their session and continued; the broker restarts;
partitions are added; some restores are slow. The toy journal accepts anything from anybody, as a
Kafka topic would; which deltas stand is decided when it is read: a delta must start where the state
ends and carry the last claim's epoch. At the end every partition's state must equal its log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import KafkaError

from app.kafka.lane import Lane
from app.kafka.transport import Transport
from app.kafka.transport_options import TransportOptions
from app.runtime.faust_app import add_agent, create_app
from tables.model.errors import FencedError
from tables.record.chunk import Chunk, Run
from tests.support import servers

PROGRAM = (sys.executable, "-m", "tests.integration.soak_transport")
RAW, LAYER = "raw", "layer"
PARTITIONS = 6
WORKERS_MAX = 4
SESSION_MS = 3_000
SETTLE_SECONDS_MAX = 90.0


@dataclasses.dataclass
class State:
    """The state that a reader of the toy journal folds from it, for one partition."""

    to: int = 0
    epoch: int = -1
    records: int = 0
    total: int = 0
    rejected: int = 0


class ToyJournal:
    """Claims and deltas of all partitions in one SQLite file that processes share."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, topic TEXT, partition INT,"
            " epoch INT, generation INT, start INT, stop INT, records INT, total INT)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS at ON entries (topic, partition, id)")

    def claim(self, topic: str, partition: int, generation: int) -> int:
        """Append a claim; its place in the log is the epoch."""
        cursor = self._db.execute(
            "INSERT INTO entries (topic, partition, generation) VALUES (?, ?, ?)",
            (topic, partition, generation),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def append(self, run: Run, epoch: int) -> int:
        """Append a delta for a run, whatever stands before it; return its place."""
        total = sum(int(value) for value in run.values if value is not None)
        cursor = self._db.execute(
            "INSERT INTO entries (topic, partition, epoch, start, stop, records, total)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                run.topic, run.partition, epoch, run.first_offset, run.next_offset,
                len(run.values), total,
            ),
        )  # fmt: skip
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def read(
        self, topic: str, partition: int, state: State | None = None, after: int = 0
    ) -> tuple[State, int]:
        """Apply the entries behind ``after``; return the state and the last entry's place."""
        state = state or State()
        rows = self._db.execute(
            "SELECT id, epoch, start, stop, records, total FROM entries"
            " WHERE topic = ? AND partition = ? AND id > ? ORDER BY id",
            (topic, partition, after),
        )
        for place, epoch, start, stop, records, total in rows:
            after = place
            if start is None:
                state.epoch = place
            elif start == state.to and epoch == state.epoch:
                state.to, state.records, state.total = (
                    stop, state.records + records, state.total + total,
                )  # fmt: skip
            else:
                state.rejected += 1
        return state, after

    def partitions(self) -> list[tuple[str, int]]:
        """Return the partitions that have entries."""
        return list(self._db.execute("SELECT DISTINCT topic, partition FROM entries"))

    def rebalances(self) -> int:
        """Return how often claims of another generation followed; brokers may count anew."""
        rows = self._db.execute(
            "SELECT COUNT(*) FROM (SELECT generation, LAG(generation) OVER (ORDER BY id) AS before"
            " FROM entries WHERE generation IS NOT NULL) WHERE generation IS NOT before"
        )
        return int(rows.fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class ToyOwners:
    """Owners over the toy journal; ``handle`` is the agents' work."""

    def __init__(self, journal: ToyJournal, restore_seconds: float = 0) -> None:
        self.journal = journal
        self.restart: Callable[[str, int, str], None] | None = None
        self.states: dict[tuple[str, int], tuple[State, int, int]] = {}
        self.restored: list[tuple[str, int, int]] = []
        self._restore_seconds = restore_seconds

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Claim and read; a claim that is not the last one is fenced."""
        epoch = self.journal.claim(topic, partition, generation)
        await asyncio.sleep(self._restore_seconds)
        state, place = self.journal.read(topic, partition)
        if state.epoch != epoch:
            raise FencedError(f"cannot own {topic}[{partition}]: claimed by another")
        self.states[topic, partition] = (state, place, epoch)
        self.restored.append((topic, partition, state.to))
        return state.to

    async def release(self, partitions: set[tuple[str, int]]) -> None:
        """Forget."""
        await asyncio.sleep(0)
        for tp in partitions:
            self.states.pop(tp, None)

    def held(self) -> set[tuple[str, int]]:
        """Nothing is on disk."""
        return set()

    async def handle(self, chunk: Chunk) -> None:
        """Append one delta per run, read back, and take the deltas that stand."""
        for run in chunk.runs:
            tp = (run.topic, run.partition)
            held = self.states.get(tp)
            if held is None or held[0].to != run.first_offset:
                continue
            state, after, epoch = held
            place = self.journal.append(run, epoch)
            await asyncio.sleep(0)
            state, after = self.journal.read(*tp, state, after)
            stands = after >= place and state.epoch == epoch and state.to == run.next_offset
            if stands:
                if tp in self.states and self.states[tp][2] == epoch:
                    self.states[tp] = (state, after, epoch)
            elif self.states.pop(tp, None) and self.restart is not None:
                self.restart(*tp, "a delta does not stand")


def build_worker(options: TransportOptions, owners: ToyOwners, port: int, folder: Path) -> Any:
    """Return a Faust App whose agents write the toy journal."""
    app = create_app("soak", data_folder=folder, web_port=port)
    transport = Transport(options, app.flow_control.clear)
    topics = {"ingest": RAW, "rollup": LAYER}
    lanes = [
        Lane(agent, [topic], app.chunks[agent].put, transport.lane_idle)
        for agent, topic in topics.items()
    ]
    transport.serve(owners, lanes)
    owners.restart = transport.restart
    for lane in lanes:
        add_agent(app, lane, owners.handle, transport.fail)
    app.own_services.append(transport)
    return app


def run_worker(config: dict[str, Any]) -> None:
    """Run one worker process until a signal."""
    import faust  # noqa: PLC0415 - only this process needs it

    folder = Path(config["folder"])
    options = TransportOptions(
        brokers=config["brokers"],
        group="soak",
        node=config["node"],
        web_url=f"http://127.0.0.1:{config['port']}",
        session_timeout_ms=SESSION_MS,
        metadata_max_age_ms=2_000,
        chunk_records_max=500,
    )
    owners = ToyOwners(ToyJournal(folder / "journal.db"), config["restore_seconds"])
    app = build_worker(options, owners, config["port"], folder / config["node"])
    faust.Worker(app, loglevel="INFO", redirect_stdouts=False).execute_from_commandline()


class Soak:
    """The processes of one run, and the faults that befall them."""

    def __init__(self, broker: servers.KafkaServer, folder: Path, seed: int) -> None:
        self.broker = broker
        self.folder = folder
        self.random = random.Random(seed)
        self.journal = ToyJournal(folder / "journal.db")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.done: Counter[str] = Counter()
        self._names = iter(range(1_000_000))
        self._partitions = PARTITIONS
        self._producing = True

    def start_worker(self, restore_seconds: float = 0) -> None:
        """Start one more member."""
        number = next(self._names)
        config: dict[str, Any] = {
            "brokers": self.broker.bootstrap,
            "folder": str(self.folder),
            "node": f"node{number}",
            "port": servers.free_ports(1)[0],
            "restore_seconds": restore_seconds,
        }
        with (self.folder / f"node{number}.log").open("wb") as log:
            self.workers[config["node"]] = subprocess.Popen(
                [*PROGRAM, "--worker", json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _take_worker(self) -> tuple[str, subprocess.Popen[bytes]]:
        name = self.random.choice(sorted(self.workers))
        return name, self.workers[name]

    def join(self) -> None:
        """A member joins."""
        self.start_worker()

    def join_slow(self) -> None:
        """A member joins whose restores take longer than most things here."""
        self.start_worker(restore_seconds=2)

    async def leave(self) -> None:
        """A member is asked to end, and must end well."""
        name, process = self._take_worker()
        # Before that it may not have set its signal handlers yet.
        await self._joined(name)
        process.terminate()
        code = await asyncio.to_thread(process.wait, 60)
        del self.workers[name]
        assert code == 0, f"{name} ended with {code} on SIGTERM: {self.tail(name)}"

    def kill(self) -> None:
        """A member vanishes."""
        name, process = self._take_worker()
        process.kill()
        process.wait()
        del self.workers[name]

    async def pause(self) -> None:
        """A member is stopped past its session and continued: a zombie with a chunk in hand."""
        _, process = self._take_worker()
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(SESSION_MS / 1000 + self.random.uniform(0.5, 2))
        finally:
            process.send_signal(signal.SIGCONT)

    async def restart_broker(self) -> None:
        """The broker goes and comes back."""
        for name in self.workers:
            # A worker that finds no broker when it starts ends with that reason, as it should.
            await self._joined(name)
        await asyncio.to_thread(self.broker.restart)

    async def add_partitions(self) -> None:
        """Both topics grow."""
        self._partitions += 2
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.bootstrap)
        await admin.start()
        try:
            grown = NewPartitions(total_count=self._partitions)
            await admin.create_partitions({RAW: grown, LAYER: grown})
        finally:
            await admin.close()

    async def step(self) -> None:
        """Do one thing to the group."""
        actions: list[Callable[[], Awaitable[None] | None]] = []
        if len(self.workers) < WORKERS_MAX:
            actions += [self.join] * 3 + [self.join_slow]
        if len(self.workers) > 1:
            actions += [self.leave, self.kill, self.pause] * 2
        if self.done["restart_broker"] < 1 + sum(self.done.values()) // 25:
            actions.append(self.restart_broker)
        if self.done["add_partitions"] < 2:
            actions.append(self.add_partitions)
        action = self.random.choice(actions)
        name = getattr(action, "__name__", str(action))
        self.done[name] += 1
        waiting = action()
        if waiting is not None:
            await waiting
        for worker, process in self.workers.items():
            assert process.poll() is None, f"{worker} ended by itself: {self.tail(worker)}"

    async def _joined(self, name: str) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while "partitions assigned" not in self.tail(name, 1_000_000):
            assert time.monotonic() < deadline, f"{name} never joined: {self.tail(name)}"
            await asyncio.sleep(0.1)

    def tail(self, worker: str, characters: int = 3_000) -> str:
        """Return the end of a worker's log."""
        return (self.folder / f"{worker}.log").read_text(errors="replace")[-characters:]

    async def produce(self) -> None:
        """Write numbers, some without a value, to random partitions until told to end."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.broker.bootstrap, linger_ms=5, metadata_max_age_ms=2_000
        )
        await producer.start()
        number = 0
        try:
            while self._producing:
                for _ in range(20):
                    number += 1
                    heartbeat = number % 50 == 0
                    with contextlib.suppress(KafkaError):
                        # Only the log at the end counts.
                        await producer.send(
                            (RAW, LAYER)[number % 2],
                            None if heartbeat else b"%d" % number,
                            # aiokafka's producer takes no record without key and value.
                            key=b"key" if heartbeat else None,
                            partition=self.random.randrange(PARTITIONS),
                            headers=[("treasure-map-time", b"1")] if heartbeat else [],
                        )
                await asyncio.sleep(0.02)
        finally:
            await producer.stop()

    async def run(self, rebalances: int) -> dict[str, Any]:
        """Run until as many rebalances were seen, settle, compare; return the counts."""
        await _create_topics(self.broker.bootstrap)
        self.start_worker()
        self.start_worker()
        producing = asyncio.create_task(self.produce())
        try:
            while self.journal.rebalances() <= rebalances:
                await self.step()
                if self.random.random() < 0.5:
                    await asyncio.sleep(self.random.uniform(0.1, 1.5))
                else:
                    await self._settle()
            self._producing = False
            await producing
            await self._settle()
            return await self._compare()
        finally:
            self._producing = False
            producing.cancel()
            for process in self.workers.values():
                process.kill()
                process.wait()
            self.journal.close()

    async def _settle(self) -> None:
        """Wait until everything that is in the logs now stands in the journal."""
        ends = await _ends(self.broker.bootstrap)
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while behind := {
            tp: (self.journal.read(*tp)[0].to, end)
            for tp, end in ends.items()
            if self.journal.read(*tp)[0].to < end
        }:
            for worker, process in self.workers.items():
                assert process.poll() is None, f"{worker} ended by itself: {self.tail(worker)}"
            if time.monotonic() > deadline:
                logs = "\n".join(self.tail(worker) for worker in self.workers)
                raise AssertionError(f"partitions are stuck (at, end): {behind}\n{logs}")
            await asyncio.sleep(0.2)

    async def _compare(self) -> dict[str, Any]:
        rejected = records = 0
        for tp, (count, total, end) in (await _logs(self.broker.bootstrap)).items():
            state, _ = self.journal.read(*tp)
            got, want = (state.to, state.records, state.total), (end, count, total)
            assert got == want, f"{tp}: got (to, records, total) {got}; want {want}"
            rejected += state.rejected
            records += count
        return {
            "rebalances": self.journal.rebalances(),
            "records": records,
            "rejected_deltas": rejected,
            "actions": dict(self.done),
        }


async def _create_topics(brokers: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in (RAW, LAYER)])
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def _reader(brokers: str) -> Any:
    # Without a group it is assigned every partition that there is.
    consumer = AIOKafkaConsumer(RAW, LAYER, bootstrap_servers=brokers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        assert len(consumer.assignment()) >= 2 * PARTITIONS, "partitions are missing"
        yield consumer
    finally:
        await consumer.stop()


async def _ends(brokers: str) -> dict[tuple[str, int], int]:
    async with _reader(brokers) as consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        return {(tp.topic, tp.partition): end for tp, end in ends.items()}


async def _logs(brokers: str) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Return records, sum of values and end of every partition, read the plain way."""
    async with _reader(brokers) as consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        found = {tp: [0, 0] for tp in ends}
        await consumer.seek_to_beginning(*ends)
        while [tp for tp, end in ends.items() if await consumer.position(tp) < end]:
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                found[tp][0] += len(records)
                found[tp][1] += sum(int(record.value or 0) for record in records)
        return {(tp.topic, tp.partition): (*found[tp], ends[tp]) for tp in ends}


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def soak(rebalances: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run one soak on a broker of its own; return the counts, raise if it went wrong."""
    with servers.KafkaServer(folder / "kafka") as broker:
        return asyncio.run(Soak(broker, folder, seed).run(rebalances))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rebalances", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a new folder for logs and journal, kept")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        run_worker(json.loads(given.worker))
    # While the broker is away aiokafka says so many times a second.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with _folder(given.keep) as folder:
        started = time.monotonic()
        seen = soak(given.rebalances, given.seed, folder)
        seen |= {"seed": given.seed, "seconds": round(time.monotonic() - started)}
        print(json.dumps(seen))  # noqa: T201 - the result of the script


if __name__ == "__main__":
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    main()
