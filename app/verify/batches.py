r"""Batches: the events of many records as columns, decoded by the column.

What is surely sound is taken at once, and with another reader of JSON than the worker's. Whatever
is in doubt, in one event or in a whole record, is read by the plain rules of ``records.py``::

    values -> lines -> documents -> columns -- sound --> batch
                  \-------- in doubt ---> plain rules --'  `-> faults

A document is sound if it is an object without repeated names whose values are of their types.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

import orjson

from app.verify.columns import MISSING, SOUND, as_floats, as_texts, times_of, unsound
from app.verify.records import (
    ARROW_START,
    TIME_MS_MAX,
    TIME_MS_MIN,
    Columns,
    Content,
    Event,
    Faults,
    Record,
    RecordReader,
    form_of,
    has_broken_name,
)
from tables.layer import Layer, Source

_ESCAPED_NAME = re.compile(rb"\\u00[0-7]")
"""In an escaped name there is one: the names of a map are ASCII."""

_NESTED_MAX = 100
"""Brackets beyond one a document; the plain reader gives up where they are nested too deeply."""

_OBJECT = ord("{")
_BLANK_MAX = ord(" ")
"""No byte of a blank is above it."""

_TYPES_MAX = 100_000
_TIMES, _TYPES = frozenset({int}), frozenset({str})


@dataclasses.dataclass(slots=True)
class Batch:
    """Events and heartbeats by column, in the order of each partition's log but for few.

    ``places`` are within the record, below 0 of a heartbeat. ``kinds`` number the sets of layers
    that types select, None for a heartbeat. ``fields`` has the columns that layers need.
    """

    fields: dict[str, list[Any]]
    parts: list[int] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    appended: list[int] = dataclasses.field(default_factory=list)
    times: list[int] = dataclasses.field(default_factory=list)
    kinds: list[int | None] = dataclasses.field(default_factory=list)
    ids: list[str | None] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        """How many rows it has."""
        return len(self.offsets)


@dataclasses.dataclass(slots=True)
class Rows:
    """Where some events stand, in one partition: offset, place, append time."""

    offsets: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    appended: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, records: list[Record]) -> Self:
        """Return the rows of records of one event each."""
        return cls(
            [record.offset for record in records],
            [0] * len(records),
            [record.time_ms for record in records],
        )

    def add(self, record: Record, count: int = 1) -> None:
        """Take the first events of a record."""
        self.offsets += [record.offset] * count
        self.places += range(count)
        self.appended += [record.time_ms] * count


class ArrowReader(Protocol):
    """Reads Arrow streams."""

    def columns(self, value: bytes) -> Columns | None:
        """Return a stream's columns; None where it cannot be read."""

    def event(self, columns: Columns, row: int) -> Event | Faults:
        """Return the event of a row, or why there is none."""


