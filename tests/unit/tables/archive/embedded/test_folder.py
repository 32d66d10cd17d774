"""The embedded archive's folder: another program's is left alone, a damaged one is refused."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import rocksdict

from tables.archive.embedded import extent as archive_extent
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.embedded.wipe import wipe_folder
from tables.archive.identity import History
from tables.model.errors import ArchiveDamagedError, ArchiveError
from tables.model.layer import Map
from tables.record.sealed import unsealed
from tables.state.store import PartitionStore
from tests import ROOT
from tests.support.archive_rows import HOURS, START_MS, cell, get, put
from tests.support.common import HOUR_MS
from tests.support.state_support import RAW_PLAN, Journal

MAP = Map(revision=1, name="m", sources=(), layers=(HOURS,), digest="")
WHAT_TO_DO = "restore the archive's folder from a copy, or start over with `reset`"

WRITES = """
import asyncio, os, pathlib, signal, sys
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Map
from tests.support import archive_rows as t
async def main():
    archive = EmbeddedArchive(pathlib.Path(sys.argv[1]))
    await archive.open(Map(1, 'm', (), (t.HOURS,), ''))
    for at in range(40):
        await t.put(archive, *(t.cell(key_gate=at * 40 + i) for i in range(40)))
        if at == 20:
            archive._running.db.flush()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
ROWS = 1_600


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a writer that was killed: half of its rows are in a table."""
    folder = tmp_path_factory.mktemp("killed") / "archive"
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(folder)], check=False, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return the names and hashes of the files in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


async def refusal(folder: Path, kind: type[ArchiveError] = ArchiveError) -> str:
    """Return the words that a folder is refused with, of which nothing is changed by that."""
    before = contents(folder)
    archive = EmbeddedArchive(folder)
    with pytest.raises(kind) as refused:
        await archive.open(MAP)
    assert not archive.is_open
    assert contents(folder) == before
    return str(refused.value)


async def rows_of(folder: Path) -> int:
    """Return how many rows an archive has."""
    archive = EmbeddedArchive(folder)
    await archive.open(MAP)
    try:
        return (await get(archive)).height
    finally:
        await archive.close()


def own_database(folder: Path) -> None:
    """Make a database of another program that uses the same library."""
    with_keys = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
    with_keys[b"\x00of another"] = b"program"
    with_keys.close()


def other_families(folder: Path) -> None:
    """Make one that keeps its rows in a column family."""
    database = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
    family = database.create_column_family("rows", rocksdict.Options(raw_mode=True))
    family[b"a"] = b"b"
    family.close()
    database.close()


def without_library(folder: Path) -> None:
    """Make one that has not the file that our library lays beside it."""
    own_database(folder)
    (folder / "rocksdict-config.json").unlink()


def local_store(folder: Path) -> None:
    """Make a local store of ours, which is not an archive either."""
    store = PartitionStore(folder)
    store.save([], Journal(RAW_PLAN).state.meta)
    store.close()


@pytest.mark.parametrize("make", [own_database, other_families, without_library, local_store])
async def test_another_program_s_database_is_left_alone(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Not a byte of it changes; it was once opened for writing, and `reset` deleted it."""
    folder = tmp_path / "theirs"
    make(folder)
    words = await refusal(folder)
    assert words.startswith(f"cannot open archive in {folder}: it has another program's database")
    assert "set archive_folder to one of its own" in words
    before = contents(folder)
    with pytest.raises(ArchiveError, match="another program's database"):
        wipe_folder(folder, "m")
    assert contents(folder) == before


