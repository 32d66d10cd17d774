"""Verify of layers that a later revision added: their counts and letters from their cut on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

from app.verify.compare import DifferenceLog, compare_ledgers
from app.verify.cuts import Cuts
from app.verify.database import Database
from app.verify.errors import VerifyError
from app.verify.whole import Whole
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Field, KeyField, Map
from tables.model.ledger import EVENT_COLUMNS, LAYER_COLUMNS, RECORD_COLUMNS, total
from tables.query.facts import described
from tests.support.common import HOUR_MS, MemoryLog, dataclasses_replace, small_map
from tests.support.local_worker import RAW, LocalWorker
from tests.support.verify_support import Recomputed
from tests.support.waiting import until
from treasure_map.status import LayerStatus

HOUR, DAY = small_map().layers
FIRST = small_map(layers=(HOUR,))
MINUTE_MS = 60_000
LATER = dataclasses_replace(
    HOUR, name="later", events=("bus.*", "flight.*"), key=(KeyField("carrier", "string"),),
    allowed_lateness_ms=0, merged=False,
)  # fmt: skip
ANY = dataclasses_replace(LATER, name="any", merged=True, events=("bus.*",), partitions=2)
COUNTED = ("flight", "bus", "train")


@pytest.fixture
def database() -> Iterator[Database]:
    """Run an engine for the test."""
    with Database() as running:
        yield running


def put(log: MemoryLog, chance: random.Random, hours: range) -> None:
    """Write events of each hour to both partitions: many of one time, some late, some lacking."""
    for hour in hours:
        for _ in range(12):
            at = hour * HOUR_MS + chance.choice([0, 0, MINUTE_MS, -HOUR_MS, -3 * HOUR_MS])
            event = {"at": at, "type": f"{chance.choice(COUNTED)}.left", "origin": "JFK"}
            event |= {"carrier": "UA"} if chance.random() < 0.8 else {}
            log.put(RAW, chance.randrange(2), orjson.dumps(event | {"delay": 3}))


async def work(
    folder: Path,
    log: MemoryLog,
    *maps: Map,
    later: random.Random | None = None,
    feed: Callable[[int], None] | None = None,
) -> LocalWorker:
    """Take a log through houses of one revision after the other.

    For each there come ten hours more of ``later``, or the records of ``feed``.
    """
    archive = EmbeddedArchive(folder / "archive")
    house = None
    for number, themap in enumerate(maps):
        if feed is not None:
            feed(number)
        else:
            put(log, later or random.Random(), range(number * 10, number * 10 + 10))
        if house is not None:
            await house.kill()
            await archive.close()
        await archive.open(themap)
        house = LocalWorker(log, archive, folder / "state", themap)
        await house.restore()

        async def done(house: LocalWorker = house) -> bool:
            return not any([await house.step(topic, 7) for topic in house.map.inputs()])

        await until(done)
    assert house is not None
    return house


def whole_of(house: LocalWorker) -> Whole:
    """Return the times from which on a worker calls its layers whole."""
    return Whole.of(
        LayerStatus(
            name=layer.name,
            open_cells=0,
            unacknowledged_windows=0,
            waiting_open_windows=0,
            archived_cells=0,
            watermark_ms=None,
            floor_ms=None,
            partitions=[],
            whole_from={
                str(owner.partition): described(layer, owner.state.whole(layer))
                for owner in house.owners.each()
                if owner.plan.topic == house.map.input_topic(layer)
            },
        )
        for layer in house.map.layers
    )


def ledger_of(house: LocalWorker) -> dict[str, Any]:
    """Return the ledger that a worker would serve."""
    owners = list(house.owners.each())
    counts = total(owner.state.meta.ledger for owner in owners)
    names = {layer.name for owner in owners for layer in owner.plan.layers}
    records: dict[str, Any] = {}
    for owner in owners:
        records.setdefault(owner.plan.topic, {})[str(owner.partition)] = {
            name: owner.state.meta.ledger.get(f"records.{name}", 0) for name in RECORD_COLUMNS
        }
    return {
        "problems": [],
        "records": records,
        "events": {n: counts.get(f"events.{n}", 0) for n in ("decoded", *EVENT_COLUMNS)},
        "reasons": {
            kind: {n.partition(".")[2]: c for n, c in counts.items() if n.startswith(f"{kind}.")}
            for kind in ("unreadable", "malformed")
        },
        "layers": {
            name: {c: counts.get(f"layer.{name}.{c}", 0) for c in ("selected", *LAYER_COLUMNS)}
            for name in names
        },
    }


def second(unclassified: str) -> Map:
    """Return a later revision with two layers more."""
    source = dataclasses_replace(FIRST.sources[0], unclassified=unclassified)
    return small_map(layers=(HOUR, LATER, ANY), revision=2, digest="second", sources=(source,))


@pytest.mark.parametrize("unclassified", ["count", "dead"])
@pytest.mark.parametrize("seed", range(4))
async def test_counts_and_letters_of_a_later_layer_are_those_from_its_cut_on(
    tmp_path: Path, database: Database, seed: int, unclassified: str
) -> None:
    """Events around the possible cut are in doubt; all other counts and letters are exact."""
    themap = second(unclassified)
    first = dataclasses_replace(FIRST, sources=themap.sources)
    log = MemoryLog()
    house = await work(tmp_path, log, first, themap, later=random.Random(seed))
    try:
        whole, ledger = whole_of(house), ledger_of(house)
        assert set(whole.parts["later"]) == {0, 1}
        recomputed = Recomputed.of(database, log, themap, whole=whole)
        assert recomputed.differences() == []
        partitions = recomputed.events["flights"].partitions
        of = {"flights": partitions}
        found = DifferenceLog(20)
        compare_ledgers(themap, of, {"http://one": ledger}, found)
        assert found.kept == []
        doubt = sum((Counter(one.doubt) for one in partitions), Counter[str]())
        for column in ("selected", "folded", "too_late"):
            assert ledger["layers"]["later"][column] > 20 - 15 * (column == "too_late")
            assert doubt[f"layer.later.{column}"] < 20
            for by in (-1, doubt[f"layer.later.{column}"] + 1):
                sure = sum(one.ledger[f"layer.later.{column}"] for one in partitions)
                changed = ledger | {"layers": ledger["layers"] | {
                    "later": ledger["layers"]["later"] | {column: sure + by}
                }}  # fmt: skip
                found = DifferenceLog(20)
                compare_ledgers(themap, of, {"http://one": changed}, found)
                assert [one.where for one in found.kept] == [f"layer.later.{column} at http://one"]
    finally:
        await house.kill()
        await house.archive.close()


@pytest.mark.parametrize("moves_on", [False, True])
async def test_how_long_ids_are_remembered_is_in_doubt_at_a_cut(
    tmp_path: Path, database: Database, moves_on: bool
) -> None:
    """Events of long ago repeat ids only in the layer that is new; the log tells not since when."""
    source = dataclasses_replace(FIRST.sources[0], id_field="trip")
    slow = dataclasses_replace(LATER, allowed_lateness_ms=1_000 * HOUR_MS)
    first = dataclasses_replace(FIRST, sources=(source,))
    themap = small_map(layers=(HOUR, slow), revision=2, digest="second", sources=(source,))
    log = MemoryLog()

    def write(at: int, kind: str, trip: str) -> None:
        event = {"at": at, "type": f"{kind}.left", "origin": "JFK", "carrier": "UA", "trip": trip}
        log.put(RAW, 0, orjson.dumps(event | {"delay": 3}))

    def feed(number: int) -> None:
        if number == 0:
            write(100 * HOUR_MS, "flight", "first")
            return
        for trip in range(40):
            write(HOUR_MS + trip, "bus", f"{trip % 25}")
        if moves_on:
            write(101 * HOUR_MS, "flight", "second")
            write(HOUR_MS, "bus", "3")

    house = await work(tmp_path, log, first, themap, feed=feed)
    try:
        ledger, found = ledger_of(house), DifferenceLog(20)
        assert ledger["events"]["duplicate"] == 15 + moves_on
        recomputed = Recomputed.of(database, log, themap, whole=whole_of(house))
        assert recomputed.differences() == []
        of = {"flights": recomputed.events["flights"].partitions}
        compare_ledgers(themap, of, {"http://one": ledger}, found)
        assert found.kept == []
        for wrong in (-40, 40):
            events = ledger["events"] | {"duplicate": ledger["events"]["duplicate"] + wrong}
            compare_ledgers(themap, of, {"http://one": ledger | {"events": events}}, found)
        assert [one.where for one in found.kept] == ["events.duplicate at http://one"] * 2
    finally:
        await house.kill()
        await house.archive.close()


@pytest.mark.parametrize("unclassified", ["count", "dead"])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kind", ["string", "int", "bool"])
async def test_events_whose_key_was_null_before_a_layer_are_none_of_its_events(
    tmp_path: Path,
    database: Database,
    kind: Literal["string", "int", "bool"],
    merged: bool,
    unclassified: str,
) -> None:
    """The field was no key when they were read, and a record is never decoded again."""
    value = {"string": "three", "int": 3, "bool": True}[kind]
    source = dataclasses_replace(
        FIRST.sources[0], fields=(*FIRST.sources[0].fields, Field("lane", kind)),
        unclassified=unclassified,
    )  # fmt: skip
    lanes = dataclasses_replace(
        LATER, name="lanes", key=(KeyField("lane", kind),), merged=merged, partitions=2,
    )  # fmt: skip
    days = dataclasses_replace(
        lanes, name="days", window=DAY.window, source=None, finer="lanes", events=(), merged=False,
    )  # fmt: skip
    first = dataclasses_replace(FIRST, sources=(source,))
    themap = small_map(
        layers=(HOUR, lanes, days), revision=2, digest="second", sources=(source,)
    )  # fmt: skip
    log = MemoryLog()

    def feed(number: int) -> None:
        for at in range(number * 100, number * 100 + 100):
            event = {"at": at * HOUR_MS // 10, "origin": "JFK", "carrier": "UA", "delay": 3}
            event |= {"type": f"{('flight', 'bus')[at // 2 % 2]}.left"}
            event |= {"lane": None if at % 3 == 0 else value}
            log.put(RAW, at % 2, orjson.dumps(event))

    house = await work(tmp_path, log, first, themap, feed=feed)
    try:
        ledger, found = ledger_of(house), DifferenceLog(20)
        assert ledger["reasons"]["malformed"] == {"missing": 33}
        recomputed = Recomputed.of(database, log, themap, whole=whole_of(house))
        assert recomputed.differences() == []
        partitions = recomputed.events["flights"].partitions
        compare_ledgers(themap, {"flights": partitions}, {"http://one": ledger}, found)
        assert found.kept == []
        for layer in (lanes, days):
            keys = {key for (key, _), _ in recomputed.rows(layer)}
            assert keys == {(value,)}
    finally:
        await house.kill()
        await house.archive.close()


async def test_a_late_letter_of_a_later_layer_that_lacks_is_found(
    tmp_path: Path, database: Database
) -> None:
    """All letters behind the cut have to be there."""
    log, themap = MemoryLog(), second("count")
    first = dataclasses_replace(FIRST, sources=themap.sources)
    house = await work(tmp_path, log, first, themap, later=random.Random(1))
    try:
        topic = themap.side_topic("late")
        for part in range(themap.side_partitions):
            letters = log.records.get((topic, part), [])
            log.records[topic, part] = [
                one for one in letters if (b"later") not in dict(one.headers).values()
            ]
        recomputed = Recomputed.of(database, log, themap, whole=whole_of(house))
        found = recomputed.differences()
        sealed = sum(
            one.ledger["layer.later.too_late"] for one in recomputed.events["flights"].partitions
        )
        assert len(found) == sealed > 5
        assert all("later" in one.want for one in found)
    finally:
        await house.kill()
        await house.archive.close()


async def test_a_layer_that_was_there_before_counts_on(tmp_path: Path, database: Database) -> None:
    """Its counts from before are not told apart: only the least is known."""
    log, themap = MemoryLog(), second("count")
    first = dataclasses_replace(FIRST, sources=themap.sources)
    third = dataclasses_replace(first, revision=3, digest="third")
    fourth = dataclasses_replace(themap, revision=4, digest="fourth")
    maps = (first, themap, third, fourth)
    house = await work(tmp_path, log, *maps, later=random.Random(2))
    try:
        recomputed = Recomputed.of(database, log, fourth, whole=whole_of(house))
        of = {"flights": recomputed.events["flights"].partitions}
        assert recomputed.differences() == []
        found, ledger = DifferenceLog(20), ledger_of(house)
        compare_ledgers(fourth, of, {"http://one": ledger}, found)
        assert "layer.later.selected at http://one" in [one.where for one in found.kept]
        found, returned = DifferenceLog(20), frozenset({"later", "any"})
        compare_ledgers(fourth, of, {"http://one": ledger}, found, returned)
        assert found.kept == []
        ledger["layers"]["later"]["folded"] = 1
        compare_ledgers(fourth, of, {"http://one": ledger}, found, returned)
        assert [one.where for one in found.kept] == ["layer.later.folded at http://one"]
    finally:
        await house.kill()
        await house.archive.close()


def test_cuts_that_change_while_they_are_compared_are_refused() -> None:
    """A worker got another map meanwhile."""
    cuts = Cuts((LATER,))
    cuts.know(Whole(parts={"later": {0: 5}}), [0, 0])
    cuts.know(Whole(parts={"later": {0: 5}}), [0, 0])
    with pytest.raises(VerifyError, match="changed meanwhile"):
        cuts.know(Whole(parts={"later": {0: 6}}), [0, 0])
