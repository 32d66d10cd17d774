"""Verify's tables hold the rows of plain rules, one event at a time, for any logs."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from typing import Any

import pytest

from app.verify.cells import Cell, FieldSums
from app.verify.database import Database
from tables.model.layer import Condition, Field, KeyField, Map, Measure
from tables.model.window import Window
from tests.support.common import (
    DAY_MS,
    HOUR_MS,
    MemoryLog,
    accumulators,
    dataclasses_replace,
    small_map,
)
from tests.support.verify_support import Recomputed, plain_partitions, plain_rows

RAW = "flights.raw"
FIELDS = (
    Field("origin", "string"), Field("carrier", "string"), Field("delay", "int"),
    Field("weight", "float"), Field("vip", "bool"),
)  # fmt: skip
MEASURES = ("count", "sum", "mean", "min", "max", "variance")


def measured(field: str) -> tuple[Measure, ...]:
    """Return all measures of a field."""
    return tuple(Measure(kind, None if kind == "count" else field) for kind in MEASURES)


def wide_map(**source: Any) -> Map:
    """Return a map with base layers of several windows, filters and keys, and coarser ones."""
    hour, day = small_map().layers
    both = (*accumulators("delay"), *accumulators("weight", "float")[1:])
    measures = (*measured("delay"), *measured("weight")[1:])
    hour = dataclasses_replace(hour, measures=measures, accumulators=both)
    day = dataclasses_replace(day, measures=measures, accumulators=both)
    month = dataclasses_replace(
        day, name="month", key=(), window=Window(0), finer="day", max_out_of_orderness_ms=7
    )
    filters = (
        Condition("delay", ">=", -3), Condition("carrier", "in", ("UA", "A'A")),
        Condition("weight", "!=", 1.5), Condition("vip", "==", True),
    )  # fmt: skip
    filtered = dataclasses_replace(
        hour, name="filtered", window=Window(7 * 60_000), where=filters, events=("bus.*", "**"),
        max_out_of_orderness_ms=60_000, allowed_lateness_ms=0, key=(KeyField("vip", "bool"),),
        partitions=3, merged=True, accumulators=accumulators("weight", "float"),
        measures=measured("weight"),
    )  # fmt: skip
    year = dataclasses_replace(
        filtered, name="year", window=Window(0, 12), finer="filtered", source=None, where=(),
        events=(), merged=False, partitions=2,
    )  # fmt: skip
    one = dataclasses_replace(small_map().sources[0], fields=FIELDS, **source)
    return small_map(sources=(one,), layers=(hour, year, month, day, filtered))


def event(chance: random.Random, at: int) -> dict[str, Any]:
    """Return an event, most often a sound one."""
    found = {
        "at": at,
        "type": chance.choice(["flight.departed"] * 6 + ["bus.left", "flight", "x\ny.z", ""]),
        "origin": chance.choice(["JFK", "LGA", "é" * 600, None] + ["JFK"] * 9),
        "carrier": chance.choice(["UA", "A'A", "", "DL"]),
        "delay": chance.choice([None, -(2**63), 2**63 - 1, 3, -4, 0, 17]),
        "weight": chance.choice([None, 1.5, -1e300, 1e300, 0.1, 3, -2.5e-300, 7.25]),
        "vip": chance.choice([True, False, None]),
        "id": chance.choice([None, "", *[chance.randrange(20), str(chance.randrange(20))] * 2]),
    }
    return {name: value for name, value in found.items() if chance.random() < 0.97}


def random_log(seed: int, count: int = 400) -> MemoryLog:
    """Return a log of two partitions: late events, jumps of time, heartbeats and gaps."""
    chance = random.Random(seed)
    log = MemoryLog()
    now = [chance.choice([0, -5 * DAY_MS, 400 * DAY_MS])] * 2
    for _ in range(count):
        part = chance.randrange(2)
        now[part] += chance.choice([1_000, 60_000, 60_000, HOUR_MS])
        at = now[part] - chance.choice([0, 0, 0, 30_000, HOUR_MS, 3 * HOUR_MS, 40 * HOUR_MS])
        if chance.random() < 0.05:
            log.put(RAW, part, at)
            continue
        text = json.dumps(event(chance, at), ensure_ascii=chance.random() < 0.5)
        if chance.random() < 0.1:
            text = text.replace(chance.choice(['"at"', "{", "3", '"delay"', "}"]), "x", 1)
        log.put(RAW, part, text.encode())
    for part in range(2):
        del log.records[RAW, part][chance.randrange(5) : chance.randrange(8)]
    return log


def same_cell(got: Cell, want: Cell) -> bool:
    """Return whether sums are equal, those of floats up to the error of a compensated sum."""
    return got.events == want.events and all(
        same_sums(got.fields[name], sums) for name, sums in want.fields.items()
    )


def same_sums(got: FieldSums, want: FieldSums) -> bool:
    """Return whether the sums of a field are equal."""
    if (got.n, got.least, got.most) != (want.n, want.least, want.most):
        return False
    if not want.is_float:
        return (got.total, got.squares) == (want.total, want.squares)
    unit = Fraction(4, 2**53)
    # Sums of multiples of 2**-70 lie on whole numbers of 2**74 here.
    return (
        abs(got.total - want.total) <= unit * want.magnitude + 2**80
        and abs(got.magnitude - want.magnitude) <= unit * want.magnitude + 2**80
        and abs(got.squares - want.squares) <= 2 * unit * want.squares + 2**1_090
    )


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_tables_hold_what_plain_rules_come_to(seed: int, early: bool) -> None:
    """All rows, their parts and whether they are closed; all counts; all letters that lack."""
    ids: dict[str, Any] = (
        {"id_field": "id", "ids_max": 12 if seed % 2 else 1_000} if seed % 3 else {}
    )
    themap = wide_map(unclassified="dead" if seed % 2 else "count", **ids)
    log = random_log(seed)
    partitions = plain_partitions(log, themap)
    rows = plain_rows(log, themap, early=early)
    with Database() as database:
        got = Recomputed.of(database, log, themap, early=early)
        want = [{name: count for name, count in one.ledger.items() if count} for one in partitions]
        assert got.ledgers() == want
        assert sorted(map(str, got.differences())) == sorted(
            str(one) for partition in partitions for one in partition.differences
        )
        for layer in themap.layers:
            plain = {
                (place, part): (part in row.closed, cell)
                for place, row in rows[layer.name].items()
                for part, cell in row.parts.items()
            }
            found = got.rows(layer)
            assert found.keys() == plain.keys()
            for where, (closed, cell) in plain.items():
                assert found[where][0] == closed, (layer.name, where)
                assert same_cell(found[where][1], cell), (layer.name, where)
        if ids:
            assert sum(one.get("events.duplicate", 0) for one in want) >= 3
        assert sum(one.get("layer.hour.too_late", 0) for one in want) >= 3
