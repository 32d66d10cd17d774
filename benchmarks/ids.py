"""Ids: cost of duplicate detection for an event, and of a remembered id in memory and bytes.

One partition's steps alone, without broker or worker: hash and look up the ids of a chunk, encode
new ids as a delta's block, apply it. The number of found duplicates is checked.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
import uuid
from collections.abc import Iterable
from itertools import groupby

import polars as pl

from agents.fold.dedupe import Deduper
from app.mapfile.load import parse_map
from benchmarks.cases import CASES
from tables.state.block import encode_block
from tables.state.id_table import IdTable

REMEMBERED = 1_000_000
SMOKE_REMEMBERED = 20_000
EVENTS = 200_000
SMOKE_EVENTS = 4_000
SEED = 11
CHUNKS = ((2_000, 0.0), (2_000, 0.01), (2_000, 0.5), (5, 0.0))
"""Events of a chunk, and the share of them that repeat an id of any age."""

SMALL_CHUNKS_SHARE = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The result of one run; microseconds are of CPU time, bytes are by remembered id."""

    case: str
    remembered: int
    chunk: int
    duplicates: float
    events: int
    micros_per_event: float
    memory_bytes_per_id: float
    journal_bytes_per_id: float


def run(remembered: int, events: int, chunk: int, share: float) -> Row:
    """Take ``events`` events through, in chunks, with so many ids remembered before."""
    chance = random.Random(SEED)  # noqa: S311 - repeatable
    layers = parse_map(CASES["json"].map_text("ids"), "ids").layers[:1]
    deduper, table = Deduper(layers), IdTable(100_000_000)
    known = [_id(chance) for _ in range(remembered)]
    for first in range(0, remembered, 2_000):
        _take(deduper, table, _events(known[first : first + 2_000]))
    # Small chunks cost so much by themselves that fewer tell.
    events = events if chunk >= SMALL_CHUNKS_SHARE else events // SMALL_CHUNKS_SHARE
    chunks, wanted = [], 0
    for _ in range(0, events, chunk):
        repeats = {chance.choice(known) for _ in range(round(chunk * share))}
        fresh = [_id(chance) for _ in range(chunk - len(repeats))]
        known += fresh
        wanted += len(repeats)
        chunks.append(_events([*fresh, *repeats]))
    begin_s, size, found = time.process_time(), 0, 0
    for one in chunks:
        duplicates, written = _take(deduper, table, one)
        found += duplicates
        size += written
    used_s = time.process_time() - begin_s
    if found != wanted or table.rows != len(known):
        raise AssertionError(
            f"{found} duplicates and {table.rows} ids; want {wanted}, {len(known)}"
        )
    return Row(
        case=f"{remembered:,} ids, chunks of {chunk:,}, {share:.0%} duplicates",
        remembered=remembered,
        chunk=chunk,
        duplicates=share,
        events=len(chunks) * chunk,
        micros_per_event=used_s / (len(chunks) * chunk) * 1e6,
        memory_bytes_per_id=_held_bytes(table) / table.rows,
        journal_bytes_per_id=size / max(1, len(chunks) * chunk - wanted),
    )


def summary(rows: Iterable[Row]) -> list[list[str]]:
    """Return a table of medians by case, its head first, with the spread of the times."""
    table = [["case", "runs", "us/event", "spread", "memory B/id", "journal B/id"]]
    for case, group in groupby(rows, key=lambda row: row.case):
        runs = list(group)
        times = [row.micros_per_event for row in runs]
        table.append([
            case, str(len(runs)), f"{statistics.median(times):.2f}",
            f"{min(times):.2f}..{max(times):.2f}", f"{runs[0].memory_bytes_per_id:.0f}",
            f"{runs[0].journal_bytes_per_id:.1f}",
        ])  # fmt: skip
    return table


def _id(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128)))


def _events(ids: list[str]) -> pl.DataFrame:
    """Return events of these ids, all of one window that stays open."""
    return pl.DataFrame({".id": ids}).with_columns(
        time=pl.lit(1, pl.Int64), time_before=pl.lit(1, pl.Int64)
    )


def _held_bytes(table: IdTable) -> int:
    """Return about how much memory rows, filter and the orders of blocks take."""
    held: list[pl.DataFrame | pl.Series] = [*table.blocks.values(), *table._orders.values()]  # noqa: SLF001
    if table._filter is not None:  # noqa: SLF001
        held.append(table._filter._words)  # noqa: SLF001
    return int(sum(one.estimated_size() for one in held))


def _take(deduper: Deduper, table: IdTable, events: pl.DataFrame) -> tuple[int, int]:
    """Take a chunk through; return its duplicates and the bytes that its delta gets."""
    repeats, fresh = deduper.find(events, 1, table)
    data = encode_block(fresh) if fresh.height else b""
    if data:
        table.add(data, 1)
    # The store has them.
    table.writes.clear()
    return len(repeats), len(data)
