"""Damaged bytes of our own, given to their readers, in a process: ``test_damage.py`` runs it.

Some readers end the process over bytes that they do not expect, so whoever tries that must be able
to lose it. Arguments: a kind of bytes, a seed, and how many damaged copies to try. Prints how many
were refused and taken.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl

from agents.fold.gather import Gatherer
from agents.partition.recovery import apply_value
from app.peers.wire import decode_rows, encode_jobs
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model import ledger
from tables.model.errors import ArchiveError, JournalRefusedError
from tables.model.layer import Map
from tables.query.family import KeyFilter
from tables.query.live import LiveJob, LiveRead
from tables.record.sealed import HEAD_BYTES, DamagedError
from tables.state.cell import archive_schema
from tables.state.journal import Announcement, Snapshot, encode_entry
from tables.state.partition_state import PartitionState
from tables.state.snapshot import capture
from tables.state.store import PartitionStore
from tests.support.archive_rows import HOURS, Clock, cell, frame
from tests.support.common import HOUR_MS, run_of
from tests.support.contributions import TOPIC, contribution
from tests.support.state_support import DAY_PLAN, HOUR, RAW_PLAN, Journal, claim, delta, hour_block

Try = Callable[[bytes], bool]
"""Gives bytes to their reader; returns whether it took them. Fails if the reader is deceived."""


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Return bytes with some changed, cut off, added, or made up."""
    data = bytearray(good)
    how = chance.random()
    if how < 0.75:
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(data))
            data[at] = chance.choice((chance.randrange(256), data[at] ^ 1 << chance.randrange(8)))
    elif how < 0.85:
        del data[chance.randrange(len(data)) :]
    elif how < 0.9:
        data += chance.randbytes(chance.randrange(1, 20))
    elif how < 0.95:
        first = chance.randrange(len(data))
        data[first : first + 8] = chance.choice((bytes(8), b"\xff" * 8, b"\x7f" * 8))
    else:
        data[1:] = chance.randbytes(chance.randrange(1, 200)) if how < 0.98 else b"\x91" * 9_999
    return bytes(data)


def cells(rows: int) -> list[tuple[str, str, int, int]]:
    """Return cells of hours."""
    return [(f"origin {at}", "UA", at % 3 * HOUR_MS, at) for at in range(rows)]


def entries() -> list[bytes]:
    """Return a journal in the format of today, with every kind of entry and block."""
    values = []
    for rows, small in ((100, False), (5, False), (5, True)):
        journal = Journal(RAW_PLAN)
        entry = delta(
            journal.state, 3, {"hour": hour_block(cells(rows), small=small)}, evicted={"hour": [0]},
            ledger={"records.with_events": 3}, floors={"hour": 1}, tail=(1, 7),
        )  # fmt: skip
        assert journal.append(entry)
        values.append(journal.values[1])
    return [
        *(encode_entry(part) for part in capture(journal.state)),
        encode_entry(Snapshot(4, [(4, 9, 9)])),
        encode_entry(claim(revision=2)),
        *values,
    ]


def unsealed(value: bytes, form: int) -> bytes:
    """Return an entry or contribution as an earlier format had it."""
    return bytes((form,)) + value[HEAD_BYTES:]


def journal_of(form: int) -> tuple[list[bytes], Try]:
    """Return a journal's entries in a format, and a try that applies one to the state before it."""
    values = entries()
    if form < 3:
        values = [unsealed(value, form) for value in values]

    def attempt(value: bytes) -> bool:
        state = PartitionState(RAW_PLAN)
        assert apply_value(state, 0, encode_entry(claim()))
        try:
            apply_value(state, 0, value)
            for table in state.tables.values():
                table.cells()
            list(capture(state))
        except JournalRefusedError:
            return False
        return True

    return values, attempt


def layer_topic(form: int) -> tuple[list[bytes], Try]:
    """Return records of a layer topic, and a try that gathers one behind a good one."""
    rows = [(f"carrier {at}", at % 9, at, at) for at in range(60)]
    values = [
        contribution(rows),
        contribution(rows[:3]),
        contribution([], announced=Announcement(9, 9)),
    ]
    if form < 2:
        values = [unsealed(value, form) for value in values]

    def attempt(value: bytes) -> bool:
        state = PartitionState(DAY_PLAN)
        good = contribution([("DL", 25, 4, 9)], sender=1)
        content, aside = Gatherer(DAY_PLAN).gather(run_of([good, value], 0, 0, TOPIC), state)
        rows = content.blocks["day"]
        assert isinstance(rows, pl.DataFrame)
        assert rows.filter(key_carrier="DL")["sum_delay"].to_list() == [4]
        assert ledger.imbalances(content.ledger, 2, ["day"]) == []
        assert content.ledger.get("unreadable.contribution", 0) == len(aside)
        return not aside

    return values, attempt


