"""The archive's cache: final rows are read once, and the answer is always the archive's."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import polars as pl
import pytest

import tables.archive.cache
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveDamagedError, ArchiveError
from tables.model.layer import Layer
from tables.state.cell import archive_schema
from tests import ROOT
from tests.support.common import HOUR_MS, small_map
from tests.support.waiting import until
from tests.support.web_support import stored

HOURS = small_map().layer("hour")
KEY = {"origin": "JFK", "carrier": "UA"}


class Counted(EmbeddedArchive):
    """An archive that records the ranges it was asked for, and can be away or slow."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[CellRange] = []
        self.away = False
        self.running = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def is_asked(self) -> bool:
        """Return whether it was asked anything."""
        return bool(self.asked)

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Take note, then read."""
        self.asked.append(cells)
        self.running += 1
        try:
            await self.gate.wait()
            if self.away:
                raise ArchiveError("away")
            return await super().read(layer, cells, cost)
        finally:
            self.running -= 1


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Counted]:
    """Return an archive of 200 hours of two keys."""
    made = Counted(tmp_path)
    await made.open(small_map())
    rows = pl.DataFrame(
        [stored(origin, hour=hour) for hour in range(-20, 180) for origin in ("JFK", "LGA")],
        schema=archive_schema(HOURS), orient="row",
    )  # fmt: skip
    await made.write(HOURS, rows, rows["window_start"])
    yield made
    await made.close()


def hours(start: int, stop: int, **key: str) -> CellRange:
    """Return a range of hours, of one key unless told otherwise."""
    return CellRange(start * HOUR_MS, stop * HOUR_MS, key or KEY)


async def read(cache: ArchiveCache, cells: CellRange, cost: QueryCost | None = None) -> list[int]:
    """Return the hours of the rows that the cache gives as final, in order."""
    rows = await cache.read(HOURS, cells, final=True, cost=cost or QueryCost())
    assert rows.schema == pl.Schema(archive_schema(HOURS))
    return sorted(start // HOUR_MS for start in rows["window_start"].to_list())


async def test_a_repeated_range_is_read_once(archive: Counted) -> None:
    """Every range inside it is too, while the archive may be away."""
    cache = ArchiveCache(archive, 1 << 20)
    cost = QueryCost()
    assert await read(cache, hours(-5, 100), cost) == list(range(-5, 100))
    assert (cost.cache_misses, cost.archive_reads) == (1, 1)
    assert cost.archive_partitions
    assert cost.archive_bytes
    archive.away = True
    warm = QueryCost()
    assert await read(cache, hours(-5, 100), warm) == list(range(-5, 100))
    assert await read(cache, hours(33, 65), warm) == list(range(33, 65))
    assert (warm.cache_hits, warm.archive_reads, warm.archive_bytes) == (2, 0, 0)
    assert len(archive.asked) == 1
    with pytest.raises(ArchiveError):
        await read(cache, hours(-5, 101))


async def test_reads_that_meet_damaged_rows_are_counted_and_say_where(archive: Counted) -> None:
    """The error names the range in words that may be shown to whoever asked."""
    cache = ArchiveCache(archive, 1 << 20)
    assert archive._running is not None
    db = archive._running.db
    place = next(key for key in db.keys() if key.startswith(b"hour\x00"))  # noqa: SIM118
    db[place] = db[place][:-1]
    for final in (True, False):
        with pytest.raises(ArchiveDamagedError) as refused:
            await cache.read(HOURS, hours(-20, 180), final=final, cost=QueryCost())
        assert refused.value.where.startswith("layer hour, windows from -72000000 to ")
    assert cache.damaged_total == 2
    assert (cache.hits_total, cache.bytes) == (0, 0)
    assert await read(cache, hours(170, 180)) == list(range(170, 180))


async def test_only_what_is_missing_is_read(archive: Counted) -> None:
    """A range that grows by an hour costs that hour."""
    cache = ArchiveCache(archive, 1 << 20)
    await read(cache, hours(10, 50))
    assert await read(cache, hours(10, 51)) == list(range(10, 51))
    assert archive.asked[-1] == hours(50, 51)
    assert await read(cache, hours(40, 51)) == list(range(40, 51))
    assert len(archive.asked) == 2


async def test_what_may_change_is_never_kept(archive: Counted) -> None:
    """It is read whenever it is asked for."""
    cache = ArchiveCache(archive, 1 << 20)
    for _ in range(2):
        rows = await cache.read(HOURS, hours(0, 9), final=False, cost=QueryCost())
        assert rows.height == 9
    assert len(archive.asked) == 2
    assert cache.entries == 0


@pytest.mark.parametrize("seed", range(8))
async def test_any_sequence_of_ranges_gives_what_the_archive_gives(
    archive: Counted, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges grow, overlap and leave holes in any order, with any amount of room."""
    rng = random.Random(seed)
    monkeypatch.setattr(tables.archive.cache, "SPAN_ROWS_MAX", rng.choice([1, 7, 40, 16_384]))
    monkeypatch.setattr(tables.archive.cache, "JOINED_ROWS_MAX", rng.choice([0, 5, 4_096]))
    monkeypatch.setattr(tables.archive.cache, "AT_ONCE_ROWS_MAX", rng.choice([0, 2_000]))
    cache = ArchiveCache(archive, rng.choice([3_000, 60_000, 1 << 20]))
    for _ in range(100):
        start = rng.randrange(-30, 190)
        cells = hours(start, start + rng.choice([1, 5, 31, 33, 150]),
                      **rng.choice([{}, {"origin": "LGA"}, {"carrier": "UA"}]))  # fmt: skip
        found = await cache.read(HOURS, cells, final=True, cost=QueryCost())
        order = ["window_start", "key_origin"]
        expected = await EmbeddedArchive.read(archive, HOURS, cells)
        assert found.sort(order).equals(expected.sort(order))
        assert cache.bytes <= 1 << 20


