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

from app.verify.checks import Faults, check_of
from app.verify.database import COLUMN_TYPES
from app.verify.records import TIME_MS_MAX, TIME_MS_MIN, Event, time_ms_of
from tables.model.layer import Field, Source
from tables.model.path import Path

_DAY_MS = 86_400_000
_MS_PER = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


class ArrowRows:
    """Reads the Arrow streams of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        roles = {source.time_at, source.type_at}
        self._declared = {f.name: f.at for f in source.fields if f.at in roles}
        self._fields = [f for f in source.fields if f.at not in roles]
        self._id_type = next((f.type for f in source.fields if f.at == source.id_at), None)
        self._names = {str(path[0]) for path in source.paths}

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
        """Return rows as events, or the faults of rows that are not events, one value at a time."""
        columns = [
            _times(frame, self._source),
            _column(_at(frame, self._source.type_at), "string"),
            _column(_at(frame, self._source.id_at), self._type_of_ids(frame)),
            *(_field(_at(frame, field.at), field) for field in self._fields),
        ]
        return [self._event(*row) for row in zip(*columns, strict=True)]

    def columns(self, frame: pl.DataFrame, needed: Mapping[str, str]) -> pl.DataFrame:
        """Return rows as columns: ``time``, ``type``, ``id``, the needed fields, and ``sound``.

        ``sound`` says whether a row surely is an event, and this one. ``needed`` gives the columns
        of fields.
        """
        source, kind_of_id = self._source, self._type_of_ids(frame)
        types: dict[Path, str] = {field.at: field.type for field in self._fields}
        types |= {source.type_at: "string"} | ({source.id_at: kind_of_id} if source.id_at else {})
        read = {path: _at(frame, path) for path in types}
        found = {path: _sound(read[path], kind) for path, kind in types.items()}
        found[source.time_at] = _sound_times(frame, source)
        sound = found[source.type_at].is_not_null() & found[source.time_at].is_not_null()
        for path, values in read.items():
            sound &= found[path].is_null() == values.is_null()
        for field in self._fields:
            if field.required:
                sound &= found[field.at].is_not_null()
        identity = pl.repeat(None, frame.height, dtype=pl.String, eager=True)
        if source.id_at is not None:
            identity = found[source.id_at].cast(pl.String)
            if kind_of_id in ("bool", "float"):  # their texts are those of Python
                sound &= identity.is_null()
        columns = {"time": found[source.time_at], "type": found[source.type_at], "id": identity}
        columns |= {column: found[source.field(name).at] for name, column in needed.items()}
        return pl.DataFrame(columns | {"sound": sound})

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
        is_whole = _at(frame, self._source.id_at).dtype.is_integer()
        return self._id_type or ("int" if is_whole else "string")

    def _event(self, time: Any, kind: Any, identity: Any, *values: Any) -> Event | Faults:
        """Return the event of a row; a value that is a fault is a set of reasons."""
        found = [time, kind, identity, *values]
        faults: Faults = frozenset().union(*(one for one in found if isinstance(one, frozenset)))
        named = zip(self._fields, values, strict=True)
        fields = {field.name: value for field, value in named if value is not None}
        nulled = tuple(name for name, value in fields.items() if value is _NULLED)
        for name in nulled:
            del fields[name]
        required = (field.name for field in self._fields if field.required)
        if time is None or kind is None or any(name not in fields for name in required):
            faults |= {"missing"}
        if faults:
            return faults
        own = {self._source.time_at: time, self._source.type_at: kind}
        fields |= {name: own[path] for name, path in self._declared.items()}
        return Event(time, kind, fields, "" if identity is None else str(identity), nulled)


_WRONG: Faults = frozenset({"wrong_type"})
_RANGE: Faults = frozenset({"out_of_range"})
_INFINITE: Faults = frozenset({"not_finite"})
_NULLED = object()
"""Stands for a wrong value that is null."""


def _at(frame: pl.DataFrame, path: Path | None) -> pl.Series:
    """Return the values at a path; a column of nulls if it misses."""
    column = frame.to_struct()
    for step in ("",) if path is None else path:
        inner = column.dtype
        if isinstance(step, str) and step in getattr(inner, "to_schema", dict)():
            column = column.struct.field(step)
        elif isinstance(step, int) and isinstance(inner, pl.List | pl.Array):
            column = column.cast(pl.List(inner.inner)).list.get(step, null_on_oob=True)
        else:
            return pl.Series([None] * frame.height, dtype=pl.Null)
    return column


def _sound(column: pl.Series, kind: str) -> pl.Series:
    """Return the values of a column that surely are of its type, null for all others."""
    dtype = COLUMN_TYPES[kind][0]
    if not _takes(column.dtype, kind):
        return pl.repeat(None, len(column), dtype=dtype, eager=True)
    values = column.cast(dtype, strict=False)
    return values.set(~values.is_finite(), None) if kind == "float" else values


def _sound_times(frame: pl.DataFrame, source: Source) -> pl.Series:
    """Return the times in milliseconds, null for texts and for other values."""
    column = _at(frame, source.time_at)
    dtype = column.dtype
    if not _is_time(dtype):
        return pl.repeat(None, frame.height, dtype=pl.Int64, eager=True)
    numbers = column.cast(pl.Int64, strict=False)
    if isinstance(dtype, pl.Datetime):
        numbers //= _MS_PER[dtype.time_unit]
    unit_ms = source.time_unit_ms if dtype.is_integer() else _DAY_MS if dtype == pl.Date else 1
    good = numbers.is_between(-(-TIME_MS_MIN // unit_ms), TIME_MS_MAX // unit_ms)
    return numbers.set(~good, None) * unit_ms


def _column(column: pl.Series, kind: str) -> list[Any]:
    """Return the values of a column, and faults for those that are not of its type."""
    fault = _INFINITE if kind == "float" else _RANGE
    return _or_fault(_sound(column, kind), column, fault if _takes(column.dtype, kind) else _WRONG)


def _field(column: pl.Series, field: Field) -> list[Any]:
    """Return the values of a field, with its conversions, and faults for wrong ones."""
    dtype = column.dtype
    is_whole = dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128)
    if (
        (field.text and _is_text(dtype))
        or (field.whole and dtype.is_float())
        or (field.digits and is_whole)
    ):
        check = check_of(field)
        checked = [(None, None) if value is None else check(value) for value in column]
        found = [fault or value for value, fault in checked]
    else:
        found = _column(column, field.type)
    if field.null_on_error:
        return [_NULLED if isinstance(one, frozenset) else one for one in found]
    return found


def _times(frame: pl.DataFrame, source: Source) -> list[Any]:
    """Return the times in milliseconds, cut off towards the past, and faults for other values."""
    column = _at(frame, source.time_at)
    if _is_text(column.dtype) or (column.dtype.is_float() and source.time_fraction):
        checked = [(None, None) if one is None else time_ms_of(source, one) for one in column]
        return [fault or time_ms for time_ms, fault in checked]
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
