"""Late events: inside the allowed lateness they amend, past it they are set aside with a letter."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.partition import owned_partition, writers
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model import ledger
from tables.model.layer import Map
from tables.record.letter import Letter, read_letter
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, flight, small_map
from tests.support.local_worker import MAP, RAW, LocalWorker, archived
from tests.support.waiting import until

END_MS = 10 * DAY_MS
MINUTE_MS = 60_000


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce and evict at once."""
    monkeypatch.setattr(writers, "ANNOUNCE_INTERVAL_S", 0.0)
    monkeypatch.setattr(owned_partition, "EVICT_AFTER_S", 0.0)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[LocalWorker]:
    """A worker over a log in memory and a real archive."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state")
    yield house
    await house.kill()
    await archive.close()


async def work(house: LocalWorker) -> None:
    """Read the whole log and wait for its acknowledgements, with windows still open."""

    async def done() -> bool:
        await house.restore()
        busy = [await house.step(topic, 1_000) for topic in house.map.inputs()]
        every = list(house.owners.each())
        waiting = sum(o.sinks.unacknowledged(layer) for o in every for layer in o.plan.layers)
        told = all(
            coarser.state.meta.announced.get(finer.partition)
            == finer.sinks.announcement(MAP.layer("hour"), "day")
            for coarser in every
            if coarser.plan.finer is not None
            for finer in every
            if finer.plan.finer is None
        )
        return not any(busy) and not waiting and told

    await until(done)
    assert not house.failures


def letters(house: LocalWorker) -> list[Letter]:
    """Return the letters of late events."""
    topic = house.map.side_topic("late")
    found = [
        record
        for partition in range(house.map.side_partitions)
        for record in house.log.records.get((topic, partition), [])
    ]
    return [read_letter(record.headers) for record in found]


async def test_an_event_inside_the_lateness_amends_every_row_that_holds_it(
    house: LocalWorker,
) -> None:
    """Its hour is in the archive, and its day too; both rows are replaced by the whole cell.

    day 0 ........................................ | day 1, hour 0    | hour 1
    hour 23: e                                     | e e (both close) |
    late:    e, a minute past the end of its hour and of its day
    """
    for partition, origin in enumerate(("LGA", "JFK")):
        house.log.put(RAW, partition, flight(DAY_MS - 2, origin, delay=3))
        house.log.put(RAW, partition, flight(DAY_MS, origin))
    await work(house)
    (before,) = (await archived(house, "hour")).filter(pl.col("key_origin") == "JFK").to_dicts()
    (day,) = (await archived(house, "day")).to_dicts()
    assert (before["events"], before["sum_delay"]) == (1, 3)
    assert (day["window_start"], day["events"], day["sum_delay"]) == (0, 2, 6)
    house.log.put(RAW, 1, flight(DAY_MS - 1, "JFK", delay=40))
    await work(house)
    (after,) = (await archived(house, "hour")).filter(pl.col("key_origin") == "JFK").to_dicts()
    assert (after["events"], after["sum_delay"]) == (2, 43)
    assert after["window_start"] == before["window_start"]
    assert after["version"] > before["version"]
    (amended,) = (await archived(house, "day")).to_dicts()
    assert (amended["window_start"], amended["events"], amended["sum_delay"]) == (0, 3, 46)
    assert amended["version"] > day["version"]
    assert letters(house) == []


async def test_an_event_past_the_lateness_is_counted_and_told_with_place_and_lateness(
    house: LocalWorker,
) -> None:
    """The letter has the distance to the watermark, even if another chunk has moved that.

    hour    0       1       2       3
            |_______|_______|_______|
            l   l                   e      the lateness of an hour seals hour 0 at 2 o'clock
    """
    house.log.put(RAW, 1, flight(3 * HOUR_MS))
    await house.restore()
    await house.step(RAW, 10)
    house.log.put(RAW, 1, flight(3 * HOUR_MS + 5))
    house.log.put(RAW, 1, b"\n".join([flight(30 * MINUTE_MS), flight(3 * HOUR_MS), flight(0)]))
    await house.step(RAW, 10)
    (letter,) = letters(house)
    assert (letter.topic, letter.partition, letter.offset, letter.index) == (RAW, 1, 2, "0,2")
    assert letter.layer == "hour"
    assert letter.lateness_ms == (150 * MINUTE_MS + 5, 3 * HOUR_MS + 5)
    owner = house.owners.get(RAW, 1)
    assert owner is not None
    counts = owner.state.meta.ledger
    assert (counts["layer.hour.too_late"], counts["layer.hour.folded"]) == (2, 3)
    assert ledger.imbalances(counts, 3, ["hour"]) == []


async def test_lateness_is_measured_from_each_layers_own_watermark(tmp_path: Path) -> None:
    """A layer that waits for disorder has a watermark that is less far."""
    hour = MAP.layer("hour")
    patient = dataclasses_replace(hour, name="patient", max_out_of_orderness_ms=HOUR_MS)
    themap = small_map(layers=(hour, patient))
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(themap)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", themap)
    try:
        house.log.put(RAW, 0, b"\n".join([flight(9 * HOUR_MS), flight(1)]))
        await house.restore()
        await house.step(RAW, 10)
        found = {letter.layer: letter.lateness_ms for letter in letters(house)}
    finally:
        await house.kill()
        await archive.close()
    assert found == {
        "hour": (9 * HOUR_MS - 1, 9 * HOUR_MS - 1),
        "patient": (8 * HOUR_MS - 1, 8 * HOUR_MS - 1),
    }


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 5 * HOUR_MS),
        st.sampled_from(["JFK", "LGA"]),
        st.sampled_from(["UA", "AA"]),
        st.integers(-9, 9),
    ),
    min_size=1,
    max_size=12,
)


async def rows_of(
    themap: Map, written: list[bytes], records_max: int
) -> list[list[tuple[Any, ...]]]:
    """Return the archived rows that a log comes to in such chunks, without their versions."""
    log = MemoryLog()
    for value in written:
        log.put(RAW, int(b"JFK" in value), value)
    with tempfile.TemporaryDirectory() as folder:
        archive = EmbeddedArchive(Path(folder) / "archive")
        await archive.open(themap)
        house = LocalWorker(log, archive, Path(folder) / "state", themap)
        try:
            await house.restore()
            while any([await house.step(topic, records_max) for topic in themap.inputs()]):
                pass
            for partition in range(2):
                log.put(RAW, partition, END_MS)
            await house.settle()
            frames = [(await archived(house, name)).drop("version") for name in ("hour", "day")]
            assert letters(house) == []
        finally:
            await house.kill()
            await archive.close()
    return [frame.sort(pl.all()).rows() for frame in frames]


@settings(max_examples=6, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.integers(1, 4))
async def test_any_order_within_the_lateness_gives_the_rows_of_the_ordered_log(
    events: list[tuple[int, str, str, int]], chance: st.DataObject, records_max: int
) -> None:
    """Windows close and are amended on the way; in the end every row of every layer is the same."""
    hour = dataclasses_replace(MAP.layer("hour"), allowed_lateness_ms=6 * HOUR_MS)
    themap = small_map(layers=(hour, MAP.layer("day")))
    ordered = [flight(*event) for event in sorted(events)]
    shuffled = chance.sample(ordered, len(ordered))  # type: ignore[attr-defined]
    assert await rows_of(themap, shuffled, records_max) == await rows_of(themap, ordered, 1_000)
