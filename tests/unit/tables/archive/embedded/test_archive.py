"""The embedded archive alone: its folder, its lock, its disk, its common writes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rocksdict
from polars.testing import assert_frame_equal

from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.embedded.runs import RunLayout
from tables.archive.protocol import Archive
from tables.model.errors import ArchiveError
from tables.model.layer import Map
from tests import ROOT
from tests.support.archive_rows import DAY_MS, HOURS, START_MS, TTL, Clock, cell, frame, get, put


async def test_a_second_process_on_the_folder_is_refused(tmp_path: Path) -> None:
    """The embedded archive serves one process; the error says how to go on."""
    themap = Map(revision=1, name="m", sources=(), layers=(HOURS,), digest="")
    archive = EmbeddedArchive(tmp_path)
    await archive.open(themap)
    program = (
        "import asyncio, pathlib, sys\n"
        "from tables.archive.embedded.archive import EmbeddedArchive\n"
        "from tables.model.layer import Map\n"
        "themap = Map(revision=1, name='m', sources=(), layers=(), digest='')\n"
        "asyncio.run(EmbeddedArchive(pathlib.Path(sys.argv[1])).open(themap))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    try:
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False
        )
    finally:
        await archive.close()
    assert done.returncode == 1
    assert "ArchiveError: cannot open archive in" in done.stderr
    assert "another worker has it open" in done.stderr


async def test_another_map_is_refused_and_the_rows_stay(tmp_path: Path) -> None:
    """Rows do not say whose they are, so the folder does; its own map gets in again."""
    mine = Map(revision=1, name="mine", sources=(), layers=(HOURS,), digest="")
    archive = EmbeddedArchive(tmp_path)
    await archive.open(mine)
    drawn = archive.id
    await put(archive, cell())
    await archive.close()
    other = msgspec.structs.replace(mine, name="other", layers=(HOURS, TTL))
    with pytest.raises(ArchiveError, match=r"another map; got map mine; want map other; give each"):
        await archive.open(other)
    assert not archive.is_open
    await archive.open(msgspec.structs.replace(mine, revision=2))
    assert (await get(archive)).height == 1
    assert archive.id == drawn
    await archive.close()


async def test_two_archives_have_two_ids_and_a_moved_one_keeps_its_own(tmp_path: Path) -> None:
    """The id lies in the folder, under any name of the folder."""
    themap = Map(revision=1, name="m", sources=(), layers=(), digest="")
    ids = {}
    for name in ("one", "two"):
        archive = EmbeddedArchive(tmp_path / name)
        assert archive.id == ""
        await archive.open(themap)
        ids[name] = archive.id
        await archive.close()
    moved = EmbeddedArchive((tmp_path / "one").rename(tmp_path / "three"))
    await moved.open(themap)
    assert moved.id == ids["one"] != ids["two"]
    await moved.close()


async def test_a_folder_of_an_older_release_becomes_its_first_map_s(tmp_path: Path) -> None:
    """It has rows and says nothing of a map; from then on it does."""
    themap = Map(revision=1, name="m", sources=(), layers=(HOURS,), digest="")
    archive = EmbeddedArchive(tmp_path)
    await archive.open(themap)
    await put(archive, cell())
    await archive.close()
    folder = rocksdict.Rdict(str(tmp_path), rocksdict.Options(raw_mode=True))
    del folder[b"\x00archive"]
    folder.close()
    await archive.open(themap)
    assert (await get(archive)).height == 1
    await archive.close()
    with pytest.raises(ArchiveError, match="another map"):
        await archive.open(msgspec.structs.replace(themap, name="other"))


async def test_expired_buckets_leave_the_folder(tmp_path: Path) -> None:
    """Once a whole bucket has expired its rows are deleted, not only hidden."""
    clock = Clock()
    themap = Map(revision=1, name="m", sources=(), layers=(TTL,), digest="")
    archive = EmbeddedArchive(tmp_path, clock)
    await archive.open(themap)
    await put(archive, cell(TTL), layer=TTL)
    clock.now_ms = START_MS + 30 * DAY_MS
    late = cell(TTL, window_start=clock.now_ms)
    await put(archive, late, layer=TTL)
    clock.now_ms = START_MS
    got = await get(archive, START_MS, START_MS + 60 * DAY_MS, TTL)
    await archive.close()
    assert_frame_equal(got, frame([late], TTL))


class Gate:
    """Stands before the making of rows: holds the first write, fails others as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._real = RunLayout.pieces

        def pieces(*args: Any) -> Iterator[tuple[bytes, bytes]]:
            self._pass()
            return self._real(*args)

        monkeypatch.setattr(RunLayout, "pieces", pieces)

    def _pass(self) -> None:
        if not self.entered.is_set():
            self.entered.set()
            assert self.opened.wait(30)
        elif self.error is not None:
            error, self.error = self.error, None
            raise error


