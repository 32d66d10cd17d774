"""Records recomputed: the events of one record of a source, by docs/formats/records.md.

The decoder is the standard library's, one event at a time. An event with several faults is counted
under one of them, so a fault here is the set of reasons that the ledger may have.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.verify.avro import NOT_FINITE, AvroRows, Millis, SchemaOf
from app.verify.csv_rows import Row, csv_rows, text_value, time_value
from app.verify.json_text import Pairs, load_json
from app.verify.protobuf import ProtobufValues
from tables.model.layer import Source
from tables.model.path import Path

TIME_MS_MIN, TIME_MS_MAX = -62_135_596_800_000, 253_402_300_799_999
# Smaller append times do not count.
APPEND_TIME_MS_MIN = 100_000_000_000
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
STARTS = {"arrow": b"\xff\xff\xff\xff", "avro": b"Obj\x01"}
"""The first bytes of values that are recognised without a header."""

_CONTENT_TYPES = {
    b"application/json": "json",
    b"application/x-ndjson": "ndjson",
    b"application/vnd.apache.arrow.stream": "arrow",
    b"text/csv": "csv",
    b"application/avro": "avro",
    b"application/protobuf": "protobuf",
}
_HEARTBEAT = re.compile(rb"-?[0-9]{1,19}")
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(\.[0-9]+)?([Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
Faults = frozenset[str]
_GOOD: Faults = frozenset()
_JSON, _MISSING, _TYPE, _RANGE = (
    frozenset({reason}) for reason in ("json", "missing", "wrong_type", "out_of_range")
)
_CSV: Faults = frozenset({"csv"})
_ANY = _JSON | _MISSING | _TYPE | _RANGE


@dataclasses.dataclass(slots=True)
class Record:
    """One record of a topic; ``time_ms`` is its append time.

    ``cut`` is the size of a value of which only the beginning was read, 0 of a whole one.
    """

    offset: int
    time_ms: int
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    cut: int = 0

    @property
    def size(self) -> int:
        """The bytes of the value, with those that were not read."""
        return self.cut or len(self.value or b"")


@dataclasses.dataclass(slots=True)
class Event:
    """One event: its time, its type, the declared fields that are not null, and its id as text.

    The id is empty if there is none, or if the source has no ids.
    """

    time_ms: int
    type: str
    fields: dict[str, Any]
    id: str = ""


@dataclasses.dataclass(slots=True)
class Content:
    """The events of a record.

    ``column`` is the ledger's, ``reason`` that of a record that cannot be read, ``time_ms`` that of
    a heartbeat. ``events`` has, in order, events, and faults for malformed events.
    """

    column: str
    reason: str = ""
    time_ms: int = 0
    events: list[Event | Faults] = dataclasses.field(default_factory=list)


ArrowReader = Callable[[bytes], "list[Event | Faults] | None"]


class RecordReader:
    """Reads the records of one source; ``arrow`` reads Arrow streams.

    ``schema_of`` returns the schemas of the registry; without it there is no registry.
    """

    def __init__(
        self, source: Source, arrow: ArrowReader, schema_of: SchemaOf | None = None
    ) -> None:
        self._source = source
        self._arrow = arrow
        self._avro = AvroRows(source, schema_of)
        is_protobuf = source.format is not None and source.format.name == "protobuf"
        self._protobuf = ProtobufValues(source) if is_protobuf else None
        roles = {source.time_at, source.type_at}
        self._fields = [(f, _CHECKS[f.type]) for f in source.fields if f.at not in roles]
        self._declared = {f.name: f.at for f in source.fields if f.at in roles}
        own = {f.at: _CHECKS[f.type] for f in source.fields}
        self._id_check = own.get(source.id_at or (), _id)
        self._is_nested = any(len(path) > 1 for path in source.paths)

    def read(
        self, record: Record, *, broken_arrow: bool = False, many: Callable[[], bool]
    ) -> Content:
        """Return the events of a record.

        ``broken_arrow`` says that it must not be read as Arrow. ``many`` returns whether a letter
        says that it has several events, which decides between a broken document and broken lines.
        """
        if has_broken_name(record):
            return Content("unreadable", "header")
        value, form = record.value, form_of(record, self._source)
        if record.size > self._source.record_bytes_max:
            return Content("oversized", "oversized")
        if not value:
            return self._empty(record)
        if form == "unknown":
            return Content("unreadable", "content_type")
        is_broken = form == "arrow" and broken_arrow
        found = None if is_broken else self._events(value, form, many)
        if found is None:
            return Content("unreadable", form)
        return Content("with_events", events=found) if found else Content("empty", "empty")

    def _events(
        self, value: bytes, form: str, many: Callable[[], bool]
    ) -> list[Event | Faults] | None:
        """Return the events of a value, or their faults; None if it cannot be read."""
        if form == "arrow":
            return self._arrow(value)
        if form == "protobuf" and self._protobuf is not None:
            at = self._protobuf(value)
            return None if at is None else [self._of_paths(at)]
        has_schema = self._source.format is not None and self._source.format.schema
        if not value.strip() and not (form == "avro" and has_schema):
            return []
        if form == "avro":
            found = self._avro(value)
            return None if found is None else [self.event(values) for values in found]
        if form == "csv":
            rows = csv_rows(value, self._source)
            return (
                None if rows is None else [_CSV if row is None else self._row(row) for row in rows]
            )
        return [self.line(line) for line in _lines(value, form, many)]

    def _empty(self, record: Record) -> Content:
        text = next((data for name, data in record.headers if name == "treasure-map-time"), None)
        if text is None:
            column = "tombstone" if record.value is None else "empty"
            return Content(column, column)
        time_ms = int(text) if _HEARTBEAT.fullmatch(text) else TIME_MS_MAX + 1
        limit_ms = TIME_MS_MAX
        if record.time_ms >= APPEND_TIME_MS_MIN:
            limit_ms = min(TIME_MS_MAX, record.time_ms + self._source.future_skew_ms)
        if not TIME_MS_MIN <= time_ms <= limit_ms:
            return Content("unreadable", "heartbeat")
        return Content("heartbeat", time_ms=time_ms)

    def line(self, line: bytes) -> Event | Faults:
        """Return the event of a document, or its faults."""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return _JSON
        pairs = load_json(text)
        if pairs is None:
            # The values before the broken byte may have had a fault of their own.
            return _ANY
        if not isinstance(pairs, Pairs):
            return _JSON | (wrong(pairs) & _RANGE)
        values = dict(pairs)
        if len(values) == len(pairs) or self._is_nested:
            return self.event(values)
        # Of a repeated name the last value counts. Without paths every one has to be of its type.
        faults: Faults = frozenset()
        for name, value in pairs:
            if (name,) == self._source.time_at and type(value) is str:
                continue
            found = self.event(values | {name: value})
            faults |= found if isinstance(found, frozenset) else frozenset()
        return faults or self.event(values)

    def _of_paths(self, values: Mapping[Path, Any]) -> Event | Faults:
        """Return the event of the values at paths, or their faults."""
        found: dict[str, Any] = {}
        for path, value in values.items():
            inner: Any = found
            for step in path[:-1]:
                inner = inner.setdefault(step, Steps())
            inner[path[-1]] = value
        return self.event(found)

    def _row(self, row: Row) -> Event | Faults:
        """Return the event of a row of CSV, or its faults."""
        source = self._source
        kinds = {field.at: field.type for field in source.fields if field.at != source.time_at}
        values: dict[str, Any] = dict(row)
        faults: Faults = _GOOD
        for path, kind in kinds.items():
            name = str(path[0])
            if len(path) == 1 and name in row:
                values[name], reason = text_value(row[name], kind)
                faults |= frozenset({reason} - {""})
        time = str(source.time_at[0])
        if len(source.time_at) == 1 and time in row:
            values[time] = time_value(row[time])
        found = self.event(values)
        return (found if isinstance(found, frozenset) else _GOOD) | faults or found

    def event(self, values: dict[str, Any]) -> Event | Faults:
        """Return the event of a JSON object's values, or their faults."""
        source = self._source
        time, kind = find(values, source.time_at), find(values, source.type_at)
        faults: Faults = _GOOD
        if time is None or kind is None:
            faults = _MISSING
        if kind is not None:
            faults |= _string(kind)[1]
        time_ms, fault = self._time_ms(time)
        faults |= fault
        fields = {}
        for field, check in self._fields:
            value = find(values, field.at)
            if value is not None:
                fields[field.name], fault = check(value)
                faults |= fault
            elif field.required:
                faults |= _MISSING
        identity = find(values, source.id_at) if source.id_at else None
        if identity is not None:
            faults |= self._id_check(identity)[1]
        if faults:
            return faults
        if self._declared:
            own = {source.time_at: time_ms, source.type_at: kind}
            fields |= {name: own[path] for name, path in self._declared.items()}
        return Event(time_ms, str(kind), fields, "" if identity is None else str(identity))

    def _time_ms(self, time: object) -> tuple[int, Faults]:
        if type(time) is int:
            time_ms = time * self._source.time_unit_ms
            return time_ms, _GOOD if TIME_MS_MIN <= time_ms <= TIME_MS_MAX else _RANGE
        if type(time) is str:
            found = text_time_ms(time)
            return (0, _RANGE) if found is None else (found, _GOOD)
        if isinstance(time, Millis):
            return time.time_ms, _GOOD if TIME_MS_MIN <= time.time_ms <= TIME_MS_MAX else _RANGE
        return 0, _GOOD if time is None else wrong(time)