def store(folder: Path) -> tuple[list[bytes], Try]:
    """Return the values of a local store, and a try that loads it with one of them changed."""
    journal = Journal(RAW_PLAN)
    for rows, small in ((100, False), (5, False), (5, True)):
        block = hour_block(cells(rows), small=small)
        assert journal.append(
            delta(journal.state, journal.state.meta.next_offset + 1, {"hour": block})
        )
    opened = PartitionStore(folder / "0")
    opened.save(journal.state.all_writes(), journal.state.meta)
    values = {key: opened._db[key] for key in opened._db.keys()}  # noqa: SIM118 - no mapping

    def attempt(value: bytes) -> bool:
        key = min(values, key=lambda key: distance(values[key], value))
        opened._db[key] = value
        loaded = opened.load(RAW_PLAN)
        opened._db[key] = values[key]
        return loaded is not None

    return [value for key, value in values.items() if key != b"format"], attempt


def distance(one: bytes, other: bytes) -> int:
    """Return in how many places, or by how much in length, bytes differ."""
    differ = sum(a != b for a, b in zip(one, other, strict=False))
    return differ + abs(len(one) - len(other))


def archive(folder: Path, form: int) -> tuple[list[bytes], Try]:
    """Return the pieces of an embedded archive, and a try that reads it with one changed."""
    opened = EmbeddedArchive(folder, Clock())
    loop = asyncio.new_event_loop()
    loop.run_until_complete(opened.open(Map(1, "m", (), (HOURS,), "")))
    rows = frame([cell(key_origin=f"origin {at}", events=3) for at in range(40)])
    times = pl.repeat(7, rows.height, dtype=pl.Int64, eager=True)
    loop.run_until_complete(opened.write(HOURS, rows, times))
    running = opened._running
    assert running is not None
    db = running.db
    (place,) = [key for key in db.keys() if key.startswith(b"hours\x00")]  # noqa: SIM118
    good = db[place] if form > 2 else db[place][HEAD_BYTES:]

    def attempt(value: bytes) -> bool:
        db[place] = value
        try:
            loop.run_until_complete(opened.read(HOURS, CellRange(0, 2**50, {})))
        except ArchiveError:
            return False
        return True

    return [good], attempt


def peer() -> tuple[list[bytes], Try]:
    """Return a worker's answer, and a try that reads it."""
    schema = archive_schema(HOUR)
    row = dict.fromkeys(schema, 1) | {"key_origin": "JFK", "key_carrier": "UA"}
    rows = pl.DataFrame([row] * 40, schema=schema)
    reads = [LiveRead(HOUR, 0, 1, KeyFilter({}, {}), parts=False, partitions=None, after=None)]

    def attempt(value: bytes) -> bool:
        try:
            decode_rows(reads, value)
        except DamagedError:
            return False
        return True

    return [encode_jobs([LiveJob({}, lambda: [rows], rows.height)])], attempt


def kind_of(name: str, folder: Path) -> tuple[list[bytes], Try]:
    """Return good bytes of a kind, and a try that reads them."""
    what, _, form = name.partition(" ")
    match what:
        case "journal":
            return journal_of(int(form))
        case "layer-topic":
            return layer_topic(int(form))
        case "store":
            return store(folder)
        case "archive":
            return archive(folder, int(form))
    return peer()


def main(name: str, seed: int, tries: int) -> None:
    """Try damaged copies of good bytes; those that are sealed must all be refused."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        values, attempt = kind_of(name, Path(folder))
        for value in values:
            assert attempt(value), "it is read as it was written"
        for _ in range(tries):
            good = chance.choice(values)
            bad = damaged(good, chance)
            if bad != good:
                counts["taken" if attempt(bad) else "refused"] += 1
    sys.stdout.write(msgspec.json.encode(counts).decode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
