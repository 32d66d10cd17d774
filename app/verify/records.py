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

import msgspec

from app.verify.avro import AvroRows, Millis, SchemaOf
from app.verify.checks import (
    GOOD,
    JSON,
    MISSING,
    RANGE,
    TYPE,
    Faults,
    check_id,
    check_of,
    check_text,
    number_of,
    wrong,
)
from app.verify.csv_rows import Row, csv_rows
from app.verify.documents import (
    GZIP_START,
    Pairs,
    elements_of,
    inflated,
    is_text,
    load_json,
)
from app.verify.protobuf import ProtobufValues
from tables.model.layer import Source
from tables.model.path import Path

TIME_MS_MIN, TIME_MS_MAX = -62_135_596_800_000, 253_402_300_799_999
# Smaller append times do not count.
APPEND_TIME_MS_MIN = 100_000_000_000
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
    r"(\.[0-9]+)?([Zz]|([+-])([0-9]{2}):([0-9]{2}))?"
)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_CSV: Faults = frozenset({"csv"})
_ANY = JSON | MISSING | TYPE | RANGE


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

    The id is empty if there is none, or if the source has no ids. ``nulled`` names the fields that
    are null because of a wrong value.
    """

    time_ms: int
    type: str
    fields: dict[str, Any]
    id: str = ""
    nulled: tuple[str, ...] = ()


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
        self._of_texts: RecordReader | None = None
        roles = {source.time_at, source.type_at}
        self._fields = [(f, check_of(f)) for f in source.fields if f.at not in roles]
        self._declared = {f.name: f.at for f in source.fields if f.at in roles}
        own = {f.at: check_of(f) for f in source.fields}
        self._id_check = own.get(source.id_at or (), check_id)
        self._last_counts = bool(source.nullable) or any(len(path) > 1 for path in source.paths)

    def read(
        self, record: Record, *, broken_arrow: bool = False, many: Callable[[], bool]
    ) -> Content:
        """Return the events of a record.

        ``broken_arrow`` says that it must not be read as Arrow. ``many`` returns whether a letter
        says that it has several events, which decides between a broken document and broken lines.
        """
        record = self.unpacked(record)
        value, form = record.value, form_of(record, self._source)
        refused = self._refused(record)
        if refused is not None:
            return refused
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
        return [self.line(line) for line in self._documents(value, form, many)]

    def unpacked(self, record: Record) -> Record:
        """Return a record with the inflated value; itself if it cannot be inflated, or need not.

        A value that inflates too far is ``cut``.
        """
        bytes_max = self._source.record_bytes_max
        if not self._is_packed(record) or record.size > bytes_max or has_broken_name(record):
            return record
        assert record.value is not None
        value = inflated(record.value, bytes_max)
        cut = len(value) if value is not None and len(value) > bytes_max else 0
        if value is None or (value.startswith(GZIP_START) and not cut):
            return record
        return Record(record.offset, record.time_ms, value, record.headers, cut)

    def _is_packed(self, record: Record) -> bool:
        is_gzip = record.value is not None and record.value.startswith(GZIP_START)
        return is_gzip and self._source.compression == "gzip"

    def _refused(self, record: Record) -> Content | None:
        if has_broken_name(record):
            return Content("unreadable", "header")
        if record.size > self._source.record_bytes_max:
            return Content("oversized", "oversized")
        return Content("unreadable", "gzip") if self._is_packed(record) else None

    def _documents(self, value: bytes, form: str, many: Callable[[], bool]) -> Iterable[bytes]:
        elements = elements_of(value) if self._source.arrays and form != "ndjson" else None
        return _lines(value, form, many) if elements is None else elements

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
            return JSON
        pairs = load_json(text)
        if pairs is None:
            # The values before the broken byte may have had a fault of their own.
            return _ANY
        if not isinstance(pairs, Pairs):
            return JSON | (wrong(pairs) & RANGE)
        values = dict(pairs)
        if len(values) == len(pairs) or self._last_counts:
            return self.event(values)
        # Of a repeated name the last value counts. Without paths every one has to be of its type.
        faults: Faults = frozenset()
        for name, value in pairs:
            is_time = (name,) == self._source.time_at
            if is_time and type(value) is str and time_number(self._source, value) is None:
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
        if self._of_texts is None:
            self._of_texts = RecordReader(texts_of(self._source), self._arrow)
        return self._of_texts.event(dict(row))

    def event(self, values: dict[str, Any]) -> Event | Faults:
        """Return the event of a JSON object's values, or their faults."""
        source = self._source
        time, kind = find(values, source.time_at), find(values, source.type_at)
        faults: Faults = GOOD
        if time is None or kind is None:
            faults = MISSING
        if kind is not None:
            faults |= check_text(kind)[1]
        time_ms, fault = time_ms_of(source, time)
        faults |= fault
        fields = {}
        nulled = []
        for field, check in self._fields:
            value = find(values, field.at)
            if value is not None:
                taken, fault = check(value)
                if fault and field.null_on_error:
                    nulled.append(field.name)
                    continue
                fields[field.name] = taken
                faults |= fault
            elif field.required:
                faults |= MISSING
        identity = find(values, source.id_at) if source.id_at else None
        if identity is not None:
            faults |= self._id_check(identity)[1]
        if faults:
            return faults
        if self._declared:
            own = {source.time_at: time_ms, source.type_at: kind}
            fields |= {name: own[path] for name, path in self._declared.items()}
        identity = "" if identity is None else str(identity)
        return Event(time_ms, str(kind), fields, identity, tuple(nulled))


