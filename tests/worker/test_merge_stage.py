"""The merge stage: a source that is not keyed by the layer's key gives the rows of one that is."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.partition import writers
from agents.partition.sinks import ARCHIVE
from app.runtime.worker_status import WorkerStatus
from app.web.pages import describe_map
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model import ledger
from tables.model.layer import Layer, Map, combiner_of
from tables.state.contribution import decode_contribution
from tables.state.input_plan import plans_of
from tests.support.common import (
    DAY_MS,
    HOUR_MS,
    NO_PRESSURE,
    MemoryLog,
    accumulators,
    dataclasses_replace,
    flight,
    seeds,
    small_map,
)
from tests.support.local_worker import (
    RAW,
    Event,
    LocalWorker,
    archived,
    check,
    fill,
    live_cells,
    serving,
)
from tests.support.waiting import until

PARTITIONS = 3
HOUR_TOPIC, DAY_TOPIC = "small.layer.hour", "small.layer.day"
ALL_TIME = CellRange(-(2**60), 2**60)


def merged_map() -> Map:
    """Return the small map over a source that is keyed by nothing, in three partitions."""
    themap = small_map()
    (source,), (hour, day) = themap.sources, themap.layers
    return dataclasses_replace(
        themap,
        sources=(dataclasses_replace(source, partitions=PARTITIONS, keyed_by=()),),
        layers=(dataclasses_replace(hour, merged=True), day),
    )


MAP = merged_map()
HOUR = MAP.layer("hour")
COMBINER = combiner_of(MAP.source("flights"), HOUR)


class NoTransport:
    """The transport of a view, one that has read nothing yet."""

    def lag_records(self) -> dict[tuple[str, int], int]:
        """Return no partition's lag."""
        return {}

    def positions(self) -> dict[tuple[str, int], int]:
        """Return no partition's position."""
        return {}


def view_of(house: LocalWorker) -> WorkerStatus:
    """Return the web endpoint's view of a house."""
    transport: Any = NoTransport()
    return WorkerStatus(
        house.map, house.archive, house.owners, transport, NO_PRESSURE, readiness=list
    )


