"""Runs of the embedded archive: their order, their merging, and their reads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import rocksdict
from hypothesis import given
from hypothesis import strategies as st

from app.verify.archive import FolderRows
from app.verify.errors import VerifyError
from tables.archive.embedded import archive as archive_embedded
from tables.archive.embedded import runs as archive_runs
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.embedded.runs import RunLayout, lead, worth_merging
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveError
from tables.model.layer import Map
from tables.record.sealed import seal, unsealed
from tests.support.archive_rows import HOUR_MS, HOURS, START_MS, Clock, cell, frame
from tests.support.common import seeds

TEXTS = st.text(st.sampled_from("\x00\x01aZ\xffß€\U0001f600"), max_size=4)
KEYS = st.tuples(TEXTS, st.integers(-(2**63), 2**63 - 1), st.booleans())
MAP = Map(revision=1, name="m", sources=(), layers=(HOURS,), digest="")


@given(st.lists(KEYS, min_size=2, max_size=8))
def test_keys_as_bytes_sort_as_polars_sorts_the_columns(keys: list[tuple[str, int, bool]]) -> None:
    """Pieces are found by bytes and cut from sorted frames, so both must have one order."""
    frame = pl.DataFrame(keys, schema=["text", "number", "flag"], orient="row")
    by_columns = frame.sort("text", "number", "flag").rows()
    assert by_columns == sorted(keys, key=lead)
    for key in keys:
        assert all(lead(key).startswith(lead(key[:named])) for named in range(4))


@given(st.lists(KEYS, min_size=2, max_size=8, unique=True))
def test_no_key_begins_with_another(keys: list[tuple[str, int, bool]]) -> None:
    """Else a piece of one key could be taken for one of another."""
    for key in keys:
        others = [lead(other) for other in keys if other[0] != key[0]]
        assert not any(other.startswith(lead(key[:1])) for other in others)


def test_a_row_is_merged_a_few_times_and_runs_stay_few() -> None:
    """A thousand small runs become few, and no row moves more than a handful of times."""
    runs: dict[int, int] = {}
    moved, most = 0, 0
    for number in range(1_000):
        runs[number] = 100
        while chosen := worth_merging(runs, 32):
            assert chosen == sorted(runs, reverse=True)[: len(chosen)]
            rows = sum(runs.pop(run) for run in chosen)
            moved += rows
            runs[max(chosen)] = rows
        most = max(most, len(runs))
    assert sum(runs.values()) == 100_000
    assert most == 32
    assert moved <= 5 * 100_000


def test_a_merged_run_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows a bucket has, no merge holds more than so many."""
    monkeypatch.setattr(archive_runs, "MERGE_ROWS_MAX", 1_000)
    runs = dict.fromkeys(range(40), 300)
    chosen = worth_merging(runs, 32)
    assert chosen == [39, 38, 37]
    assert worth_merging(dict.fromkeys(range(40), 900), 32) == []