@pytest.fixture
async def gated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Archive, Gate, list[asyncio.Task[None]]]]:
    """Give an archive that has one write in hand, and two that wait for their turn together."""
    archive = EmbeddedArchive(tmp_path)
    await archive.open(Map(revision=1, name="m", sources=(), layers=(HOURS,), digest=""))
    gate = Gate(monkeypatch)
    writes = [asyncio.create_task(put(archive, cell(key_gate=0)))]
    assert await asyncio.to_thread(gate.entered.wait, 30)
    writes += [asyncio.create_task(put(archive, cell(key_gate=gate))) for gate in (1, 2)]
    await asyncio.sleep(0)
    yield archive, gate, writes
    await archive.close()


@pytest.mark.parametrize(
    "error", [MemoryError("no memory for a block"), ValueError("odd")], ids=repr
)
async def test_writes_that_are_made_together_fail_together_whatever_is_raised(
    gated: tuple[Archive, Gate, list[asyncio.Task[None]]], error: Exception
) -> None:
    """None of them is acknowledged; the one before them is, and all may be sent again."""
    archive, gate, writes = gated
    gate.error = error
    gate.opened.set()
    done = await asyncio.gather(*writes, return_exceptions=True)
    assert done == [None, error, error]
    assert (await get(archive))["key_gate"].to_list() == [0]
    await asyncio.gather(*(put(archive, cell(key_gate=gate)) for gate in (1, 2)))
    assert (await get(archive))["key_gate"].to_list() == [0, 1, 2]


async def test_a_write_that_is_cancelled_takes_no_other_along(
    gated: tuple[Archive, Gate, list[asyncio.Task[None]]],
) -> None:
    """A write that waits beside it is acknowledged once the rows are there, and not before."""
    archive, gate, writes = gated
    writes[1].cancel()
    await asyncio.sleep(0)
    assert not writes[2].done()
    gate.opened.set()
    done = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(one) for one in done] == [type(None), asyncio.CancelledError, type(None)]
    assert {0, 2} <= set((await get(archive))["key_gate"].to_list())


async def test_a_folder_that_cannot_be_made_is_an_archive_error(tmp_path: Path) -> None:
    """The error names a file that stands instead of the folder."""
    (tmp_path / "file").write_text("")
    archive = EmbeddedArchive(tmp_path / "file" / "archive")
    with pytest.raises(ArchiveError, match=r"cannot open archive in .*file/archive"):
        await archive.open(Map(revision=1, name="m", sources=(), layers=(), digest=""))


async def test_a_writer_that_is_killed_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """Rows acknowledged before SIGKILL are read by the next process."""
    program = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from tables.archive.embedded.archive import EmbeddedArchive\n"
        "from tables.model.layer import Map\n"
        "from tests.support import archive_rows as t\n"
        "async def main():\n"
        "    archive = EmbeddedArchive(pathlib.Path(sys.argv[1]))\n"
        "    await archive.open(Map(1, 'm', (), (t.HOURS,), ''))\n"
        "    await t.put(archive, *(t.cell(key_gate=i) for i in range(100)))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    archive = EmbeddedArchive(tmp_path)
    await archive.open(Map(revision=1, name="m", sources=(), layers=(HOURS,), digest=""))
    got = await get(archive)
    await archive.close()
    assert got["key_gate"].to_list() == list(range(100))


FULL_DISK = """
import asyncio, pathlib, resource, sys
from tests.support.common import small_map
from tests.support.web_support import frame, stored
from tables.archive.protocol import CellRange
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import ArchiveError
import polars as pl

async def run():
    themap = small_map()
    hour = themap.layer("hour")
    archive = EmbeddedArchive(pathlib.Path(sys.argv[1]))
    await archive.open(themap)

    async def write(number):
        rows = [stored(carrier=f"{number}-{i}", version=number + 1) for i in range(2_000)]
        await archive.write(hour, frame(rows), pl.Series([number + 1] * 2_000))

    # The kernel refuses writes that would make a file larger, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    taken = 0
    try:
        while taken < 100:
            await write(taken)
            taken += 1
    except ArchiveError as error:
        print("refused", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await write(taken)
    rows = await archive.read(hour, CellRange(0, 1))
    print("has", rows.height == 2_000 * (taken + 1), 0 < taken < 100)
    await archive.close()

asyncio.run(run())
"""


@pytest.mark.slow
def test_an_embedded_archive_takes_rows_again_when_its_disk_has_room(tmp_path: Path) -> None:
    """RocksDB itself would refuse every later write, and the worker would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "archive")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, *_, has = done.stdout.splitlines()
    assert refused.startswith("refused cannot write rows: RocksDB says IO error: ")
    assert has == "has True True"