def hours_of(events: list[Event]) -> dict[tuple[str, str, int], tuple[int, int]]:
    """Return count and sum of delay by origin, carrier and hour, from the events alone."""
    hours: dict[tuple[str, str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for at, origin, carrier, delay in events:
        key = (origin, carrier, at // HOUR_MS * HOUR_MS)
        count, total = hours[key]
        hours[key] = (count + 1, total + (delay or 0))
    return dict(hours)


async def check_hours(house: LocalWorker, events: list[Event]) -> None:
    """Each hour's cell is in the archive whole, in one row of one merging partition."""
    await check(house, events)
    rows = (await archived(house, "hour")).to_dicts()
    got = {
        (row["key_origin"], row["key_carrier"], row["window_start"]): (
            row["events"],
            row["sum_delay"],
        )
        for row in rows
    }
    assert got == hours_of(events)
    stored = await house.archive.read(HOUR, ALL_TIME)
    assert stored.height == len(got)
    assert set(stored["source_partition"]) <= set(range(HOUR.partitions))


def live_hours(house: LocalWorker) -> list[tuple[Any, ...]]:
    """Return the live cells of the merged layer: origin, carrier, window start and events."""
    cells = live_cells(house, HOUR)
    return sorted(cells.select("key_origin", "key_carrier", "window_start", "events").rows())


async def pump(house: LocalWorker, until_live: list[tuple[Any, ...]]) -> None:
    """Hand contributions over until the merged layer's live cells are ``until_live``."""

    async def there() -> bool:
        await house.step(HOUR_TOPIC, 1_000)
        return live_hours(house) == until_live

    await until(there)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[[], LocalWorker]]:
    """Return a maker of houses of the merged map over one log, archive and state folder each."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    log = MemoryLog()
    houses: list[LocalWorker] = []

    def build() -> LocalWorker:
        houses.append(LocalWorker(log, archive, tmp_path / f"state{len(houses)}", MAP))
        return houses[-1]

    yield build
    for house in houses:
        await house.kill()
    await archive.close()


def test_a_combiner_is_the_layer_in_each_source_partition() -> None:
    """It differs in its name and its partitions only, and is not a layer of the map."""
    assert COMBINER.name == "hour.partial"
    assert COMBINER.is_combiner
    assert not HOUR.is_combiner
    assert not COMBINER.merged
    assert COMBINER.partitions == PARTITIONS
    back = dataclasses_replace(COMBINER, name="hour", merged=True, partitions=HOUR.partitions)
    assert back == HOUR
    assert [layer.name for layer in MAP.layers] == ["hour", "day"]


def test_plans_put_the_combiner_between_source_and_layer() -> None:
    """The source feeds the combiner, which feeds the layer, which feeds the day.

    flights.raw -> hour.partial -> small.layer.hour -> hour -> small.layer.day -> day
    """
    plans = plans_of(MAP)
    raw, hour, day = plans[RAW], plans[HOUR_TOPIC], plans[DAY_TOPIC]
    assert list(plans) == list(MAP.inputs()) == [RAW, HOUR_TOPIC, DAY_TOPIC]
    assert (raw.layers, raw.finer, raw.coarser) == ((COMBINER,), None, {"hour.partial": (HOUR,)})
    assert (hour.layers, hour.finer, hour.senders) == ((HOUR,), COMBINER, PARTITIONS)
    assert hour.coarser == {"hour": (MAP.layer("day"),)}
    assert hour.source is None
    assert (day.finer, day.senders) == (HOUR, HOUR.partitions)


def test_layers_of_one_source_are_merged_each_for_itself() -> None:
    """A layer that is keyed like the source stands beside one that is not."""
    themap = small_map()
    hour, day = themap.layers
    other: Layer = dataclasses_replace(hour, name="other", key=hour.key[1:], merged=True)
    plans = plans_of(dataclasses_replace(themap, layers=(hour, day, other)))
    assert [layer.name for layer in plans[RAW].layers] == ["hour", "other.partial"]
    assert plans[RAW].coarser == {"hour": (day,), "other.partial": (other,)}
    assert plans["small.layer.other"].layers == (other,)


def test_the_map_over_http_says_which_layers_are_merged() -> None:
    """The map has the topic that follows, and not the combiner."""
    hour, day = describe_map(MAP)["layers"]
    assert (hour["merged"], day["merged"]) == (True, False)
    assert (hour["source"], hour["input_topic"]) == ("flights", HOUR_TOPIC)


async def test_rows_equal_those_of_a_keyed_source(make: Callable[[], LocalWorker]) -> None:
    """Events at random over all partitions, out of order, add up to the same hours and days."""
    house = make()
    events = fill(house.log, 1, partitions=PARTITIONS, keyed=False)
    await house.settle()
    await check_hours(house, events)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("keep_state", [True, False])
async def test_kills_at_any_moment_change_nothing(
    make: Callable[[], LocalWorker], seed: int, keep_state: bool
) -> None:
    """Workers that die between folding, combining and merging leave the same rows."""
    house = make()
    events = fill(house.log, seed, partitions=PARTITIONS, keyed=False)
    await house.work_and_die({RAW: 40, HOUR_TOPIC: 5, DAY_TOPIC: 5}, seed, keep_state=keep_state)
    await house.settle()
    await check_hours(house, events)


@pytest.mark.parametrize("failure", ["lost", "unanswered"])
async def test_an_emission_without_answer_is_sent_again_and_counted_once(
    make: Callable[[], LocalWorker], failure: str
) -> None:
    """Contributions and deltas whose outcome is unknown change nothing."""
    house = make()
    events = fill(house.log, 2, partitions=PARTITIONS, keyed=False)
    for _ in range(20):
        await house.restore()
        await house.step(RAW, 17)
        house.log.fail_next = failure
        await asyncio.sleep(0)
        await house.step(HOUR_TOPIC, 3)
    await house.settle()
    await check_hours(house, events)


async def test_two_workers_that_both_believe_they_own_the_source_leave_the_same_rows(
    make: Callable[[], LocalWorker],
) -> None:
    """Rows that a zombie still sends have a version that is known already, or an older one."""
    zombie, successor = make(), make()
    events = fill(zombie.log, 3, partitions=PARTITIONS, keyed=False)
    await zombie.restore()
    await zombie.step(RAW, 60)
    await successor.restore()
    await successor.step(RAW, 60)
    await zombie.step(RAW, 60)

    async def fenced() -> bool:
        # If evicting has met the newer owner first, letting go is still under way.
        return {(RAW, partition) for partition in range(PARTITIONS)} <= set(zombie.fenced)

    await until(fenced)
    await successor.settle()
    await check_hours(successor, events)


async def test_open_windows_are_merged_before_they_close(make: Callable[[], LocalWorker]) -> None:
    """Three partitions hold parts of one open cell; the live table has their sum.

    partition 0  e        partition 1  e e      partition 2  e     no window closes
    """
    house = make()
    for partition in (0, 1, 1, 2):
        house.log.put(RAW, partition, flight(5, "JFK", "UA"))
    await house.restore()
    await house.step(RAW, 10)
    await pump(house, [("JFK", "UA", 0, 4)])
    owner = house.owners.get(HOUR_TOPIC, 0)
    assert owner is not None
    assert owner.state.closed_ms(HOUR) < HOUR_MS
    assert serving(house, HOUR) == {0, 1}


async def test_an_idle_partition_emits_its_last_changes(make: Callable[[], LocalWorker]) -> None:
    """A change that came within the second after an early emission follows it by itself."""
    house = make()
    await house.restore()
    for count in (1, 2, 3):
        house.log.put(RAW, 0, flight(count, "JFK", "UA"))
        await house.step(RAW, 10)
        await pump(house, [("JFK", "UA", 0, count)])
    assert blocks_sent(house) == 3
    assert not house.failures


async def test_early_emissions_wait_and_closed_windows_do_not(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open cell is not sent again within the interval, but it is when its window closes.

    hour 0           | hour 1 ...
    e  (sent)  e  e  | e          the first three are sent once they are closed, the last is not
    """
    monkeypatch.setattr(writers, "COMBINER_EMIT_S", 3_600.0)
    house = make()
    await house.restore()
    house.log.put(RAW, 0, flight(1, "JFK", "UA"))
    await house.step(RAW, 10)
    await pump(house, [("JFK", "UA", 0, 1)])
    for at in (2, 3):
        house.log.put(RAW, 0, flight(at, "JFK", "UA"))
        await house.step(RAW, 10)
    assert blocks_sent(house) == 1
    house.log.put(RAW, 0, flight(HOUR_MS, "JFK", "UA"))
    await house.step(RAW, 10)
    await pump(house, [("JFK", "UA", 0, 3)])
    assert blocks_sent(house) == 2


async def test_a_hot_key_costs_its_merger_one_row_a_partition_and_emission(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All events are of one cell; the merge stage gets one row from each source partition."""
    monkeypatch.setattr(writers, "COMBINER_EMIT_S", 3_600.0)
    house = make()
    for partition in range(PARTITIONS):
        for at in range(500):
            house.log.put(RAW, partition, flight(at, "JFK", "UA"))
    await house.restore()
    await house.step(RAW, 1_000)
    await pump(house, [("JFK", "UA", 0, 500 * PARTITIONS)])
    assert view_of(house).ledger()["layers"]["hour"]["selected"] == PARTITIONS


def blocks_sent(house: LocalWorker) -> int:
    """Return how many records with cells are in the merged layer's topic."""
    values = [
        record.value
        for partition in range(HOUR.partitions)
        for record in house.log.records.get((HOUR_TOPIC, partition), [])
    ]
    return sum(bool(decode_contribution(value).block) for value in values if value is not None)


async def test_the_merged_layer_closes_when_every_source_partition_has(
    make: Callable[[], LocalWorker],
) -> None:
    """One partition that is behind holds the window open; its heartbeat closes it."""
    house = make()
    house.log.put(RAW, 0, flight(5, "JFK", "UA"))
    for partition in (0, 1):
        house.log.put(RAW, partition, 2 * HOUR_MS)
    await house.restore()
    await house.step(RAW, 10)
    await pump(house, [("JFK", "UA", 0, 1)])
    assert (await archived(house, "hour")).height == 0
    house.log.put(RAW, 2, 2 * HOUR_MS)

    async def closed() -> bool:
        await house.step(RAW, 10)
        await house.step(HOUR_TOPIC, 1_000)
        return (await archived(house, "hour"))["events"].to_list() == [1]

    await until(closed)


async def test_a_combiner_has_no_archive_and_leaves_its_table(
    make: Callable[[], LocalWorker],
) -> None:
    """Its one sink is the merge stage; acknowledged and sealed, its cells are forgotten."""
    house = make()
    fill(house.log, 4, partitions=PARTITIONS, keyed=False)
    await house.settle()
    owner = house.owners.get(RAW, 0)
    assert owner is not None
    assert owner.sinks.names_of(COMBINER) == ["hour"]
    merging = house.owners.get(HOUR_TOPIC, 0)
    assert merging is not None
    assert merging.sinks.names_of(HOUR) == [ARCHIVE, "day"]
    tables = [table for each in house.owners.each() for table in each.state.all_tables.values()]

    async def empty() -> bool:
        return not any(table.rows for table in tables)

    await until(empty)


async def test_the_ledger_counts_both_stages(make: Callable[[], LocalWorker]) -> None:
    """Events under the combiner's name, contributions under the layer's; both add up."""
    house = make()
    events = fill(house.log, 5, partitions=PARTITIONS, keyed=False)
    await house.settle()
    told = view_of(house).ledger()
    assert told["balanced"]
    assert list(told["layers"]) == ["hour.partial", "hour", "day"]
    partial, hour = told["layers"]["hour.partial"], told["layers"]["hour"]
    assert partial["selected"] == partial["folded"] == len(events)
    cells = len(hours_of(events))
    assert cells <= hour["folded"] <= hour["selected"]
    counts = ledger.total(owner.state.meta.ledger for owner in house.owners.each())
    assert told["events"]["classified"] == counts["events.classified"] > len(events)


async def test_windows_that_wait_in_combiners_count_as_unacknowledged(
    make: Callable[[], LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed and not yet in the layer's topic, a window is on its way still."""

    async def away(*_: object) -> None:
        await asyncio.Event().wait()

    house = make()
    monkeypatch.setattr(writers.LayerTopicWriter, "_send", away)
    fill(house.log, 6, partitions=PARTITIONS, keyed=False)
    await house.restore()
    await house.step(RAW, 1_000)
    hour, day = view_of(house).layers()
    assert (hour.name, hour.partitions, hour.open_cells) == ("hour", [0, 1], 0)
    assert hour.unacknowledged_windows > 4 * 24
    assert hour.watermark_ms is None
    assert day.unacknowledged_windows == 0


async def test_float_sums_merge_to_the_same_cells(tmp_path: Path) -> None:
    """Population variance of a float field over partitions is that of all values together."""
    values = [1.5, -2.25, 8.0, 0.5, 3.75, -1.0]
    themap = float_map()
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(themap)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", themap)
    for number, value in enumerate(values):
        record = flight(number, "JFK", "UA").replace(
            b'"delay":1', b'"delay":' + str(value).encode()
        )
        house.log.put(RAW, number % PARTITIONS, record)
    for partition in range(PARTITIONS):
        house.log.put(RAW, partition, 10 * DAY_MS)
    await house.settle()
    (row,) = (await archived(house, "hour")).to_dicts()
    mean = sum(values) / len(values)
    assert row["sum_delay"] == pytest.approx(sum(values))
    assert row["m2_delay"] == pytest.approx(sum((value - mean) ** 2 for value in values))
    await house.kill()
    await archive.close()


def float_map() -> Map:
    """Return the merged map with a measured field of floats."""
    (source,) = MAP.sources
    fields = [
        dataclasses_replace(f, type="float") if f.name == "delay" else f for f in source.fields
    ]
    layers = [
        dataclasses_replace(layer, accumulators=accumulators("delay", "float"))
        for layer in MAP.layers
    ]
    return dataclasses_replace(
        MAP, sources=(dataclasses_replace(source, fields=tuple(fields)),), layers=tuple(layers)
    )
