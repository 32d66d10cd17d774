"""The input of a run: revisions of a map of small windows, and source logs.

The logs have late events, repeated ones and silences.
"""

from __future__ import annotations

import dataclasses
import json
import random

from tables.model.layer import Layer, Map
from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat
from tests.simulation.log import SimulatedLog
from tests.simulation.revisions import RAW, Revision, draw_revisions

KEYS = "aaabc"
JUMPS_MS = (0, 0, 0, 9, 25)

Event = tuple[str, int, float, str]
"""Key, time in milliseconds, value, and id, which may be empty."""

Record = list[Event] | int
"""The events of one record of the source, or the time of a heartbeat."""


@dataclasses.dataclass
class Workload:
    """Revisions of the map, all layers that any has, and the source's records by partition."""

    impure: bool
    layers: tuple[Layer, ...]
    revisions: list[Revision]
    records: list[list[Record]]

    @property
    def maps(self) -> list[Map]:
        """The maps by revision, of which the first is 0 here."""
        return [revision.themap for revision in self.revisions]


def make_workload(rng: random.Random, *, impure: bool) -> Workload:
    """Draw a workload; an impure one has float values, and revisions of the map."""
    partitions = rng.choice((2, 2, 2, 3))
    records = [draw_records(rng, impure=impure) for _ in range(partitions)]
    if rng.random() < 0.2:
        records[-1] = []  # a partition that never had an event
    if rng.random() < 0.02:
        records[0] = draw_crowd(rng, impure=impure)
    layers, revisions = draw_revisions(rng, partitions, impure=impure)
    return Workload(impure, layers, revisions, records)


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
    lines = [
        json.dumps({"t": t, "type": "e", "k": k, "v": v} | ({"id": name} if name else {}))
        for k, t, v, name in record
    ]
    return "\n".join(lines).encode(), ()


def draw_records(rng: random.Random, *, impure: bool) -> list[Record]:
    """Draw a partition's records: mostly one event, some late, some far too late, some again."""
    now = 0
    records: list[Record] = []
    sent: list[Event] = []
    for _ in range(rng.randint(8, 32)):
        now += rng.choice((0, 0, 1, 1, 2, 3, rng.choice(JUMPS_MS)))
        if rng.random() < 0.05:
            records.append(now)
            continue
        events = 1 if rng.random() < 0.9 else rng.randint(2, 4)
        record = []
        for _ in range(events):
            sent.append(_draw_event(rng, now, len(sent), impure=impure))
            if rng.random() < 0.2:
                sent[-1] = rng.choice(sent[-rng.choice((2, 8, 20, 40)) :])
            record.append(sent[-1])
        records.append(record)
    return records


def draw_crowd(rng: random.Random, *, impure: bool) -> list[Record]:
    """Draw a partition whose chunks hold thousands of events."""
    return [
        [
            _draw_event(rng, now, 2_000 * now + n, impure=impure)
            for n in range(rng.randint(500, 1500))
        ]
        for now in range(0, 16, 4)
    ]


def _draw_event(rng: random.Random, now: int, number: int, *, impure: bool) -> Event:
    late = rng.choice((0, 0, 0, 1, 2, 4, 8, 11, 14, 30))
    value = rng.randint(1, 9) / 10 if impure else rng.randint(1, 9)
    name = f"id {number}" if rng.random() < 0.9 else ""
    return rng.choice(KEYS), max(0, now - late), value, name