async def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """RocksDB takes names that look like its own for its own."""
    for name in ("notes.txt", "a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("a person's")
    words = await refusal(tmp_path)
    assert "the folder has other files: got a.csv, b.csv, c.csv and 1 more; want one" in words
    wipe_folder(tmp_path, "m")
    assert len(contents(tmp_path)) == 4


async def test_what_file_systems_lay_into_an_empty_folder_does_no_harm(tmp_path: Path) -> None:
    """A new volume has such things."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".DS_Store").write_text("")
    assert await rows_of(tmp_path) == 0
    (tmp_path / "notes.txt").write_text("a person's, who came later")
    assert await rows_of(tmp_path) == 0
    wipe_folder(tmp_path, "m")
    assert await rows_of(tmp_path) == 0
    assert (tmp_path / "notes.txt").exists()


def flip(path: Path, chance: random.Random) -> None:
    """Change a bit."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    """Cut a file off."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def lose(path: Path, _: random.Random) -> None:
    """Remove a file."""
    path.unlink()


@pytest.mark.parametrize("harm", [flip, cut, lose])
@pytest.mark.parametrize("name", ["*.sst", "*.log", "MANIFEST-*", "CURRENT"])
async def test_of_damaged_files_no_part_is_taken_for_all(
    killed: Path, tmp_path: Path, name: str, harm: Callable[[Path, random.Random], None]
) -> None:
    """All rows are there, or the folder is refused with advice, and left as it is."""
    refused = 0
    for seed in range(12):
        folder = tmp_path / str(seed)
        shutil.copytree(killed, folder)
        (path,) = [path for path in folder.glob(name) if path.stat().st_size]
        harm(path, random.Random(seed))
        words = ""
        try:
            assert await rows_of(folder) == ROWS, f"seed {seed}"
        except ArchiveDamagedError as error:
            words = str(error)
        if words:
            refused += 1
            assert WHAT_TO_DO in words
            assert "another worker has it open" not in words
        if words.startswith("cannot open archive in"):
            assert await refusal(folder, ArchiveDamagedError) == words
            wipe_folder(folder, "m")
            assert await rows_of(folder) == 0
    assert refused


async def test_rows_are_written_beside_a_damaged_table(killed: Path, tmp_path: Path) -> None:
    """Its bucket is not merged any more, and its readers get an error; the rest goes on."""
    folder = tmp_path / "archive"
    shutil.copytree(killed, folder)
    (table,) = folder.glob("*.sst")
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    archive = EmbeddedArchive(folder)
    await archive.open(MAP)
    later = START_MS + 400 * HOUR_MS
    for gate in range(70):
        await put(archive, cell(key_gate=gate, version=9))
        await put(archive, cell(key_gate=gate, window_start=later))
    with pytest.raises(ArchiveDamagedError, match="cannot read layer hours: RocksDB says Corrup"):
        await get(archive)
    assert (await get(archive, later, later + 1)).height == 70
    await archive.close()


async def test_a_write_that_was_not_acknowledged_may_be_torn(killed: Path, tmp_path: Path) -> None:
    """A process that dies while it writes leaves the beginning of a record."""
    folder = tmp_path / "archive"
    shutil.copytree(killed, folder)
    (log,) = [path for path in folder.glob("*.log") if path.stat().st_size]
    with log.open("ab") as file:
        file.write(os.urandom(4) + (900).to_bytes(2, "little") + b"\x01" + os.urandom(300))
    assert await rows_of(folder) == ROWS


async def test_the_file_beside_the_database_may_be_lost_or_damaged(
    killed: Path, tmp_path: Path
) -> None:
    """It names missing files; reads of the others do not need it, and it is written anew."""
    folder = tmp_path / "archive"
    shutil.copytree(killed, folder)
    place = folder / archive_extent.NAME
    for data in (None, b"", b"\x03" + os.urandom(40)):
        place.unlink() if data is None else place.write_bytes(data)
        assert await rows_of(folder) == ROWS
        known = archive_extent.written(folder)
        assert known is not None
        assert (known[0].sequence > 40, known[1]) == (True, "m")


async def test_a_damaged_archive_of_another_map_is_not_deleted(
    killed: Path, tmp_path: Path
) -> None:
    """The file beside the database says whose it is; without it nothing does."""
    folder = tmp_path / "archive"
    shutil.copytree(killed, folder)
    (folder / "CURRENT").write_text("damaged")
    with pytest.raises(ArchiveError, match="rows of another map; got map m; want map other"):
        wipe_folder(folder, "other")
    (folder / archive_extent.NAME).unlink()
    with pytest.raises(ArchiveError, match="does not say of which map it is"):
        wipe_folder(folder, "m")
    assert (folder / "CURRENT").read_text() == "damaged"


async def kept(folder: Path) -> dict[bytes, bytes]:
    """Make an archive with every kind of entry; return those that are not rows."""
    archive = EmbeddedArchive(folder)
    await archive.open(MAP)
    await put(archive, cell())
    await archive.remember("t", 0, History("0" * 16, "cluster"))
    await archive.close()
    database = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
    found = {key: value for key, value in database.items() if key.startswith(b"\x00")}
    database.close()
    return found


def set_entry(folder: Path, key: bytes, value: bytes | None) -> None:
    """Store another value, or none."""
    database = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
    if value is None:
        del database[key]
    else:
        database[key] = value
    database.close()


KEYS = [b"\x00opened", b"\x00archive", b"\x00layer\x00hours", b"\x00history\x00t\x000"]


@pytest.mark.parametrize("key", KEYS)
async def test_a_damaged_entry_is_refused_with_what_to_do(tmp_path: Path, key: bytes) -> None:
    """A smaller count of openings would have new runs take the places of old ones."""
    entries = await kept(tmp_path)
    assert entries.keys() == set(KEYS)
    chance = random.Random(3)
    good = entries[key]
    at = chance.randrange(len(good))
    bad = good[:at] + bytes((good[at] ^ 1 << chance.randrange(8),)) + good[at + 1 :]
    for value in (bad, b"", good[:-1], good + b"\x00", b"{", b"\xff" * 40, b"[" * 9_999):
        set_entry(tmp_path, key, value)
        archive = EmbeddedArchive(tmp_path)
        with pytest.raises(ArchiveDamagedError) as refused:
            await archive.open(MAP)
        assert WHAT_TO_DO in str(refused.value)
        assert str(tmp_path) in str(refused.value)
    set_entry(tmp_path, key, good)
    assert await rows_of(tmp_path) == 1
    if key == b"\x00opened":
        set_entry(tmp_path, key, None)
        with pytest.raises(ArchiveDamagedError, match="does not say how often it was opened"):
            await archive.open(MAP)


async def test_entries_of_earlier_releases_are_sealed(tmp_path: Path) -> None:
    """They had no checksums; the folder has no file beside its database either."""
    entries = await kept(tmp_path)
    bare = {key: bytes(unsealed(value)) for key, value in entries.items()}
    for key, value in bare.items():
        set_entry(tmp_path, key, value)
    (tmp_path / archive_extent.NAME).unlink()
    assert await rows_of(tmp_path) == 1
    for key, value in (await kept(tmp_path)).items():
        content = bytes(unsealed(value))
        assert content == bare[key] or key == b"\x00opened"
    archive = EmbeddedArchive(tmp_path)
    set_entry(tmp_path, b"\x00layer\x00hours", b'{"format": "3", "column order": "a, b"}')
    with pytest.raises(ArchiveDamagedError, match="its description makes no sense"):
        await archive.open(msgspec.structs.replace(MAP, revision=2))
