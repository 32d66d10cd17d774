"""JSON events: texts into event structs, and structs into a frame.

A value is one JSON event, or lines of which each that is not blank is one. Every event is decoded
from its own bytes, because msgspec's ``decode_lines`` is not strict about lines: it can read three
broken lines as three events. A check for such lines costs more than one call per event.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import polars as pl

from agents.decode.conversions import COLUMNS, NULLED, value_converter
from agents.decode.event_batch import DETAIL_CHARS_MAX, ID_COLUMN, INDEX_COLUMN, NULLED_PREFIX
from agents.decode.event_struct import EventStruct, Leaf
from agents.decode.times import TimeReader, parse_times
from tables.model.layer import Source
from tables.model.path import Path
from tables.model.window import TIME_MS_MAX, TIME_MS_MIN

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_TYPES: dict[str, Any] = {"string": str, "int": _Int64, "bool": bool, "float": float}
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])


@dataclasses.dataclass(slots=True, frozen=True)
class EventFault:
    """Why a line is not an event: a reason of docs/formats/records.md, and a sentence."""

    reason: str
    detail: str


class JsonEvents:
    """Decodes the JSON events of one source into structs of only the fields needed.

    Attributes:
        time_of: returns the time of an event, as it is written there.
        type_of: returns the type of an event, None of a heartbeat.
    """

    def __init__(self, source: Source) -> None:
        unit = source.time_unit_ms
        # Times that no calendar can compute are malformed like any wrong type.
        bounds = msgspec.Meta(ge=-(-TIME_MS_MIN // unit), le=TIME_MS_MAX // unit)
        time: Any = Annotated[int, bounds] | str
        self._offset, self._is_seconds = source.time_offset, unit > 1
        self._unit = unit
        if source.time_text or source.time_fraction:
            time, self._unit = _converting(TimeReader(source).value), 1
        leaves = {
            source.time_at: Leaf("time_", time, required=True),
            source.type_at: Leaf("type_", str, required=True),
        }
        for field in source.fields:
            kind = _converting(value_converter(field)) if field.converts else _TYPES[field.type]
            kind = kind if field.required else kind | None
            leaves.setdefault(field.at, Leaf(f"field_{field.name}", kind, field.required))
        if source.id_at is not None:
            leaves.setdefault(source.id_at, Leaf("id_", _Int64 | str | None))
        kinds: dict[Path, str] = {
            f.at: "number" if f.converts and f.type == "float" else f.type for f in source.fields
        }
        kinds |= {source.time_at: "time", source.type_at: "string"}
        self._kinds = {leaf.attribute: kinds.get(path, "id") for path, leaf in leaves.items()}
        self._nullable = {field.name for field in source.nullable}
        self._struct = EventStruct(leaves, _convert, takes_all=bool(self._nullable))
        self._decode = self._struct.decode
        self._id = None if source.id_at is None else leaves[source.id_at].attribute
        self._time_path = f"`$.{'.'.join(map(str, source.time_at))}`"
        self._columns = {f.name: (leaves[f.at].attribute, COLUMNS[f.type]) for f in source.fields}
        self.time_of, self.type_of = map(self._struct.getter, ("time_", "type_"))

    def heartbeat(self, time_ms: int) -> Any:
        """Return the struct that stands for a heartbeat in :meth:`frame`."""
        return self._struct.event({"time_": time_ms})

    def decode_all(self, values: Sequence[bytes]) -> list[Any]:
        """Return the event of each value; raises one of ``UNREADABLE`` if one is not an event.

        All values are UTF-8.
        """
        return list(map(self._decode, values))

    def getter(self, field: str) -> Callable[[Any], Any]:
        """Return the getter of a declared field of an event; a time is in the source's unit."""
        attribute, _ = self._columns[field]
        return self._struct.getter(attribute)

    def decode_many(self, values: Sequence[bytes], events: list[Any]) -> Iterator[int]:
        """Add the event of each value to ``events``; yield the indexes of the other values.

        The other values are not one event each; nothing is added for them. When an index is
        yielded, the events of all values before it have been added.
        """
        decode = self._decode if are_utf8(values) else self._decode_utf8
        first = len(events)
        rest = iter(values)
        at = 0
        while True:
            try:
                # The events before an error stay in the list.
                events.extend(map(decode, rest))
            except UNREADABLE:
                at += len(events) - first
                yield at
                at, first = at + 1, len(events)
            else:
                return

    def decode_lines(self, value: bytes, events: list[Any]) -> int:
        """Add the event of each line to ``events``; return the number of lines.

        The value is UTF-8. If a line is not an event, nothing is added, and 0 is returned.
        """
        before = len(events)
        lines = value.rstrip(b" \t\r\n").split(b"\n")
        try:
            events.extend(map(self._decode, lines))
        except UNREADABLE:
            del events[before:]
            return 0
        return len(lines)

    def decode_array(self, value: bytes, events: list[Any]) -> int:
        """Add the event of each element to ``events``, as :meth:`decode_lines` does of lines."""
        before = len(events)
        try:
            events.extend(map(self._decode, elements_of(value) or ()))
        except UNREADABLE:
            del events[before:]
        return len(events) - before

    def decode_one(self, line: bytes) -> Any:
        """Return the event of a line, or the :class:`EventFault` for which it is not one."""
        try:
            return self._decode_utf8(line)
        except msgspec.ValidationError as error:
            return self._decode_unusual(line, error)
        except UNREADABLE as error:
            return EventFault("json", str(error)[:DETAIL_CHARS_MAX])

    def take(self, values: Mapping[str, Any], plain: Callable[[str, Any], Any]) -> Any:
        """Return the event of an event's values, or the :class:`EventFault` that they have.

        Args:
            values: the values, as those of JSON, in dicts and lists.
            plain: returns a value as one of JSON, given the declared type: ``time`` of the time,
                ``id`` of an id that is not declared, ``number`` of a float with options, else as
                fields have it.
        """
        try:
            return self._struct.take(values, lambda at, found: plain(self._kinds[at], found))
        except msgspec.ValidationError as error:
            return self._fault(str(error))

    def instant(self, time_ms: int) -> int | str:
        """Return milliseconds as the time of an event, which may be in seconds."""
        if not self._is_seconds or not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
            return TIME_MS_MAX if self._is_seconds else time_ms
        at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=time_ms)
        return at.isoformat()

    def is_document(self, value: bytes) -> bool:
        """Return whether a value is one JSON document, an event or not, rather than lines."""
        if b"\n" not in value:
            return True
        for decode in (self._decode, msgspec.json.decode):
            try:
                decode(value)
            except UNREADABLE:
                continue
            return True
        return False

    def frame(self, events: Sequence[Any], indexes: pl.Series) -> pl.DataFrame:
        """Return the event frame of structs, without ``partition``.

        Texts that are not times become null times.
        """
        columns = {
            INDEX_COLUMN: indexes,
            "time": self._times(events),
            "type": pl.Series(self._struct.column("type_", events), dtype=pl.String),
        }
        for name, (attribute, kind) in self._columns.items():
            if attribute == "time_":
                columns[name] = columns["time"]
                continue
            values = self._struct.column(attribute, events)
            if name in self._nullable:
                nulled = [value is NULLED for value in values]
                columns[NULLED_PREFIX + name] = pl.Series(nulled, dtype=pl.Boolean)
                values = [None if value is NULLED else value for value in values]
            columns[name] = pl.Series(values, dtype=kind)
        if self._id is not None:
            columns[ID_COLUMN] = _texts(self._struct.column(self._id, events))
        return pl.DataFrame(columns)

    def _decode_utf8(self, value: bytes) -> Any:
        _check_utf8(value)
        return self._decode(value)

    def _decode_unusual(self, line: bytes, error: msgspec.ValidationError) -> Any:
        """Return the event of a line whose path misses, or its fault."""
        try:
            return self._struct.decode_once_more(line, error)
        except msgspec.ValidationError as last:
            detail = str(last)
        except UNREADABLE as last:
            return EventFault("json", str(last)[:DETAIL_CHARS_MAX])
        return self._fault(detail)

    def _fault(self, detail: str) -> EventFault:
        """Return the fault that a validation error's words are about."""
        reason = _reason(detail)
        if reason == "out_of_range" and self._is_seconds and detail.endswith(self._time_path):
            detail += "; are these milliseconds instead of seconds?"
        return EventFault(reason, detail[:DETAIL_CHARS_MAX])

    def _times(self, events: Sequence[Any]) -> pl.Series:
        """Return milliseconds; the time of a heartbeat is in milliseconds already."""
        times = self._struct.column("time_", events)
        try:
            numbers = pl.Series(times, dtype=pl.Int64)
        except TypeError:
            numbers = pl.Series([t if type(t) is int else None for t in times], dtype=pl.Int64)
            texts = pl.Series([t if type(t) is str else None for t in times], dtype=pl.String)
            return self._scaled(numbers, events).zip_with(
                texts.is_null(), parse_times(texts, self._offset)
            )
        return self._scaled(numbers, events)

    def _scaled(self, numbers: pl.Series, events: Sequence[Any]) -> pl.Series:
        if self._unit == 1:
            return numbers
        types = self._struct.column("type_", events)
        heartbeat = pl.Series([kind is None for kind in types], dtype=pl.Boolean)
        return numbers.zip_with(heartbeat, numbers * self._unit)


