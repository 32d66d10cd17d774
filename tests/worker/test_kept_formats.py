"""Journals, layer topics and archives of all formats are read for ever: old versions wrote these.

Journal 1 is of the last version without MessagePack blocks, 2 of the last one whose claims name no
layers; both have contributions of format 1 and archives of format 2. The young one is of the same
version, and has neither a snapshot nor a day that has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import polars as pl
import pytest

from agents.partition import owner
from tables.archive.embedded import books
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.state import contribution, journal, snapshot
from tables.state.cell import latest, merge_partitions
from tests.support import kept_worker
from tests.support.common import HOUR_MS, MemoryLog
from tests.support.kept_worker import Head
from tests.support.local_worker import MAP, RAW, Event, LocalWorker, check, live_cells

KEPT = sorted((Path(__file__).parent / "kept").glob("*.gz"))
ARCHIVE_FORMATS = {2, 3}
"""The archive of format 1 kept rows one by one, and is refused."""


class _Flight(msgspec.Struct):
    at: int
    origin: str
    carrier: str
    delay: int | None


def events_of(log: MemoryLog, stops: Mapping[int, int | None]) -> list[Event]:
    """Return the events of the raw topic before these offsets, by partition; None is the end."""
    found = []
    for partition, stop in stops.items():
        for record in log.records[RAW, partition][:stop]:
            if record.value is not None:
                event = msgspec.json.decode(record.value, type=_Flight)
                found.append((event.at, event.origin, event.carrier, event.delay))
    return found


async def hours_of(worker: LocalWorker) -> dict[tuple[int, str, str], tuple[int, int]]:
    """Return number of events and sum of delays by hour, origin and carrier, live and archived."""
    layer = MAP.layer("hour")
    archived = await worker.archive.read(layer, CellRange(-(2**60), 2**60))
    rows = merge_partitions(layer, latest(layer, pl.concat([live_cells(worker, layer), archived])))
    return {
        (row["window_start"], row["key_origin"], row["key_carrier"]): (
            row["events"],
            row["sum_delay"] or 0,
        )
        for row in rows.iter_rows(named=True)
    }


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name.partition(".")[0])
async def test_a_worker_goes_on_from_the_bytes_of_every_format(file: Path, tmp_path: Path) -> None:
    """It has every cell that its predecessor had, and comes to the right end."""
    head, log = kept_worker.read(file, tmp_path / "archive")
    assert formats_of(log) == ({head.journal}, {head.contribution})
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    worker = LocalWorker(log, archive, tmp_path / "state")
    try:
        await worker.restore()
        owners = worker.owners.each()
        assert sorted((o.plan.topic, o.partition, o.position) for o in owners) == head.positions
        # Some contributions are still to be read.
        assert all(stop < len(log.records[topic, p]) for topic, p, stop in head.positions)
        stops = {partition: stop for topic, partition, stop in head.positions if topic == RAW}
        known = events_of(log, stops)
        counts: Counter[tuple[int, str, str]] = Counter()
        sums: Counter[tuple[int, str, str]] = Counter()
        for at, origin, carrier, delay in known:
            counts[at // HOUR_MS * HOUR_MS, origin, carrier] += 1
            sums[at // HOUR_MS * HOUR_MS, origin, carrier] += delay or 0
        assert await hours_of(worker) == {key: (counts[key], sums[key]) for key in counts}
        await worker.settle()
        every = events_of(log, dict.fromkeys(stops))
        assert 0 < len(known) < len(every)
        await check(worker, every)
    finally:
        await worker.kill()
        await archive.close()


def formats_of(log: MemoryLog) -> tuple[set[int], set[int]]:
    """Return the format bytes of all entries of journals, and of all contributions."""
    journals: set[int] = set()
    contributions: set[int] = set()
    for (topic, partition), records in log.records.items():
        for record in records[log.starts.get((topic, partition), 0) :]:
            if topic != RAW and record.value is not None:
                (journals if ".journal." in topic else contributions).add(record.value[0])
    return journals, contributions


def test_every_format_has_a_kept_file(tmp_path: Path) -> None:
    """A new format needs a file of its own, written before anything comes after it."""
    heads: list[Head] = []
    for number, file in enumerate(KEPT):
        heads.append(kept_worker.read(file, tmp_path / str(number))[0])
    assert {head.journal for head in heads} == set(range(1, journal.FORMAT + 1))
    assert {head.contribution for head in heads} == set(range(1, contribution.FORMAT + 1))
    assert {head.archive for head in heads} == ARCHIVE_FORMATS
    assert int(books.FORMAT) in ARCHIVE_FORMATS


async def test_a_kept_worker_is_written_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer that makes the next file works when it is needed."""
    # The writer changes them, for smaller snapshots.
    for module, names in (
        (owner, ("SNAPSHOT_TAIL_BYTES_MIN", "SNAPSHOT_TAIL_RATIO")),
        (snapshot, ("PIECE_ROWS", "PART_BYTES")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    (tmp_path / "file").write_bytes(await kept_worker.kept(tmp_path / "worker"))
    head, log = kept_worker.read(tmp_path / "file", tmp_path / "archive")
    assert formats_of(log) == ({journal.FORMAT}, {contribution.FORMAT})
    assert len(head.positions) == len(MAP.inputs()) * 2