class Kinds(dict[str, int]):
    """By type, the number of the set of layers that select it; 0 is none."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self._patterns = [pattern_of(layer) for layer in layers]
        self.sets: list[frozenset[int]] = [frozenset()]

    def __missing__(self, kind: str) -> int:
        """Match a type that is new."""
        found = frozenset(i for i, one in enumerate(self._patterns) if one.fullmatch(kind))
        if found not in self.sets:
            self.sets.append(found)
        number = self.sets.index(found)
        if len(self) < _TYPES_MAX:  # a stream of ever new types
            self[kind] = number
        return number

    def selecting(self, layer: int) -> list[int]:
        """Return the kinds that a layer selects."""
        return [number for number, found in enumerate(self.sets) if layer in found]


class Decoder:
    """Decodes the records of one source into a batch.

    Args:
        source: the source.
        layers: the base layers that read it.
        needed: names of the fields that they need.
        reader: reads by the plain rules.
        arrow: reads Arrow streams.
        faulty: takes partition, offset, place and faults of what is no event.
    """

    def __init__(
        self,
        source: Source,
        layers: tuple[Layer, ...],
        needed: Iterable[str],
        reader: RecordReader,
        *,
        arrow: ArrowReader,
        faulty: Callable[[int, int, int, Faults], None],
    ) -> None:
        self._source = source
        self._reader = reader
        self._arrow = arrow
        self._faulty = faulty
        self.kinds = Kinds(layers)
        roles = {source.time_field, source.type_field}
        types = {field.name: field.type for field in source.fields}
        self._fields = {name: kind for name, kind in types.items() if name not in roles}
        # The text of a float is another one where its digits are many.
        declared = SOUND.get(types.get(source.id_field or "", ""), frozenset({str, int, MISSING}))
        self._id_types = declared if float not in declared else frozenset({MISSING})
        names = {*roles, *types, *filter(None, [source.id_field])}
        self._quoted = [(name, b'"%s"' % name.encode()) for name in names]
        self._needed = tuple(needed)
        self.batch = self._empty()

    def _empty(self) -> Batch:
        return Batch({name: [] for name in self._needed})

    def take(self) -> Batch:
        """Return the batch, and begin another one."""
        batch, self.batch = self.batch, self._empty()
        return batch

    def values(self, part: int, records: Iterable[Record]) -> list[Record]:
        """Decode records of JSON; return those that it leaves to others."""
        bytes_max = self._source.record_bytes_max
        simple: list[Record] = []
        others: list[Record] = []
        for record in records:
            value = record.value
            if value and value[0] == _OBJECT and not record.headers and b"\n" not in value:
                (simple if record.size <= bytes_max else others).append(record)
            else:
                others.append(record)
        lines = [record.value for record in simple if record.value]
        rows, rest = Rows.of(simple), []
        for record in others:
            value = record.value
            is_blank = not value or value[0] <= _BLANK_MAX
            if not value or is_blank or record.size > bytes_max or has_broken_name(record):
                rest.append(record)
                continue
            form = form_of(record) if record.headers or value[0] == ARROW_START[0] else ""
            if form == "json" or (not form and b"\n" not in value):
                lines.append(value)
                rows.add(record)
                continue
            several = [line for line in value.split(b"\n") if line.strip()]
            # Without a form it is lines if the first one is a document: then the whole is none.
            if form == "lines" or (not form and _document(several[0]) is not None):
                lines += several
                rows.add(record, len(several))
            else:
                rest.append(record)
        self._lines(part, rows, lines)
        return rest

    def arrow(self, part: int, record: Record) -> int | None:
        """Decode an Arrow stream; return how many rows it has, None where it cannot be read."""
        assert record.value is not None
        columns = self._arrow.columns(record.value)
        if columns is None:
            return None
        rows = Rows()
        rows.add(record, len(columns.times))
        doubtful = self._doubtful(columns)
        self._extend(part, rows, columns, doubtful, lambda row: self._arrow.event(columns, row))
        return len(columns.times)

    def content(self, part: int, record: Record, content: Content) -> None:
        """Take what plain rules have read."""
        if content.column == "heartbeat":
            self._heartbeat(part, record, content.time_ms)
        for place, event in enumerate(content.events):
            self._event(part, record.offset, place, record.time_ms, event)

    def _heartbeat(self, part: int, record: Record, time_ms: int) -> None:
        batch = self.batch
        batch.parts.append(part)
        batch.offsets.append(record.offset)
        batch.places.append(-1)
        batch.appended.append(record.time_ms)
        batch.times.append(time_ms)
        batch.kinds.append(None)
        batch.ids.append(None)
        for column in batch.fields.values():
            column.append(None)

    def _event(self, part: int, offset: int, place: int, append_ms: int, event: Any) -> None:
        """Take an event, or what there is instead."""
        if not isinstance(event, Event):
            self._faulty(part, offset, place, event)
            return
        batch = self.batch
        batch.parts.append(part)
        batch.offsets.append(offset)
        batch.places.append(place)
        batch.appended.append(append_ms)
        batch.times.append(event.time_ms)
        batch.kinds.append(self.kinds[event.type])
        batch.ids.append(event.id)
        for name, column in batch.fields.items():
            value = event.fields.get(name)
            column.append(float(value) if type(value) is int and self._is_float(name) else value)

    def _is_float(self, name: str) -> bool:
        return self._fields.get(name) == "float"

    def _lines(self, part: int, rows: Rows, lines: list[bytes]) -> None:
        if not lines:
            return
        documents = _documents(lines)
        doubtful = {row for row, one in enumerate(documents) if type(one) is not dict}
        for row in doubtful:
            documents[row] = {}
        doubtful |= self._repeating(lines, documents, doubtful)
        source = self._source
        times = [one.get(source.time_field) for one in documents]
        columns = Columns(
            times_of(times, source.time_unit_ms),
            [one.get(source.type_field) for one in documents],
            [one.get(source.id_field) for one in documents] if source.id_field else [],
            {name: [one.get(name) for one in documents] for name in self._fields},
        )
        doubtful |= self._doubtful(columns)
        self._extend(part, rows, columns, doubtful, lambda row: self._reader.line(lines[row]))

    def _repeating(
        self, lines: list[bytes], documents: list[dict[str, Any]], broken: set[int]
    ) -> set[int]:
        """Return the lines in which a name that matters may be there twice, or is nested deeply.

        Every name has a colon. A name that is not escaped stands in its line as it is.
        """
        sound = lines if not broken else [one for i, one in enumerate(lines) if i not in broken]
        whole = b"\n".join(sound)
        nested = whole.count(b"{") + whole.count(b"[") > len(sound) + _NESTED_MAX
        if not nested and whole.count(b":") == sum(map(len, documents)):
            return set()
        if not nested and _ESCAPED_NAME.search(whole) is None:
            found = all(
                whole.count(quoted) == sum(name in one for one in documents)
                for name, quoted in self._quoted
            )
            if found:
                return set()
        return {
            row
            for row, (line, one) in enumerate(zip(lines, documents, strict=True))
            if line.count(b"{") + line.count(b"[") > _NESTED_MAX
            or _ESCAPED_NAME.search(line) is not None
            or any(line.count(quoted) != (name in one) for name, quoted in self._quoted)
        }

    def _doubtful(self, columns: Columns) -> set[int]:
        """Return the rows that are no events, or cannot be told to be."""
        times = columns.times
        found = unsound(times, _TIMES)
        known = [ms for ms in times if type(ms) is int] if found else times
        if known and (min(known) < TIME_MS_MIN or max(known) > TIME_MS_MAX):
            found |= {
                row
                for row, ms in enumerate(times)
                if type(ms) is int and not TIME_MS_MIN <= ms <= TIME_MS_MAX
            }
        found |= unsound(columns.types, _TYPES)
        for name, column in columns.fields.items():
            found |= unsound(column, SOUND[self._fields[name]])
        return found | unsound(columns.ids, self._id_types)

    def _extend(
        self,
        part: int,
        rows: Rows,
        columns: Columns,
        doubtful: set[int],
        plain: Callable[[int], Event | Faults],
    ) -> None:
        """Take all rows into the batch, those in doubt one at a time."""
        for row in sorted(doubtful):
            self._event(part, rows.offsets[row], rows.places[row], rows.appended[row], plain(row))
        if doubtful:
            keep = [row for row in range(len(columns.times)) if row not in doubtful]

            def kept(column: list[Any]) -> list[Any]:
                return [column[row] for row in keep] if column else []

            rows = Rows(kept(rows.offsets), kept(rows.places), kept(rows.appended))
            fields = {name: kept(column) for name, column in columns.fields.items()}
            columns = Columns(kept(columns.times), kept(columns.types), kept(columns.ids), fields)
        batch, count = self.batch, len(columns.times)
        batch.parts += [part] * count
        batch.offsets += rows.offsets
        batch.places += rows.places
        batch.appended += rows.appended
        batch.times += columns.times
        kinds = self.kinds
        batch.kinds += [kinds[kind] for kind in columns.types]
        batch.ids += as_texts(columns.ids) if columns.ids else [None] * count
        source = self._source
        known = columns.fields | {
            source.time_field: columns.times, source.type_field: columns.types,
        }  # fmt: skip
        for name, column in batch.fields.items():
            found = known[name]
            column.extend(as_floats(found) if self._is_float(name) else found)


def pattern_of(layer: Layer) -> re.Pattern[str]:
    """Return what matches the types that a base layer selects.

    ``*`` is any one level; ``**``, which is last, is one or more. Levels are what dots separate:
    any characters, line feeds too, or none.
    """
    levels = {"*": "[^.]*", "**": ".*"}
    alternatives = [
        r"\.".join(levels.get(level) or re.escape(level) for level in pattern.split("."))
        for pattern in layer.events
    ]
    return re.compile("|".join(f"(?:{one})" for one in alternatives), re.DOTALL)


def _document(line: bytes) -> Any:
    """Return a document; None where there is none, or nothing but ``null``."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _documents(lines: list[bytes]) -> list[Any]:
    loads = orjson.loads
    try:
        return [loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return [_document(line) for line in lines]