class Steps(dict[str | int, Any]):
    """Values by the next step of their paths, whether it is a name or an index."""


def texts_of(source: Source) -> Source:
    """Return a source of CSV as one of texts: each number and boolean is taken from its text."""
    fields = tuple(
        field if field.type == "string" else msgspec.structs.replace(field, text=True)
        for field in source.fields
    )
    return msgspec.structs.replace(source, fields=fields, time_text=True, format=None)


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


def time_ms_of(source: Source, time: object) -> tuple[int, Faults]:
    """Return the milliseconds of an event's time, and the faults of another value."""
    if type(time) is str:
        number = time_number(source, time)
        if number is None:
            found = text_time_ms(time, source.time_offset)
            return (0, RANGE) if found is None else (found, GOOD)
        time = number
    if type(time) is int:
        time_ms = time * source.time_unit_ms
        return time_ms, GOOD if TIME_MS_MIN <= time_ms <= TIME_MS_MAX else RANGE
    if type(time) is float and source.time_fraction:
        found = float_time_ms(time, source.time_unit_ms)
        return (0, RANGE) if found is None else (found, GOOD)
    if isinstance(time, Millis):
        return time.time_ms, GOOD if TIME_MS_MIN <= time.time_ms <= TIME_MS_MAX else RANGE
    return 0, GOOD if time is None else wrong(time)


def time_number(source: Source, text: str) -> int | float | None:
    """Return the number that a text of the time is, None if it is not declared to be one."""
    return number_of(text, fraction=source.time_fraction) if source.time_text else None


def text_time_ms(text: str, offset: str = "") -> int | None:
    """Return the milliseconds of an RFC 3339 text, cut off towards the past; None for no time.

    ``offset`` is that of texts without one; empty if these are no times.
    """
    match = _RFC3339.fullmatch(text)
    if match is not None and match[8] is None:
        match = _RFC3339.fullmatch(text + offset) if offset else None
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


def float_time_ms(time: float, unit_ms: int) -> int | None:
    """Return the milliseconds of a float: its nearest microsecond, cut off towards the past."""
    micros = time * (unit_ms * 1e3)
    time_ms = round(micros) // 1_000 if math.isfinite(micros) else TIME_MS_MAX + 1
    return time_ms if TIME_MS_MIN <= time_ms <= TIME_MS_MAX else None


def has_broken_name(record: Record) -> bool:
    """Return whether a header's name is not UTF-8; it has surrogates for such bytes."""
    return any(not name.isascii() and not is_text(name) for name, _ in record.headers)


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
