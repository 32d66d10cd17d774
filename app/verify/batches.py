r"""Batches: the events of many records as rows of a table, decoded by the column.

The engine decodes records that are surely sound; its reader of JSON is not the worker's.
Whatever is in doubt, in one event or in a whole record, is read by the plain rules of
``records.py``::

    values -> lines -- sound ---------------> table
                  \-- in doubt -> plain rules --'  `-> faults

A document is sound if it is an object without repeated names whose values are of their types.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from app.verify.arrow import ArrowRows
from app.verify.checks import Faults
from app.verify.database import COLUMN_TYPES, Database
from app.verify.documents import elements_of
from app.verify.lines import Line, decoded, doubt, frame_of
from app.verify.records import (
    STARTS,
    Content,
    Event,
    Record,
    RecordReader,
    form_of,
    has_broken_name,
)
from tables.model.layer import Layer, Source

_BLANK_MAX = ord(" ")
"""No byte of a blank is above it."""

_FIRST = frozenset(start[0] for start in STARTS.values())
_TYPES_MAX = 100_000
_COLUMNS: dict[str, type[pl.DataType]] = {
    "part": pl.Int32, "offset": pl.Int64, "index": pl.Int32, "appended": pl.Int64,
    "time": pl.Int64, "kind": pl.Int16, "id": pl.String,
}  # fmt: skip
"""The columns of events and heartbeats: ``index`` is that in the record, below 0 for a heartbeat;
``kind`` is the number of the set of layers that select the type, null for a heartbeat."""


class Kinds(dict[str, int]):
    """The number, by type, of the set of layers that select it; 0 is the empty set."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self._patterns = [pattern_of(layer) for layer in layers]
        self.sets: list[frozenset[int]] = [frozenset()]

    def __missing__(self, kind: str) -> int:
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
        faulty: called with partition, offset, index and faults of values that are not events.

    Attributes:
        size: how many bytes of documents are not in the table yet.
        nulled: how many wrong values became null so far, by partition and field.
    """

    def __init__(
        self,
        database: Database,
        source: Source,
        layers: tuple[Layer, ...],
        needed: Mapping[str, str],
        reader: RecordReader,
        *,
        arrow: ArrowRows,
        faulty: Callable[[int, int, int, Faults], None],
    ) -> None:
        self._database = database
        self._source = source
        self._reader = reader
        self._arrow = arrow
        self._faulty = faulty
        self.kinds = Kinds(layers)
        self.nulled: Counter[tuple[int, str]] = Counter()
        self._floats = {name for name, kind in needed.items() if kind == "float"}
        self.columns = {name: f"f{number}" for number, name in enumerate(needed)}
        types = {self.columns[name]: COLUMN_TYPES[kind][0] for name, kind in needed.items()}
        self._schema = _COLUMNS | types
        self.table = f"taken_{source.name}"
        self._kinds_table = f"kinds_{source.name}"
        self._kinds_known = _TYPES_MAX
        self._decoded, self._doubt = decoded(source, self.columns), doubt(source)
        self._rows: list[tuple[Any, ...]] = []
        self._lines: list[Line] = []
        self._streams: dict[Any, list[tuple[tuple[int, int, int, int], pl.DataFrame]]] = {}
        self._streamed = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._lines) + len(self._rows) + self._streamed

    def load(self) -> bool:
        """Make the view of all rows since the last call; return whether there are any.

        Its columns are ``part``, ``offset``, ``index``, ``appended``, ``time``, ``kind``, ``id``,
        and ``columns``. Heartbeats have no kind, and an index below 0.
        """
        if not len(self):
            return False
        fields = "".join(f", {column}" for column in self.columns.values())
        common = f'part, "offset", index, appended, time, kind, id{fields}'
        tables = [f"SELECT {common} FROM plain"]
        lines, self._lines, self.size = self._lines, [], 0
        if lines:
            self._decode(lines)
            tables.insert(0, f"SELECT {common} FROM decoded JOIN {self._kinds_table} USING (type)"
                " WHERE sound")  # fmt: skip
        streams, self._streams, self._streamed = self._streams, {}, 0
        frames = [self._decode_streams(*zip(*some, strict=True)) for some in streams.values()]
        rows, self._rows = self._rows, []
        frames.append(pl.DataFrame(rows, schema=self._schema, orient="row"))
        self._database.load(
            "CREATE OR REPLACE TEMP TABLE plain AS FROM incoming", pl.concat(frames)
        )
        self._database.run(
            f"CREATE OR REPLACE TEMP VIEW {self.table} AS {' UNION ALL '.join(tables)}"
        )
        return True

    def _decode(self, lines: Sequence[Line]) -> None:
        """Decode lines; those in doubt by plain rules, in the order of the log."""
        database = self._database
        frame = frame_of(lines, self._doubt)
        database.load(f"CREATE OR REPLACE TEMP TABLE decoded AS {self._decoded}", frame)
        doubtful = database.all("SELECT number FROM decoded WHERE NOT sound ORDER BY number")
        for (row,) in doubtful:
            part, offset, index, append_ms, text = lines[row]
            self._event(part, offset, index, append_ms, self._reader.line(text))
        if self._kinds_known >= _TYPES_MAX:  # a stream of ever new types
            database.run(
                f"CREATE OR REPLACE TEMP TABLE {self._kinds_table} (type VARCHAR, kind SMALLINT)"
            )
            self._kinds_known = 0
        new = database.all(
            f"SELECT DISTINCT type FROM decoded ANTI JOIN {self._kinds_table} USING (type)"
            " WHERE sound"
        )
        rows = [(kind, self.kinds[kind]) for (kind,) in new]
        self._kinds_known += database.insert(self._kinds_table, rows)

    def _decode_streams(
        self, spans: Sequence[tuple[int, int, int, int]], frames: Sequence[pl.DataFrame]
    ) -> pl.DataFrame:
        """Decode streams of the same columns; rows in doubt by plain rules.

        ``spans`` are the partition, offset, append time and number of rows of each stream.
        """
        frame = pl.concat(frames)
        schema = {"part": pl.Int32, "offset": pl.Int64, "appended": pl.Int64, "rows": pl.Int64}
        at = pl.DataFrame(spans, schema=schema, orient="row")
        at = at.with_columns(index=pl.int_ranges("rows", dtype=pl.Int32)).explode("index")
        found = pl.concat([at, self._arrow.columns(frame, self.columns)], how="horizontal")
        doubtful = found.filter(~pl.col("sound")).select("part", "offset", "index", "appended")
        events = self._arrow.events(frame.filter(~found["sound"]))
        for (part, offset, index, append_ms), event in zip(
            doubtful.iter_rows(), events, strict=True
        ):
            self._event(part, offset, index, append_ms, event)
        found = found.filter("sound")
        kinds = {name: self.kinds[name] for name in found["type"].unique()}
        kind = pl.col("type").replace_strict(kinds).cast(pl.Int16)
        return found.with_columns(kind=kind).select(*self._schema)

    def values(self, part: int, records: Sequence[Record]) -> list[Record]:
        """Decode records of JSON; return those that it leaves to others."""
        bytes_max = self._source.record_bytes_max
        rest: list[Record] = []
        for record in records:
            value, offset, append_ms = record.value, record.offset, record.time_ms
            is_plain = value and value[0] > _BLANK_MAX and record.size <= bytes_max
            if not value or not is_plain or (record.headers and has_broken_name(record)):
                rest.append(record)
                continue
            form = ""
            if record.headers or value[0] in _FIRST or self._source.format is not None:
                form = form_of(record, self._source)
            is_array = self._source.arrays and form in ("", "json")
            elements = elements_of(value) if is_array else None
            if elements is not None:
                several = elements
                if not elements:
                    rest.append(record)
            elif form == "json" or (not form and b"\n" not in value):
                several = [value]
            else:
                several = [line for line in value.split(b"\n") if line.strip()]
                # Without a form it is lines if the first is a document: then the whole is not one.
                if form != "ndjson" and (form or _document(several[0]) is None):
                    rest.append(record)
                    continue
            self._lines += [(part, offset, at, append_ms, text) for at, text in enumerate(several)]
            self.size += sum(map(len, several))
        return rest

    def arrow(self, part: int, record: Record) -> int | None:
        """Add an Arrow stream; return how many rows it has, None if it cannot be read."""
        assert record.value is not None
        frame = self._arrow.frame(record.value)
        if frame is None:
            return None
        if frame.height:
            span = (part, record.offset, record.time_ms, frame.height)
            self._streams.setdefault(tuple(frame.schema.items()), []).append((span, frame))
            self._streamed += frame.height
        return frame.height

    def content(self, part: int, record: Record, content: Content) -> None:
        """Add the events that the plain rules have read."""
        if content.column == "heartbeat":
            nothing = [None] * (2 + len(self.columns))
            row = (part, record.offset, -1, record.time_ms, content.time_ms, *nothing)
            self._rows.append(row)
        for index, event in enumerate(content.events):
            self._event(part, record.offset, index, record.time_ms, event)

    def _event(self, part: int, offset: int, index: int, append_ms: int, event: Any) -> None:
        """Add an event, or the faults of one."""
        if not isinstance(event, Event):
            self._faulty(part, offset, index, event)
            return
        self.nulled.update((part, field) for field in event.nulled)
        values = [event.fields.get(name) for name in self.columns]
        for number, name in enumerate(self.columns):
            if name in self._floats and (value := values[number]) is not None:
                values[number] = float(value)
        kind = self.kinds[event.type]
        self._rows.append((part, offset, index, append_ms, event.time_ms, kind, event.id, *values))


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
