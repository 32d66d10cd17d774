"""Arrow streams recomputed: rows to events, one value at a time; broken streams are read elsewhere.

A stream that lies about itself can end the process that reads it. So only streams are read here
that no dead letter calls broken; those that one does are tried in a process of their own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import polars as pl

from app.verify.database import COLUMN_TYPES
from app.verify.records import (
    TIME_MS_MAX,
    TIME_MS_MIN,
    Event,
    Faults,
    text_time_ms,
)
from tables.model.layer import Source

_DAY_MS = 86_400_000
_MS_PER = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


class ArrowRows:
    """Reads the Arrow streams of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        roles = {source.time_field, source.type_field}
        self._declared = {f.name for f in source.fields} & roles
        self._fields = [f for f in source.fields if f.name not in roles]
        self._id_type = next((f.type for f in source.fields if f.name == source.id_field), None)
        self._names = roles | {f.name for f in source.fields}
        if source.id_field is not None:
            self._names.add(source.id_field)

    def __call__(self, value: bytes) -> list[Event | Faults] | None:
        """Return a stream's rows as events or faults; None if it cannot be read."""
        frame = self.frame(value)
        return None if frame is None else self.events(frame)

    def frame(self, value: bytes) -> pl.DataFrame | None:
        """Return a stream's columns, those of the map if it has some; None if it cannot be read."""
        frame = self._read(value)
        if frame is None:
            return None
        columns = [
            one.cast(pl.String) if _is_text(one.dtype) else one
            for one in frame
            if one.name in self._names
        ]
        return pl.DataFrame(columns) if columns else frame

    def events(self, frame: pl.DataFrame) -> list[Event | Faults]:
        """Return rows as events, or why there is none, one value at a time."""
        columns = [
            _times(frame, self._source),
            _column(frame, self._source.type_field, "string"),
            _column(frame, self._source.id_field, self._type_of_ids(frame)),
            *(_column(frame, field.name, field.type) for field in self._fields),
        ]
        return [self._event(*row) for row in zip(*columns, strict=True)]

    def columns(self, frame: pl.DataFrame, needed: Mapping[str, str]) -> pl.DataFrame:
        """Return rows as columns: ``time``, ``type``, ``id``, the needed fields, and ``sound``.

        ``sound`` tells whether a row surely is an event, and this one. ``needed`` gives the columns
        of fields.
        """
        source, kind_of_id = self._source, self._type_of_ids(frame)
        time, kind = _sound_times(frame, source), _sound(frame, source.type_field, "string")
        identity = _sound(frame, source.id_field, kind_of_id)
        fields = {field.name: _sound(frame, field.name, field.type) for field in self._fields}
        sound = kind.is_not_null() & time.is_not_null()
        for name, values in (*fields.items(), (source.id_field, identity)):
            if name in frame.columns:
                sound &= values.is_null() == frame[name].is_null()
        if kind_of_id in ("bool", "float"):  # their texts are those of Python
            sound &= identity.is_null()
        fields |= {source.time_field: time, source.type_field: kind}
        found = {"time": time, "type": kind, "id": identity.cast(pl.String)}
        found |= {column: fields[name] for name, column in needed.items()}
        return pl.DataFrame(found | {"sound": sound})

    def _read(self, value: bytes) -> pl.DataFrame | None:
        """Return the columns of a stream; those that the map does not declare may be broken."""
        with contextlib.suppress(*_BROKEN):
            return pl.read_ipc_stream(io.BytesIO(value))
        columns = []
        for name in self._names:
            try:
                columns.append(pl.read_ipc_stream(io.BytesIO(value), columns=[name]))
            except pl.exceptions.ColumnNotFoundError:
                continue
            except _BROKEN:
                return None
        return pl.concat(columns, how="horizontal") if columns else None

    def _type_of_ids(self, frame: pl.DataFrame) -> str:
        dtype = frame.schema.get(self._source.id_field or "")
        return self._id_type or ("int" if dtype is not None and dtype.is_integer() else "string")

    def _event(self, time: Any, kind: Any, identity: Any, *values: Any) -> Event | Faults:
        """Return the event of a row; a value that is a fault is a set of reasons."""
        found = [time, kind, identity, *values]
        faults: Faults = frozenset().union(*(one for one in found if isinstance(one, frozenset)))
        if time is None or kind is None:
            faults |= {"missing"}
        if faults:
            return faults
        named = zip(self._fields, values, strict=True)
        fields = {field.name: value for field, value in named if value is not None}
        own = {self._source.time_field: time, self._source.type_field: kind}
        fields |= {name: own[name] for name in self._declared}
        return Event(time, kind, fields, "" if identity is None else str(identity))


