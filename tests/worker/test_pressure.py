"""Back-pressure: topics pause when cells cannot leave or a disk fills, and go on after."""

from __future__ import annotations

import random
import shutil
from collections import namedtuple
from collections.abc import AsyncIterator
from pathlib import Path

import polars as pl
import pytest

from agents.partition import emitter as emit
from agents.partition import owned_partition
from app.health.backpressure import Gate, Pressure
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import ArchiveError
from tables.model.layer import Layer
from tables.state.block import encode_block
from tables.state.cell import cell_schema
from tables.state.layer_table import FoldTable
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, flight
from tests.support.local_worker import MAP, RAW, LocalWorker, check, fill
from tests.support.waiting import until

DAY_TOPIC = "small.layer.day"
DISK = Path("/disk")
CHUNK_RECORDS = 40


def test_a_gate_shuts_past_its_mark_and_opens_below_a_lower_one() -> None:
    """Nothing changes between the two, so that it does not flutter."""
    gate = Gate("sources", pending_bytes_max=1_000, disk_free_bytes_min=100)
    seen = []
    for pending in (0, 1_000, 1_001, 900, 801, 800, 1_000, 1_001):
        gate.measure(pending, 1_000, DISK)
        seen.append(bool(gate.reasons))
    assert seen == [False, False, True, True, True, False, False, True]
    assert gate.pauses == 2


def test_a_disk_with_little_room_shuts_a_gate_until_it_has_more() -> None:
    """The mark to go on lies above the mark to pause."""
    gate = Gate("sources", pending_bytes_max=1_000, disk_free_bytes_min=100)
    seen = []
    for free in (100, 99, 100, 124, 125, 100):
        gate.measure(0, free, DISK)
        seen.append(bool(gate.reasons))
    assert seen == [False, True, True, True, False, False]


def test_a_gate_opens_when_its_last_reason_is_gone() -> None:
    """Each reason is told in words, with advice."""
    gate = Gate("sources", pending_bytes_max=1 << 20, disk_free_bytes_min=1 << 20)
    gate.measure(2 << 20, 1 << 19, DISK)
    pending, disk = gate.words()
    assert pending.startswith("2.0 MiB of cells wait to be acknowledged; want at most 1.0 MiB; ")
    assert disk == "the disk of /disk has 0.5 MiB free; want at least 1.0 MiB; make room on it"
    gate.measure(0, 1 << 19, DISK)
    assert list(gate.reasons) == ["disk_free"]
    gate.measure(0, 1 << 30, DISK)
    assert gate.words() == []
    assert gate.pauses == 1


def test_the_fullest_disk_counts_and_layer_topics_have_twice_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sources pause first; one measurement serves both gates."""
    free = {Path("/state"): 1_000, Path("/archive"): 90}
    usage = namedtuple("usage", "free")  # noqa: PYI024 - as shutil's
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free[folder]))
    pending = [0]
    times = iter(range(1_000_000_000, 0, -1))
    made = Pressure(1_000, 100, list(free), lambda: pending[0], lambda: -next(times))
    assert not made.admits_sources()
    assert made.admits_layers()
    assert made.disk_free_bytes == 90
    free[Path("/archive")] = 40
    assert until_changed(made) == (False, False)
    free[Path("/archive")] = 1_000
    assert until_changed(made) == (True, True)
    pending[0] = 2_000
    assert until_changed(made) == (False, True)
    pending[0] = 2_001
    assert until_changed(made) == (False, False)


def until_changed(made: Pressure) -> tuple[bool, bool]:
    """Return both answers after the next measurement, which costs time and so comes later."""
    for _ in range(50):
        answers = made.admits_sources(), made.admits_layers()
    return answers


def test_measuring_takes_a_bounded_share_of_the_time() -> None:
    """A long measurement is not repeated for a hundred times as long, far from the mark."""
    now = [0.0]
    measured = []

    def pending() -> int:
        measured.append(now[0])
        now[0] += 0.5
        return held[0]

    held = [0]
    made = Pressure(1_000, 0, [Path()], pending, lambda: now[0])
    for _ in range(1_000):
        made.admits_sources()
        now[0] += 0.1
    assert len(measured) == pytest.approx(now[0] / 50.5, abs=1)
    held[0] = 500
    for _ in range(1_000):
        made.admits_sources()
        now[0] += 0.1
    assert len(measured) > 900


def test_a_table_tells_the_memory_of_some_windows() -> None:
    """Their rows' share of the blocks, as blocks come, merge and go."""
    hour = MAP.layer("hour")
    table = FoldTable(hour)
    rng = random.Random(1)
    for version in range(30):
        windows = [rng.randrange(4) * HOUR_MS for _ in range(100)]
        frame = pl.DataFrame(
            {
                name: windows if name == "window_start" else [f"{i:04}" for i in range(100)]
                for name in ("key_origin", "key_carrier", "window_start")
            }
        )
        columns = {name: kind for name, kind in cell_schema(hour).items() if name != "version"}
        for name, kind in columns.items():
            if name not in frame.columns:
                frame = frame.with_columns(pl.lit(1, kind).alias(name))
        table.add(encode_block(frame.select(list(columns))), version)
        sizes = [table.bytes_of({window * HOUR_MS}) for window in range(4)]
        whole = sum(block.estimated_size() for block in table.blocks.values())
        assert sum(sizes) == pytest.approx(whole, rel=0.01)
        assert table.bytes_of(set()) == 0
    table.evict([0])
    assert table.bytes_of({0}) == 0
    assert table.bytes_of({HOUR_MS}) > 0


