"""Changes: a follower that may go and come back ends up with every cell's last value."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from agents.query.changes import ChangeBatch, Changes, Positions, decode_positions, encode_positions
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveError, QueryError
from tables.model.layer import Map
from tables.query.family import KeyFilter
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, seeds, small_map
from tests.support.local_worker import RAW, LocalWorker, fill, live_cells
from tests.support.owned import KEYED, UNKEYED, Owned
from tests.support.waiting import until

HOURS = small_map().layer("hour")
Cell = tuple[str, str, int, int]
"""Origin, carrier, window, source partition."""


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[EmbeddedArchive]:
    """Return a closed archive that is closed again at the end."""
    made = EmbeddedArchive(tmp_path / "archive")
    yield made
    await made.close()


class Follower:
    """Takes news, and keeps of each cell the largest version."""

    def __init__(self) -> None:
        self.cells: dict[Cell, tuple[int, int]] = {}
        self.closed: set[Cell] = set()
        self.sent = 0

    def take(self, news: ChangeBatch) -> Positions:
        """Take the news; return the follower's positions after it."""
        for row in news.rows.to_dicts():
            cell = (row["key_origin"], row["key_carrier"], row["window_start"],
                    row["source_partition"])  # fmt: skip
            self.sent += 1
            if row["version"] >= self.cells.get(cell, (-1, 0))[0]:
                self.cells[cell] = row["version"], row["events"]
            if row["is_closed"]:
                self.closed.add(cell)
        return news.positions


def counted(house: LocalWorker, cell: Cell, version: int) -> int:
    """Return how many events a cell has up to an offset of its source partition."""
    origin, carrier, window, partition = cell
    records = house.log.records[RAW, partition][:version]
    events = [orjson.loads(record.value) for record in records if record.value is not None]
    return sum(
        (event["origin"], event["carrier"], event["at"] // HOUR_MS * HOUR_MS)
        == (origin, carrier, window)
        for event in events
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("themap", [KEYED, UNKEYED], ids=["keyed", "merged"])
async def test_a_follower_misses_no_last_value(
    themap: Map, seed: int, archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """Cells may be evicted while it is away; a keyed layer's value is that of its version."""
    rng = random.Random(seed)
    layer = themap.layer("hour")
    await archive.open(themap)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", themap)
    fill(house.log, seed, keyed=themap is KEYED)
    await house.restore()
    live = Owned(house)
    changes = Changes(layer, KeyFilter(), live, ArchiveCache(archive, 0), 10**6)
    follower = Follower()
    positions = follower.take(await changes.since({}))
    for _ in range(60):
        for topic in rng.choices(list(themap.inputs()), k=rng.randint(0, 4)):
            await house.step(topic, rng.choice([1, 5, 40]))
        if rng.random() < 0.05:
            await house.kill()
            await house.restore()
        if rng.random() < 0.4:
            live.silent = {(themap.input_topic(layer), 1)} if rng.random() < 0.2 else set()
            text = encode_positions(layer, positions)
            positions = follower.take(await changes.since(decode_positions(layer, text)))
    live.silent = set()
    await house.settle()
    positions = follower.take(await changes.since(positions))
    sent = follower.sent
    positions = follower.take(await changes.since(positions))
    assert follower.sent == sent, "nothing is sent twice"
    rows = await archive.read(layer, CellRange(0, 9 * DAY_MS))
    last = {
        (row["key_origin"], row["key_carrier"], row["window_start"], row["source_partition"]): (
            row["version"], row["events"])
        for row in rows.to_dicts()
    }  # fmt: skip
    assert follower.cells == last
    assert follower.closed == set(last)
    if themap is KEYED:
        for cell, (version, events) in follower.cells.items():
            assert events == counted(house, cell, version)
    await house.kill()


async def test_what_a_combiner_evicts_before_it_is_heard_of_is_told(
    archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """A follower that comes before the first contribution misses none, though all are evicted."""
    await archive.open(UNKEYED)
    layer = UNKEYED.layer("hour")
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", UNKEYED)
    fill(house.log, 2, keyed=False)
    await house.restore()
    changes = Changes(layer, KeyFilter(), Owned(house), ArchiveCache(archive, 0), 10**6)
    follower = Follower()
    positions = follower.take(await changes.since({}))
    assert not follower.cells

    async def is_evicted() -> bool:
        await house.quiet()
        return live_cells(house, layer).is_empty()

    await until(is_evicted)
    positions = follower.take(await changes.since(positions))
    assert sum(events for _, events in follower.cells.values()) == 600
    assert follower.closed == set(follower.cells)
    assert (await changes.since(positions)).rows.is_empty()
    await house.kill()


async def test_from_now_on_means_from_now_on(archive: EmbeddedArchive, tmp_path: Path) -> None:
    """Only cells that change or close later are sent, and only those of the keys wanted."""
    await archive.open(KEYED)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", KEYED)
    fill(house.log, 3, 200)
    await house.restore()
    await house.step(RAW, 50)
    keys = KeyFilter({"carrier": ("UA",)})
    changes = Changes(HOURS, keys, Owned(house), ArchiveCache(archive, 0), 10**6)
    positions = await changes.now()
    nothing = await changes.since(positions)
    assert nothing.rows.is_empty()
    before = {partition: one.version for partition, one in positions.items()}
    await house.step(RAW, 5)
    news = await changes.since(positions)
    assert set(news.rows["key_carrier"].to_list()) <= {"UA"}
    for row in news.rows.to_dicts():
        assert row["version"] > before[row["source_partition"]] or row["is_closed"]
    await house.kill()


async def test_an_archive_that_is_away_is_told_and_nothing_is_skipped(
    archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """The positions do not move, and the next try has all of it."""
    await archive.open(KEYED)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", KEYED)
    fill(house.log, 4, 100)
    await house.restore()
    await house.step(RAW, 10)
    changes = Changes(HOURS, KeyFilter(), Owned(house), ArchiveCache(archive, 0), 10**6)
    positions = (await changes.since({})).positions
    await house.settle()

    async def evicted() -> bool:
        now = await changes.now()
        return all(now[one].evicted_ms > positions[one].evicted_ms for one in positions)

    # Only evicted cells are read from the archive; eviction follows what was acknowledged.
    await until(evicted)
    await archive.close()
    with pytest.raises(ArchiveError):
        await changes.since(positions)
    await archive.open(KEYED)
    follower = Follower()
    follower.take(await changes.since(positions))
    assert sum(events for _, events in follower.cells.values()) > 50
    await house.kill()


@pytest.mark.parametrize(
    "text", ["x", "é", "A" * 70_000, encode_positions(small_map().layer("day"), {})]
)
def test_another_id_is_refused(text: str) -> None:
    """Also that of another layer."""
    with pytest.raises(QueryError, match="Last-Event-ID is not one of this layer"):
        decode_positions(HOURS, text)


def test_a_text_keeps_all_positions() -> None:
    """It keeps times before any event too."""
    sent: Any = {0: (5, -(2**62), 7), 1: (0, 1, -1)}
    text = encode_positions(HOURS, sent)
    assert {
        p: (t.version, t.closed_ms, t.evicted_ms) for p, t in decode_positions(HOURS, text).items()
    } == sent