@pytest.mark.parametrize("seed", seeds(4))
async def test_what_is_read_is_what_a_dict_would_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    """Runs merge and the archive opens again meanwhile; late rows fall into any bucket."""
    monkeypatch.setattr(archive_runs, "PIECE_ROWS", 3)
    monkeypatch.setattr(archive_runs, "MERGE_ROWS_MAX", rng_of(seed).choice((8, 40, 10_000)))
    monkeypatch.setattr(archive_embedded, "RUNS_MAX", 4)
    monkeypatch.setattr(archive_embedded, "SETTLED_RUNS_MAX", 1)
    monkeypatch.setattr(archive_embedded, "BUCKETS_KNOWN", 2)
    rng = rng_of(seed)
    archive = EmbeddedArchive(tmp_path, Clock())
    await archive.open(MAP)
    held: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
    for step in range(60):
        rows, times = [], []
        for _ in range(rng.randint(1, 8)):
            # Most rows are of the newest windows, some are of an older bucket.
            hour = step if rng.random() < 0.8 else rng.randrange(step + 1)
            at = rng.randrange(1, 50)
            row = cell(
                key_origin=rng.choice(["", "J", "JFK", "JF\x00K"]), key_gate=rng.choice((-1, 0, 7)),
                key_late=rng.random() < 0.5, window_start=START_MS + hour * HOUR_MS,
                source_partition=rng.randrange(2), events=at,
            )  # fmt: skip
            place = tuple(row[name] for name in (*HOURS.key_columns, "window_start"))
            place = (*place, row["source_partition"])
            if at > held.get(place, (0, {}))[0]:
                held[place] = at, row
            rows.append(row)
            times.append(at)
        await archive.write(HOURS, frame(rows), pl.Series(times, dtype=pl.Int64))
        if rng.random() < 0.1:
            await archive.close()
            archive = EmbeddedArchive(tmp_path, Clock())
            await archive.open(MAP)
        await check(archive, rng, [row for _, row in held.values()])
    running = archive._running
    assert running is not None
    layout = RunLayout(HOURS)
    buckets = range(START_MS // layout.bucket_ms, START_MS // layout.bucket_ms + 3)
    runs = [layout.runs_of(running.db, bucket) for bucket in buckets]
    if archive_runs.MERGE_ROWS_MAX == 10_000:
        # As many as are let be, and some of which each is larger than twice all later ones.
        assert max(map(len, runs)) <= 4 + 4
    await archive.close()


def rng_of(seed: int) -> random.Random:
    """Return the seed's own chance."""
    return random.Random(seed)


async def check(archive: EmbeddedArchive, rng: random.Random, held: list[dict[str, Any]]) -> None:
    """Read a range with any part of the key named, and compare."""
    first = START_MS + rng.randrange(60) * HOUR_MS
    last = first + rng.randrange(60) * HOUR_MS
    key: dict[str, Any] = {
        "origin": rng.choice(["", "J", "JFK", "JF\x00K", "K"]), "gate": rng.choice((-1, 7)),
        "late": True,
    }  # fmt: skip
    key = {name: value for name, value in key.items() if rng.random() < 0.6}
    got = await archive.read(HOURS, CellRange(first, last, key))
    want = [
        row
        for row in held
        if first <= row["window_start"] < last
        and all(row[f"key_{name}"] == value for name, value in key.items())
    ]
    order = [*HOURS.key_columns, "window_start", "source_partition"]
    assert got.sort(order).equals(frame(want).sort(order))


async def test_a_folder_of_an_older_format_is_refused(tmp_path: Path) -> None:
    """Its rows could not be read; the error names the difference."""
    archive = EmbeddedArchive(tmp_path, Clock())
    await archive.open(MAP)
    assert archive._running is not None
    place = b"\x00layer\x00hours"
    stored = archive._running.db.get(place)
    content = bytes(unsealed(stored)).replace(b'"format":"3"', b'"format":"1"')
    archive._running.db.put(place, seal(3, content))
    await archive.close()
    with pytest.raises(ArchiveError, match="format is 1, want 3"):
        await archive.open(MAP)


@pytest.mark.parametrize("change", ["bucket", "first key"])
async def test_a_piece_that_no_query_finds_is_told_by_verify(tmp_path: Path, change: str) -> None:
    """It reads the folder with code of its own: all rows, each in its own piece."""
    archive = EmbeddedArchive(tmp_path, Clock())
    await archive.open(MAP)
    rows = [cell(key_origin=origin, events=3) for origin in ("EWR", "JFK")]
    for at in (1, 2):
        await archive.write(HOURS, frame(rows), pl.Series([at, at], dtype=pl.Int64))
    await archive.close()
    with FolderRows(tmp_path) as stored:
        found = pl.concat(stored.frames(MAP, HOURS), how="diagonal")
    assert set(found["key_origin"]) == {"EWR", "JFK"}
    assert set(found["events"]) == {3}
    assert found["min_delay"].null_count() == found.height
    db = rocksdict.Rdict(str(tmp_path), rocksdict.Options(raw_mode=True))
    place, block = next((k, v) for k, v in db.items() if k.startswith(b"hours\x00"))
    where = len(b"hours\x00") + 7 if change == "bucket" else len(b"hours\x00") + 16
    db.delete(place)
    db.put(place[:where] + bytes((place[where] + 1,)) + place[where + 1 :], block)
    db.close()
    with FolderRows(tmp_path) as stored, pytest.raises(VerifyError, match="where no query finds"):
        list(stored.frames(MAP, HOURS))