class Away(EmbeddedArchive):
    """A real archive that can be away, and counts the writes that it refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.away = False
        self.refused = 0

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Write, unless it is away."""
        if self.away:
            self.refused += 1
            raise ArchiveError("away")
        await super().write(layer, rows, write_times_us)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Away]:
    """Run an embedded archive that can be away."""
    made = Away(tmp_path / "archive")
    await made.open(MAP)
    yield made
    await made.close()


async def test_an_archive_away_pauses_sources_and_nothing_is_lost(
    archive: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pending memory stays below the mark and a chunk; layer topics go on; then all rows come."""
    monkeypatch.setattr(emit, "RETRY_S_MAX", 0.1)
    monkeypatch.setattr(owned_partition, "EVICT_AFTER_S", 0.01)
    log = MemoryLog()
    events = fill(log, 7, 2_000)
    house = LocalWorker(log, archive, tmp_path / "state")
    await house.restore()
    # By this clock nothing takes time, so that every chunk is measured.
    press = Pressure(40_000, 0, [tmp_path], house.owners.pending_bytes, lambda: 0.0)
    archive.away = True
    most = chunk = taken = 0

    async def take(topic: str, admitted: bool) -> bool:
        return admitted and await house.step(topic, CHUNK_RECORDS)

    async def paused() -> bool:
        nonlocal most, chunk, taken
        before = house.owners.pending_bytes()
        taken += await take(RAW, press.admits_sources())
        between = house.owners.pending_bytes()
        await take(DAY_TOPIC, press.admits_layers())
        after = house.owners.pending_bytes()
        chunk, most = max(chunk, between - before, after - between), max(most, between, after)
        return bool(press.sources.reasons)

    await until(paused)
    assert taken > 3
    assert 40_000 < most <= 40_000 + chunk
    positions = [owner.position for owner in house.owners.each() if owner.plan.topic == RAW]
    assert sum(positions) < len(log.records[RAW, 0]) + len(log.records[RAW, 1])

    async def layers_read() -> bool:
        await paused()
        read = {o.partition: o.position for o in house.owners.each() if o.plan.topic == DAY_TOPIC}
        there = {p: len(log.records.get((DAY_TOPIC, p), ())) for p in (0, 1)}
        return read == there and min(there.values()) > 0

    await until(layers_read)
    assert not press.layers.reasons
    assert positions == [o.position for o in house.owners.each() if o.plan.topic == RAW]
    assert archive.refused > 0

    archive.away = False

    async def all_taken() -> bool:
        await take(DAY_TOPIC, press.admits_layers())
        await take(RAW, press.admits_sources())
        return all(
            owner.position == len(log.records[RAW, owner.partition])
            for owner in house.owners.each()
            if owner.plan.topic == RAW
        )

    await until(all_taken)
    await house.settle()
    await check(house, events)
    assert house.owners.pending_bytes() == 0
    assert house.owners.emitted.failures["archive"] == archive.refused
    await house.kill()


async def test_open_cells_never_pause_what_would_close_them(archive: Away, tmp_path: Path) -> None:
    """They may be many: no acknowledgement is missing for them."""
    log = MemoryLog()
    for number in range(2_000):
        log.put(RAW, 0, flight(number % HOUR_MS, carrier=f"{number:05}"))
    house = LocalWorker(log, archive, tmp_path / "state")
    await house.restore()
    press = Pressure(1, 0, [tmp_path], house.owners.pending_bytes)
    while press.admits_sources() and await house.step(RAW, 500):
        pass
    (owner,) = [o for o in house.owners.each() if (o.plan.topic, o.partition) == (RAW, 0)]
    assert owner.position == 2_000
    assert house.owners.pending_bytes() == 0
    archive.away = True
    log.put(RAW, 0, DAY_MS)
    assert await house.step(RAW, 500)
    assert house.owners.pending_bytes() > 0
    await house.kill()