_WRONG: Faults = frozenset({"wrong_type"})
_RANGE: Faults = frozenset({"out_of_range"})
_INFINITE: Faults = frozenset({"not_finite"})


def _sound(frame: pl.DataFrame, name: str | None, kind: str) -> pl.Series:
    """Return the values of a column that surely are of its type, null for all others."""
    dtype = COLUMN_TYPES[kind][0]
    if name not in frame.columns or not _takes(frame[name].dtype, kind):
        return pl.repeat(None, frame.height, dtype=dtype, eager=True)
    values = frame[name].cast(dtype, strict=False)
    return values.set(~values.is_finite(), None) if kind == "float" else values


def _sound_times(frame: pl.DataFrame, source: Source) -> pl.Series:
    """Return the times in milliseconds, null for texts and for other values."""
    dtype = frame.schema.get(source.time_field, pl.Null())
    if not _is_time(dtype):
        return pl.repeat(None, frame.height, dtype=pl.Int64, eager=True)
    numbers = frame[source.time_field].cast(pl.Int64, strict=False)
    if isinstance(dtype, pl.Datetime):
        numbers //= _MS_PER[dtype.time_unit]
    unit_ms = source.time_unit_ms if dtype.is_integer() else _DAY_MS if dtype == pl.Date else 1
    good = numbers.is_between(-(-TIME_MS_MIN // unit_ms), TIME_MS_MAX // unit_ms)
    return numbers.set(~good, None) * unit_ms


def _column(frame: pl.DataFrame, name: str | None, kind: str) -> list[Any]:
    """Return the values of a column, and faults for those that are not of its type."""
    if name not in frame.columns:
        return [None] * frame.height
    fault = _INFINITE if kind == "float" else _RANGE
    takes = _takes(frame[name].dtype, kind)
    return _or_fault(_sound(frame, name, kind), frame[name], fault if takes else _WRONG)


def _times(frame: pl.DataFrame, source: Source) -> list[Any]:
    """Return the times in milliseconds, cut off towards the past, and faults for other values."""
    if source.time_field not in frame.columns:
        return [None] * frame.height
    column = frame[source.time_field]
    if column.dtype == pl.String:
        times = [None if text is None else text_time_ms(text) for text in column]
        return _or_fault(pl.Series(times, dtype=pl.Int64), column, _RANGE)
    fault = _RANGE if _is_time(column.dtype) else _WRONG
    return _or_fault(_sound_times(frame, source), column, fault)


def _or_fault(values: pl.Series, column: pl.Series, fault: Faults) -> list[Any]:
    """Return values, and the fault for one that only ``column`` has."""
    lost = values.is_null() & column.is_not_null()
    return [fault if gone else value for value, gone in zip(values, lost, strict=True)]


def _is_time(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype == pl.Date or isinstance(dtype, pl.Datetime)


def _takes(dtype: pl.DataType, kind: str) -> bool:
    if kind == "string":
        takes = _is_text(dtype)
    elif kind == "int":
        takes = dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128)
    elif kind == "bool":
        takes = dtype == pl.Boolean
    else:
        takes = dtype.is_float() or dtype.is_integer()
    return takes or dtype == pl.Null


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