class Steps(dict[str | int, Any]):
    """Values by the next step of their paths, whether it is a name or an index."""


def find(values: dict[str, Any], path: Path) -> Any:
    """Return the value at a path of an event's values; None if there is none, or null."""
    found: Any = values
    for step in path:
        if isinstance(found, Steps):
            found = found.get(step)
        elif isinstance(step, int):
            found = found[step] if type(found) is list and step < len(found) else None
        elif isinstance(found, Pairs):
            found = dict(found).get(step)
        else:
            found = found.get(step) if isinstance(found, dict) else None
    return found


def text_time_ms(text: str) -> int | None:
    """Return the milliseconds of an RFC 3339 text, cut off towards the past; None for no time."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    try:
        days = dt.date(year, month, day).toordinal() - _EPOCH_DAY
        dt.time(hour, minute, min(second, 59))
    except ValueError:
        return None
    if second > 60:  # noqa: PLR2004  # a leap second is the first of the next minute
        return None
    time_ms = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000
    time_ms += int((match[7] or ".")[1:4].ljust(3, "0"))
    if match[9]:
        hours, minutes = int(match[10]), int(match[11])
        if hours > 23 or minutes > 59:  # noqa: PLR2004 - of a clock
            return None
        offset_ms = (hours * 60 + minutes) * 60_000
        time_ms += offset_ms if match[9] == "-" else -offset_ms
    return time_ms if TIME_MS_MIN <= time_ms <= TIME_MS_MAX else None


def wrong(value: object) -> Faults:
    """Return the faults of a value of another type than declared."""
    return _TYPE | _RANGE if type(value) is float and math.isinf(value) else _TYPE


def has_broken_name(record: Record) -> bool:
    """Return whether a header's name is not UTF-8; it has surrogates for such bytes."""
    return any(not name.isascii() and not _is_text(name) for name, _ in record.headers)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def form_of(record: Record, source: Source) -> str:
    """Return the form of a record's value: empty for JSON or lines of JSON."""
    for name, data in record.headers:
        if name.lower() == "content-type":
            form = _CONTENT_TYPES.get(data.split(b";")[0].strip().lower(), "unknown")
            is_declared = source.format is not None and source.format.name == "protobuf"
            return "unknown" if form == "protobuf" and not is_declared else form
    if source.format is not None:
        return source.format.name
    for form, start in STARTS.items():
        if record.value and record.value.startswith(start):
            return form
    return ""