async def test_it_holds_no_more_than_its_bytes(archive: Counted) -> None:
    """The span used longest ago goes first; a span that does not fit at all is not kept."""
    one = ArchiveCache(archive, 1 << 20)
    await read(one, hours(0, 1))
    room = 3 * one.bytes
    cache = ArchiveCache(archive, room)
    for hour in (0, 32, 64, 0, 96):
        await read(cache, hours(hour, hour + 1))
    assert room / 2 < cache.bytes <= room
    asked = len(archive.asked)
    await read(cache, hours(0, 1))
    assert len(archive.asked) == asked, "used again before the last one came"
    await read(cache, hours(32, 33))
    assert len(archive.asked) == asked + 1
    for bytes_max in (0, one.bytes // 2):
        nothing = ArchiveCache(archive, bytes_max)
        asked = len(archive.asked)
        await read(nothing, hours(0, 1))
        await read(nothing, hours(0, 1))
        assert (nothing.bytes, nothing.entries, len(archive.asked)) == (0, 0, asked + 2)


async def test_a_range_that_grows_stays_one_span(archive: Counted) -> None:
    """A follower of the last hours does not leave a crumb for each of them."""
    cache = ArchiveCache(archive, 1 << 20)
    for hour in range(1, 60):
        assert await read(cache, hours(0, hour)) == list(range(hour))
    assert cache.entries == 1
    assert sum(one.to_ms - one.from_ms for one in archive.asked) == 59 * HOUR_MS


@pytest.mark.slow
async def test_what_is_remembered_takes_no_more_memory_than_its_bytes() -> None:
    """Many keys of one row each, whose frames take more than their values by far."""
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", REMEMBERED, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    output, _ = await done.communicate()
    entries, counted, taken = map(int, output.split())
    assert entries > 500
    assert counted > 6 << 20
    assert taken <= counted, (entries, counted, taken)


REMEMBERED = """
import asyncio, gc
from pathlib import Path
from tests.support.common import HOUR_MS, small_map
from tests.support.web_support import frame, stored
from tables.archive.protocol import CellRange
from tables.archive.cache import ArchiveCache
from tables.model.cost import QueryCost

class Rows:
    async def read(self, layer, cells, cost=None):
        return frame([stored(cells.key["origin"], "a carrier with a long name")], layer)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

async def fill(cache, keys):
    for key in keys:
        cells = CellRange(0, HOUR_MS, {"origin": f"a long name of some origin, number {key}"})
        await cache.read(small_map().layer("hour"), cells, final=True, cost=QueryCost())

async def main():
    await fill(ArchiveCache(Rows(), 1 << 18), range(100))
    cache = ArchiveCache(Rows(), 8 << 20)
    gc.collect()
    before = resident()
    await fill(cache, range(3_000))
    gc.collect()
    print(cache.entries, cache.bytes, resident() - before)

asyncio.run(main())
"""


async def test_a_read_that_all_have_given_up_is_ended(archive: Counted) -> None:
    """One that somebody still waits for goes on, and the next one is read anew."""
    cache = ArchiveCache(archive, 1 << 20)
    archive.gate.clear()
    readers = [asyncio.create_task(read(cache, hours(0, 9))) for _ in range(3)]
    await until(archive.is_asked)
    for reader in readers[:2]:
        reader.cancel()
    await asyncio.wait(readers[:2])
    assert archive.running == 1
    readers[2].cancel()
    await asyncio.wait(readers)
    assert archive.running == 0
    archive.gate.set()
    assert await read(cache, hours(0, 9)) == list(range(9))
    assert len(archive.asked) == 2


@pytest.mark.parametrize("bytes_max", [0, 1 << 20])
async def test_equal_misses_ask_once(archive: Counted, bytes_max: int) -> None:
    """The first reader may give up, and nothing may be kept; an error reaches all."""
    cache = ArchiveCache(archive, bytes_max)
    archive.gate.clear()
    readers = [asyncio.create_task(read(cache, hours(0, 9))) for _ in range(5)]
    await until(archive.is_asked)
    readers[0].cancel()
    archive.gate.set()
    assert await asyncio.gather(*readers[1:]) == [list(range(9))] * 4
    assert len(archive.asked) == 1
    archive.away = True
    failed = await asyncio.gather(
        *(read(cache, hours(50, 59)) for _ in range(2)), return_exceptions=True
    )
    assert [type(error) for error in failed] == [ArchiveError] * 2
    archive.away = False
    assert await read(cache, hours(50, 59)) == list(range(50, 59))
