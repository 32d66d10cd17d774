"""The log and the archive of a worker that was killed half-way through its events, as one file.

``tests/worker/kept`` has a file of every format: later versions read them all. Before a format
changes, ``python -m tests.support.kept_worker FILE`` writes one with the code that still has it.

    line 1   formats, first offsets of truncated topics, positions of the owners
    others   a record with its topic and partition, in order of offsets; or an entry of the archive
"""

from __future__ import annotations

import asyncio
import gzip
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import rocksdict

from agents.partition import owner
from tables.archive.embedded import books
from tables.archive.embedded.archive import EmbeddedArchive
from tables.state import contribution, journal, snapshot
from tests.support.common import DAY_MS, MemoryLog, StoredRecord, flight
from tests.support.local_worker import MAP, RAW, LocalWorker
from tests.support.waiting import beats, until

EVENTS = 90
DAYS = 4
CHUNKS = (3, 8, 1, 6)
"""Events of each chunk that the worker takes in, before and after it is started again."""


class Head(msgspec.Struct, frozen=True):
    """The formats of a file, and the parts of a log that are in no record."""

    journal: int
    contribution: int
    archive: int
    starts: list[tuple[str, int, int]]
    positions: list[tuple[str, int, int]]


class _Line(msgspec.Struct, omit_defaults=True):
    """A record of the log, or with a key an entry of the archive."""

    topic: str = ""
    partition: int = 0
    value: bytes | None = None
    headers: list[tuple[str, bytes]] = []
    key: bytes = b""


def read(file: Path, archive: Path) -> tuple[Head, MemoryLog]:
    """Return the head and the log of a kept worker; write its archive into a new folder."""
    head, *lines = gzip.decompress(file.read_bytes()).splitlines()
    found, log = msgspec.json.decode(head, type=Head), MemoryLog()
    database = rocksdict.Rdict(str(archive), rocksdict.Options(raw_mode=True))
    for line in (msgspec.json.decode(line, type=_Line) for line in lines):
        if line.key:
            database[line.key] = line.value
            continue
        records = log.records.setdefault((line.topic, line.partition), [])
        headers = tuple(line.headers)
        records.append(StoredRecord(len(records), line.value, 2_000_000_000_000, headers))
    database.close()
    log.starts = {(topic, partition): start for topic, partition, start in found.starts}
    return found, log


async def kept(folder: Path) -> bytes:
    """Run a worker in a folder with small snapshots, kill it, and return the file's bytes."""
    owner.SNAPSHOT_TAIL_BYTES_MIN, owner.SNAPSHOT_TAIL_RATIO = 4_000, 1
    snapshot.PIECE_ROWS, snapshot.PART_BYTES = 8, 4_000
    archive, log = EmbeddedArchive(folder / "archive"), MemoryLog()
    await archive.open(MAP)
    worker = LocalWorker(log, archive, folder / "state")
    _fill(log)
    await _work(worker, CHUNKS)
    await worker.kill()
    await _work(worker, CHUNKS[:-1])
    # The day layer's owners do not read the last contributions.
    await worker.step(RAW, CHUNKS[-1])
    await until(lambda: not _unsent(worker))
    positions = [(o.plan.topic, o.partition, o.position) for o in worker.owners.each()]
    await worker.kill()
    assert not worker.failures, worker.failures
    await archive.close()
    lines: list[Head | _Line] = [_head(log, positions)]
    for (topic, partition), records in sorted(log.records.items()):
        for record in records:
            is_gone = record.offset < log.starts.get((topic, partition), 0)
            value = None if is_gone else record.value
            lines.append(_Line(topic, partition, value, list(record.headers)))
    database = rocksdict.Rdict(str(folder / "archive"), rocksdict.Options(raw_mode=True))
    lines += [_Line(key=key, value=value) for key, value in database.items()]
    database.close()
    return gzip.compress(msgspec.json.Encoder().encode_lines(lines), 9, mtime=0)


def _fill(log: MemoryLog) -> None:
    """Write events of four days, some of them with a delay near the limit of 64 bits."""
    rng = random.Random(11)
    for number in range(EVENTS):
        origin, carrier = rng.choice(["JFK", "LGA"]), rng.choice(["UA", "AA"])
        delay = 2**62 if number % 12 == 11 else rng.choice([None, -3, 17])
        at = number * DAYS * DAY_MS // EVENTS
        log.put(RAW, int(origin == "JFK"), flight(at, origin, carrier, delay))
    for partition in range(2):
        log.put(RAW, partition, 10 * DAY_MS)


async def _work(worker: LocalWorker, chunks: Sequence[int]) -> None:
    await worker.restore()
    for events in chunks:
        await worker.step(RAW, events)
        async for beat in beats(0.05):
            if beat:
                await worker.step("small.layer.day", 50)
            if beat == 4:
                break


def _unsent(worker: LocalWorker) -> int:
    """Return how many closed windows some sink has not acknowledged."""
    owners = worker.owners.each()
    return sum(o.sinks.unacknowledged(layer) for o in owners for layer in o.plan.layers)


def _head(log: MemoryLog, positions: list[tuple[str, int, int]]) -> Head:
    starts = [(topic, partition, start) for (topic, partition), start in sorted(log.starts.items())]
    return Head(journal.FORMAT, contribution.FORMAT, int(books.FORMAT), starts, sorted(positions))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        Path(sys.argv[1]).write_bytes(asyncio.run(kept(Path(made))))
