"""Parts of several tests: a small map, runs of records, a log in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson
import pytest

from agents.ports import LogRecord
from app.health.backpressure import Pressure
from tables.model.errors import OffsetGoneError, OutcomeUnknownError
from tables.model.layer import Accumulator, Field, KeyField, Layer, Map, Measure, Source
from tables.model.window import Window
from tables.record.chunk import Headers, Run
from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat

T = TypeVar("T", bound=msgspec.Struct)
NO_PRESSURE = Pressure(2**60, 0, [Path()], lambda: 0)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
EVENTS = Accumulator("events", None, "int")


def seeds(count: int) -> list[Any]:
    """Return so many seeds as parameters; all but the first are left to ``make test``."""
    return kinds(*range(count))


def kinds(first: object, *more: object) -> list[Any]:
    """Return kinds of one thing as parameters; all but the first are left to ``make test``."""
    return [first, *(pytest.param(one, marks=pytest.mark.slow) for one in more)]


def accumulators(field: str, kind: str = "int") -> tuple[Accumulator, ...]:
    """Return every accumulator of one measured field."""
    kinds = ["n", "sum", "min", "max", *(["sqlo", "sqhi"] if kind == "int" else ["m2"])]
    return (EVENTS, *(Accumulator(k, field, kind) for k in kinds))  # type: ignore[arg-type]


def small_map(**changes: Any) -> Map:
    """Return a map of one source with two base layers, and a day above the hour."""
    source = Source(
        name="flights",
        topic="flights.raw",
        partitions=2,
        time_field="at",
        type_field="type",
        fields=(Field("origin", "string"), Field("carrier", "string"), Field("delay", "int")),
        keyed_by=("origin",),
    )
    key = (KeyField("origin", "string"), KeyField("carrier", "string"))
    measures = tuple(
        Measure(kind, None if kind == "count" else "delay")
        for kind in ("count", "sum", "mean", "min", "max", "variance")
    )
    hour = Layer(
        name="hour",
        key=key,
        window=Window(HOUR_MS),
        measures=measures,
        accumulators=accumulators("delay"),
        max_out_of_orderness_ms=0,
        allowed_lateness_ms=HOUR_MS,
        partitions=2,
        source="flights",
        events=("flight.*",),
    )
    day = dataclasses_replace(
        hour, name="day", key=key[1:], window=Window(DAY_MS), source=None, finer="hour", events=()
    )
    themap = Map(1, "small", (source,), (hour, day), "digest")
    return dataclasses_replace(themap, **changes)


def dataclasses_replace(struct: T, **changes: Any) -> T:
    """Return a copy of a msgspec struct with other values."""
    return msgspec.structs.replace(struct, **changes)


def flight(at: int, origin: str = "JFK", carrier: str = "UA", delay: int | None = 1) -> bytes:
    """Return one event as JSON."""
    event = {"at": at, "type": "flight.departed", "origin": origin, "carrier": carrier}
    return orjson.dumps(event | {"delay": delay})


def nested(themap: Map) -> Map:
    """Return a map whose sources have time, type and all fields deep in their events."""
    sources = tuple(
        dataclasses_replace(
            source,
            time_field=f"meta.{source.time_field}",
            time_path=("meta", source.time_field),
            type_field=f"meta.{source.type_field}",
            type_path=("meta", source.type_field),
            fields=tuple(
                dataclasses_replace(field, path=("payload", "values", field.name.title()))
                for field in source.fields
            ),
        )
        for source in themap.sources
    )
    return dataclasses_replace(themap, sources=sources)


def run_of(
    values: Sequence[bytes | int | None],
    partition: int = 0,
    first_offset: int = 0,
    topic: str = "flights.raw",
    append_time_ms: int = 2_000_000_000_000,
) -> Run:
    """Return a run of records without gaps; an int in ``values`` stands for a heartbeat."""
    headers: dict[int, Headers] = {
        index: ((HEARTBEAT_HEADER, encode_heartbeat(value)),)
        for index, value in enumerate(values)
        if isinstance(value, int)
    }
    stop = first_offset + len(values)
    return Run(
        topic=topic,
        partition=partition,
        first_offset=first_offset,
        next_offset=stop,
        offsets=range(first_offset, stop),
        values=[None if isinstance(value, int) else value for value in values],
        append_times_ms=[append_time_ms] * len(values),
        headers=headers,
    )


@dataclasses.dataclass(slots=True, frozen=True)
class StoredRecord(LogRecord):
    """A record of the log in memory, with its headers and its key."""

    headers: Headers = ()
    key: bytes | None = None


@dataclasses.dataclass
class MemoryLog:
    """A log in memory that can be told to lose answers.

    Truncated records stay in ``records``, so that an index is an offset, but nobody can read them.
    """

    records: dict[tuple[str, int], list[StoredRecord]] = dataclasses.field(default_factory=dict)
    fail_next: str = ""
    reads: list[tuple[str, int, int, int]] = dataclasses.field(default_factory=list)
    starts: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    compacted: set[tuple[str, int, int]] = dataclasses.field(default_factory=set)

    def put(self, topic: str, partition: int, value: bytes | int) -> None:
        """Write as a producer would: an event, or a heartbeat if ``value`` is a time."""
        entries = self.records.setdefault((topic, partition), [])
        event = value if isinstance(value, bytes) else None
        headers: Headers = ()
        if isinstance(value, int):
            headers = ((HEARTBEAT_HEADER, encode_heartbeat(value)),)
        entries.append(StoredRecord(len(entries), event, 2_000_000_000_000, headers))

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Any,
        *,
        key: bytes | None = None,
    ) -> int:
        """Append, or fail as told: ``lost`` is not written, ``unanswered`` is."""
        failing, self.fail_next = self.fail_next, ""
        if failing == "lost":
            raise OutcomeUnknownError("lost")
        entries = self.records.setdefault((topic, partition), [])
        entries.append(StoredRecord(len(entries), value, 2_000_000_000_000, headers, key))
        if failing == "unanswered":
            raise OutcomeUnknownError("unanswered")
        return len(entries) - 1

    async def read(
        self, topic: str, partition: int, start: int, stop: int, bytes_max: int | None = None
    ) -> list[LogRecord]:
        """Return a range, and remember the request."""
        if start < self.starts.get((topic, partition), 0):
            raise OffsetGoneError(f"{topic}[{partition}] has no offset {start} any more")
        found: list[LogRecord] = []
        for record in self.records.get((topic, partition), [])[start:stop]:
            found.append(record)
            if bytes_max is not None and sum(len(r.value or b"") for r in found) >= bytes_max:
                break
        self.reads.append((topic, partition, start, start + len(found)))
        return found

    async def record_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """Return a record, None if it is behind the end or gone."""
        gone = offset < self.starts.get((topic, partition), 0)
        gone = gone or (topic, partition, offset) in self.compacted
        found = self.records.get((topic, partition), [])[offset : offset + 1]
        return found[0] if found and not gone else None

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset."""
        self.starts[topic, partition] = max(before, self.starts.get((topic, partition), 0))

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return first and next offset."""
        first = self.starts.get((topic, partition), 0)
        return first, len(self.records.get((topic, partition), []))
