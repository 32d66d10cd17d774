"""What a run works on: a map of small windows, and source logs with late events and silences."""

from __future__ import annotations

import dataclasses
import json
import random

import msgspec
from simulation.log import SimulatedLog
from support import EVENTS

from tables.heartbeat import HEARTBEAT_HEADER, encode_heartbeat
from tables.layer import (
    Accumulator,
    Condition,
    Field,
    FieldType,
    KeyField,
    Layer,
    Map,
    Measure,
    Source,
)
from tables.window import Window

RAW = "events.raw"
KEYS = "aaabc"
BY_KEY = (KeyField("k", "string"),)
SKEW_MS = 2**60
JUMPS_MS = (0, 0, 0, 9, 25)
REVISIONS = 3

Event = tuple[str, int, float]
"""Key, time in milliseconds, value."""

Record = list[Event] | int
"""The events of one record of the source, or the time of a heartbeat."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a revision of the map says of one base layer, in plain numbers.

    Events below ``least`` are filtered; the floor is ``slack_ms`` behind stream time.
    """

    slack_ms: int
    least: int


@dataclasses.dataclass
class Workload:
    """Maps by revision (the first is 0), the source's records by partition, and the rules."""

    impure: bool
    maps: list[Map]
    rules: dict[str, list[Rule]]
    records: list[list[Record]]


def make_workload(rng: random.Random, *, impure: bool) -> Workload:
    """Draw a workload; an impure one has float values, and revisions that change rules."""
    partitions = rng.choice((2, 2, 2, 3))
    records = [draw_records(rng, impure=impure) for _ in range(partitions)]
    if rng.random() < 0.2:
        records[-1] = []  # a partition that never had an event
    if rng.random() < 0.02:
        records[0] = draw_crowd(rng, impure=impure)
    layers = draw_layers(rng, partitions, "float" if impure else "int")
    rules = {layer.name: draw_rules(rng, layer) for layer in layers if layer.source}
    maps = []
    for revision in range(REVISIONS if impure else 1):
        revised = tuple(_revise(layer, rules, revision) for layer in layers)
        source = Source(
            name="events",
            topic=RAW,
            partitions=partitions,
            time_field="t",
            type_field="type",
            fields=(Field("k", "string"), Field("v", "float" if impure else "int")),
            future_skew_ms=SKEW_MS,
        )
        maps.append(Map(revision + 1, "sim", (source,), revised, f"digest{revision}"))
    return Workload(impure, maps, rules, records)


def write_records(log: SimulatedLog, work: Workload, first: int) -> None:
    """Write the source's records; the logs begin at offset ``first``, all of it still unseen."""
    for number, records in enumerate(work.records):
        partition = log.of(RAW, number)
        partition.first = partition.start = first
        for record in records:
            partition.add(*encode_record(record))
        partition.hidden = len(records)


def encode_record(record: Record) -> tuple[bytes | None, tuple[tuple[str, bytes], ...]]:
    """Return value and headers of a record."""
    if isinstance(record, int):
        return None, ((HEARTBEAT_HEADER, encode_heartbeat(record)),)
    lines = [json.dumps({"t": t, "type": "e", "k": k, "v": v}) for k, t, v in record]
    return "\n".join(lines).encode(), ()


def draw_records(rng: random.Random, *, impure: bool) -> list[Record]:
    """Draw a partition's records: mostly one event, some late, some far too late."""
    now = 0
    records: list[Record] = []
    for _ in range(rng.randint(8, 32)):
        now += rng.choice((0, 0, 1, 1, 2, 3, rng.choice(JUMPS_MS)))
        if rng.random() < 0.05:
            records.append(now)
            continue
        events = 1 if rng.random() < 0.9 else rng.randint(2, 4)
        records.append([_draw_event(rng, now, impure=impure) for _ in range(events)])
    return records


def draw_crowd(rng: random.Random, *, impure: bool) -> list[Record]:
    """Draw a partition whose chunks hold thousands of events."""
    return [
        [_draw_event(rng, now, impure=impure) for _ in range(rng.randint(500, 1500))]
        for now in range(0, 16, 4)
    ]


def _draw_event(rng: random.Random, now: int, *, impure: bool) -> Event:
    late = rng.choice((0, 0, 0, 1, 2, 4, 8, 11, 14, 30))
    value = rng.randint(1, 9) / 10 if impure else rng.randint(1, 9)
    return rng.choice(KEYS), max(0, now - late), value


def draw_layers(rng: random.Random, partitions: int, kind: FieldType) -> tuple[Layer, ...]:
    """Draw the layers: three levels, or two latenesses on one source, or a merge stage.

    One of them is published.
    """
    accumulated = "float" if kind == "float" else "int"
    fine = Layer(
        name="fine",
        key=BY_KEY,
        window=Window(4),
        measures=(Measure("count"), Measure("sum", "v"), Measure("max", "v")),
        accumulators=(EVENTS, *(Accumulator(k, "v", accumulated) for k in ("n", "sum", "max"))),
        max_out_of_orderness_ms=3,
        allowed_lateness_ms=rng.choice((2, 7, 7, 30)),
        partitions=partitions,
        source="events",
        events=("e",),
    )
    change = msgspec.structs.replace
    finer = {"source": None, "events": ()}
    mid = change(fine, name="mid", window=Window(8), finer="fine", partitions=2, **finer)
    match rng.choice(("levels", "latenesses", "merged")):
        case "levels":
            top = change(mid, name="top", key=(), window=Window(16), finer="mid", partitions=1)
            layers = [fine, mid, top]
        case "latenesses":
            side = change(
                fine, name="side", window=Window(6), max_out_of_orderness_ms=1,
                allowed_lateness_ms=2,
            )  # fmt: skip
            layers = [fine, side, mid]
        case _:
            whole = change(fine, name="whole", merged=True, partitions=2)
            top = change(mid, name="top", finer="whole", partitions=1)
            layers = [whole, top]
    number = rng.randrange(len(layers))
    layers[number] = change(layers[number], publish=rng.choice(("json", "arrow")))
    return tuple(layers)


def draw_rules(rng: random.Random, layer: Layer) -> list[Rule]:
    """Draw what the revisions say of a base layer."""
    lateness = layer.allowed_lateness_ms
    slack = layer.max_out_of_orderness_ms
    choices = (lateness, lateness + 7, lateness + 20, max(0, lateness - 3))
    revised = [
        Rule(slack + rng.choice(choices), rng.choice((0, 0, 3))) for _ in range(REVISIONS - 1)
    ]
    return [Rule(slack + lateness, 0), *revised]


def _revise(layer: Layer, rules: dict[str, list[Rule]], revision: int) -> Layer:
    if layer.name not in rules or revision == 0:
        return layer
    rule = rules[layer.name][revision]
    where = (Condition("v", ">=", rule.least / 10),) if rule.least else ()
    lateness = rule.slack_ms - layer.max_out_of_orderness_ms
    return msgspec.structs.replace(layer, allowed_lateness_ms=lateness, where=where)
