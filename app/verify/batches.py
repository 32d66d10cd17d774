r"""Batches: the events of many records as rows of a table, decoded by the column.

The engine decodes records that are surely sound; its reader of JSON is not the worker's.
Whatever is in doubt, in one event or in a whole record, is read by the plain rules of
``records.py``::

    values -> lines -- sound ---------------> table
                  \-- in doubt -> plain rules --'  `-> faults

A document is sound if it is an object without repeated names whose values are of their types.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import orjson
import polars as pl

from app.verify.columns import COLUMN_TYPES, MISSING, SOUND, as_floats, as_texts, unsound
from app.verify.database import Database
from app.verify.lines import Lines, decoded, doubt
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
from tables.model.layer import Layer, Source

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
        """Return a stream's columns; None if it cannot be read."""

    def event(self, columns: Columns, row: int) -> Event | Faults:
        """Return the event of a row, or why there is none."""


class Kinds(dict[str, int]):
    """By type, the number of the set of layers that select it; 0 is the empty set."""

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
    """Decodes the records of one source into tables, under a view.

    Args:
        database: has their tables.
        source: the source.
        layers: the base layers that read it.
        needed: the fields that they need, with their types.
        reader: reads by the plain rules.
        arrow: reads Arrow streams.
        faulty: takes partition, offset, place and faults of values that are not events.
    """

    def __init__(
        self,
        database: Database,
        source: Source,
        layers: tuple[Layer, ...],
        needed: Mapping[str, str],
        reader: RecordReader,
        *,
        arrow: ArrowReader,
        faulty: Callable[[int, int, int, Faults], None],
    ) -> None:
        self._database = database
        self._source = source
        self._reader = reader
        self._arrow = arrow
        self._faulty = faulty
        self.kinds = Kinds(layers)
        roles = {source.time_at, source.type_at}
        self._fields = {f.name: f.type for f in source.fields if f.at not in roles}
        self._required = [f.name for f in source.fields if f.required and f.at not in roles]
        types = {field.at: field.type for field in source.fields}
        # The text of a float is another one where its digits are many.
        declared = SOUND.get(types.get(source.id_at or (), ""), frozenset({str, int, MISSING}))
        self._id_types = declared if float not in declared else frozenset({MISSING})
        self._needed = dict(needed)
        self.columns = {name: f"f{number}" for number, name in enumerate(needed)}
        self.table = f"taken_{source.name}"
        self._kinds_table = f"kinds_{source.name}"
        self._kinds_known = _TYPES_MAX
        self._decoded, self._doubt = decoded(source, self.columns), doubt(source)
        self._batch = self._empty()
        self._lines = Lines()

    def _empty(self) -> Batch:
        return Batch({name: [] for name in self._needed})

    def __len__(self) -> int:
        """How many events and heartbeats are not in the table yet."""
        return len(self._lines) + len(self._batch)

    @property
    def size(self) -> int:
        """How many bytes of documents are not in the table yet."""
        return self._lines.size

    def load(self) -> bool:
        """Make the view of all that was taken since the last time; tell whether there is any.

        Its columns are ``part``, ``offset``, ``place``, ``appended``, ``time``, ``kind``, ``id``,
        and ``columns``. Heartbeats have no kind, and a place below 0.
        """
        if not len(self):
            return False
        fields = "".join(f", {column}" for column in self.columns.values())
        common = f'part, "offset", place, appended, time, kind, id{fields}'
        tables = [f"SELECT {common} FROM plain"]
        lines, self._lines = self._lines, Lines()
        if len(lines):
            self._decode(lines)
            tables.insert(0, f"SELECT {common} FROM decoded JOIN {self._kinds_table} USING (type)"
                " WHERE sound")  # fmt: skip
        batch, self._batch = self._batch, self._empty()
        self._database.load(
            "CREATE OR REPLACE TEMP TABLE plain AS FROM incoming", self._frame(batch)
        )
        self._database.run(
            f"CREATE OR REPLACE TEMP VIEW {self.table} AS {' UNION ALL '.join(tables)}"
        )
        return True

    def _decode(self, lines: Lines) -> None:
        """Decode lines; those in doubt by plain rules, in the order of the log."""
        database = self._database
        database.load(
            f"CREATE OR REPLACE TEMP TABLE decoded AS {self._decoded}", lines.frame(self._doubt)
        )
        doubtful = database.all("SELECT number FROM decoded WHERE NOT sound ORDER BY number")
        for (row,) in doubtful:
            self._event(
                lines.parts[row], lines.offsets[row], lines.places[row], lines.appended[row],
                self._reader.line(lines.texts[row]),
            )  # fmt: skip
        if self._kinds_known >= _TYPES_MAX:  # a stream of ever new types
            database.run(
                f"CREATE OR REPLACE TEMP TABLE {self._kinds_table} (type VARCHAR, kind SMALLINT)"
            )
            self._kinds_known = 0
        new = database.all(
            f"SELECT DISTINCT type FROM decoded ANTI JOIN {self._kinds_table} USING (type)"
            " WHERE sound"
        )
        if new:
            rows = [(kind, self.kinds[kind]) for (kind,) in new]
            schema = {"type": pl.String, "kind": pl.Int16}
            database.load(
                f"INSERT INTO {self._kinds_table} FROM incoming",
                pl.DataFrame(rows, schema=schema, orient="row"),
            )
            self._kinds_known += len(rows)

    def _frame(self, batch: Batch) -> pl.DataFrame:
        return pl.DataFrame(
            [
                pl.Series("part", batch.parts, pl.Int32),
                pl.Series("offset", batch.offsets, pl.Int64),
                pl.Series("place", batch.places, pl.Int32),
                pl.Series("appended", batch.appended, pl.Int64),
                pl.Series("time", batch.times, pl.Int64),
                pl.Series("kind", batch.kinds, pl.Int16),
                pl.Series("id", batch.ids, pl.String),
                *(
                    pl.Series(column, batch.fields[name], COLUMN_TYPES[self._needed[name]][0])
                    for name, column in self.columns.items()
                ),
            ]
        )

    def values(self, part: int, records: Sequence[Record]) -> list[Record]:
        """Decode records of JSON; return those that it leaves to others."""
        bytes_max = self._source.record_bytes_max
        simple = [
            record
            for record in records
            if (value := record.value)
            and value[0] == _OBJECT
            and not record.headers
            and b"\n" not in value
            and len(value) <= bytes_max
            and not record.cut
        ]
        others: list[Record] = []
        if len(simple) < len(records):
            taken = {record.offset for record in simple}
            others = [record for record in records if record.offset not in taken]
        texts = [record.value for record in simple if record.value]
        rows, rest = Rows.of(simple), []
        for record in others:
            value = record.value
            is_blank = not value or value[0] <= _BLANK_MAX
            if not value or is_blank or record.size > bytes_max or has_broken_name(record):
                rest.append(record)
                continue
            form = form_of(record) if record.headers or value[0] == ARROW_START[0] else ""
            if form == "json" or (not form and b"\n" not in value):
                texts.append(value)
                rows.add(record)
                continue
            several = [line for line in value.split(b"\n") if line.strip()]
            # Without a form it is lines if the first one is a document: then the whole is not one.
            if form == "ndjson" or (not form and _document(several[0]) is not None):
                texts += several
                rows.add(record, len(several))
            else:
                rest.append(record)
        lines = self._lines
        lines.parts += [part] * len(texts)
        lines.offsets += rows.offsets
        lines.places += rows.places
        lines.appended += rows.appended
        lines.texts += texts
        lines.size += sum(map(len, texts))
        return rest

    def arrow(self, part: int, record: Record) -> int | None:
        """Decode an Arrow stream; return how many rows it has, None if it cannot be read."""
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
        """Add the events that the plain rules have read."""
        if content.column == "heartbeat":
            self._heartbeat(part, record, content.time_ms)
        for place, event in enumerate(content.events):
            self._event(part, record.offset, place, record.time_ms, event)

    def _heartbeat(self, part: int, record: Record, time_ms: int) -> None:
        batch = self._batch
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
        """Add an event, or the fault that stands for one."""
        if not isinstance(event, Event):
            self._faulty(part, offset, place, event)
            return
        batch = self._batch
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
        for name in self._required:
            found |= unsound(columns.fields[name], SOUND[self._fields[name]] - {MISSING})
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
        batch, count = self._batch, len(columns.times)
        batch.parts += [part] * count
        batch.offsets += rows.offsets
        batch.places += rows.places
        batch.appended += rows.appended
        batch.times += columns.times
        kinds = self.kinds
        batch.kinds += [kinds[kind] for kind in columns.types]
        batch.ids += as_texts(columns.ids) if columns.ids else [None] * count
        source = self._source
        roles = {source.time_at: columns.times, source.type_at: columns.types}
        for name, column in batch.fields.items():
            at = source.field(name).at
            found = roles[at] if at in roles else columns.fields[name]
            column.extend(as_floats(found) if self._is_float(name) else found)


def pattern_of(layer: Layer) -> re.Pattern[str]:
    """Return the pattern of the types that a base layer selects.

    ``*`` is any one level; ``**``, which is last, is one or more. Dots separate levels:
    any characters, line feeds too, or none.
    """
    levels = {"*": "[^.]*", "**": ".*"}
    alternatives = [
        r"\.".join(levels.get(level) or re.escape(level) for level in pattern.split("."))
        for pattern in layer.events
    ]
    return re.compile("|".join(f"(?:{one})" for one in alternatives), re.DOTALL)


def _document(line: bytes) -> Any:
    """Return a document; None if there is none, or only ``null``."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