def are_utf8(values: Sequence[bytes]) -> bool:
    """Return whether all values are UTF-8, also in the fields that msgspec skips unread."""
    return all(map(bytes.isascii, values)) or all(map(_is_utf8, values))


def elements_of(value: bytes) -> list[bytes] | None:
    """Return the texts of the elements of a JSON array; None if a value is no array."""
    if not value.lstrip(b" \t\r\n").startswith(b"["):
        return None
    try:
        return list(map(bytes, _ARRAY.decode(value)))
    except UNREADABLE:
        return None


def array_fault(value: bytes) -> str:
    """Return the reason why a value that begins as a JSON array is broken; empty for others."""
    if value.lstrip(b" \t\r\n").startswith(b"["):
        try:
            _ARRAY.decode(value)
        except UNREADABLE as error:
            return f"an array that is broken: {error}"[:DETAIL_CHARS_MAX]
    return ""


def lines_of(value: bytes) -> list[bytes]:
    """Return the lines of a value that are not blank; an event's index counts these."""
    return [line for line in value.split(b"\n") if line.strip()]


class _AnyValue(type):
    """The type of types of which every value is an instance, as msgspec asks."""

    def __instancecheck__(cls, instance: object) -> bool:
        return True


def _converting(convert: Callable[[Any], Any]) -> Any:
    """Return a type for msgspec whose values a function converts."""
    return _AnyValue("Converted", (), {"convert": staticmethod(convert)})


def _convert(kind: Any, value: Any) -> Any:
    return kind.convert(value)


def _texts(values: Sequence[str | int | None]) -> pl.Series:
    """Return texts; a whole number becomes the text of its digits."""
    try:
        return pl.Series(values, dtype=pl.String)
    except TypeError:
        texts = [None if value is None else str(value) for value in values]
        return pl.Series(texts, dtype=pl.String)


def _check_utf8(data: bytes) -> None:
    """Raise UnicodeDecodeError if bytes are not UTF-8: msgspec does not read skipped fields."""
    if not data.isascii():
        data.decode()


def _is_utf8(data: bytes) -> bool:
    try:
        _check_utf8(data)
    except UnicodeDecodeError:
        return False
    return True


def _reason(message: str) -> str:
    """Return the reason that a validation error of msgspec stands for.

    msgspec has no codes; ``tests/unit/agents/decode/test_run_decoder.py`` fails when an upgrade
    changes its words.
    """
    if message.startswith("Expected `object`") and " - at `$" not in message:
        return "json"
    if "missing required field" in message or "got `null`" in message:
        return "missing"
    if "not finite" in message:
        return "not_finite"
    if "out of range" in message or "` <= " in message or "` >= " in message:
        return "out_of_range"
    return "wrong_type"