def _lines(value: bytes, form: str, many: Callable[[], bool]) -> Iterable[bytes]:
    """Return the documents of a value: one, or its lines that are not blank."""
    if form == "json" or (not form and b"\n" not in value):
        return [value]
    if not form:
        document = load_json(value.decode(errors="replace"))
        if document is not None and not (many() and _is_broken(value, document)):
            return [value]
    return [line for line in value.split(b"\n") if line.strip()]


def _is_broken(value: bytes, document: Any) -> bool:
    """Return whether a reader that checks texts and numbers at once refuses a document."""
    try:
        value.decode()
        json.dumps(document, allow_nan=False)
    except ValueError:
        return True
    return False


Checked = tuple[Any, Faults]


def _string(value: object) -> Checked:
    return value, _GOOD if type(value) is str else wrong(value)


def _int(value: object) -> Checked:
    if type(value) is not int:
        return value, wrong(value)
    return value, _GOOD if INT64_MIN <= value <= INT64_MAX else _RANGE


def _bool(value: object) -> Checked:
    return value, _GOOD if type(value) is bool else wrong(value)


def _float(value: object) -> Checked:
    if type(value) is int:
        try:
            return float(value), _GOOD
        except OverflowError:
            return value, _RANGE
    if value is NOT_FINITE:
        return value, frozenset({"not_finite"})
    if type(value) is not float:
        return value, wrong(value)
    return value, _GOOD if math.isfinite(value) else _RANGE


def _id(value: object) -> Checked:
    return _string(value) if type(value) is not int else _int(value)


_CHECKS: dict[str, Callable[[object], Checked]] = {
    "string": _string, "int": _int, "bool": _bool, "float": _float,
}  # fmt: skip
