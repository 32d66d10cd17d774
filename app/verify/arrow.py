"""Arrow streams recomputed: rows to events, one value at a time; broken streams are read elsewhere.

A stream that lies about itself can end the process that reads it. So only streams are read here
that no dead letter calls broken; those that one does are tried in a process of their own.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import polars as pl

from app.verify.records import (
    INT64_MAX,
    INT64_MIN,
    TIME_MS_MAX,
    TIME_MS_MIN,
    Columns,
    Event,
    Faults,
    text_time_ms,
)
from tables.model.layer import Source
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
        self._names = {str(path[0]) for path in source.paths}

    def __call__(self, value: bytes) -> list[Event | Faults] | None:
        """Return a stream's rows as events or faults; None if it cannot be read."""
        columns = self.columns(value)
        if columns is None:
            return None
        return [self.event(columns, row) for row in range(len(columns.times))]

    def columns(self, value: bytes) -> Columns | None:
        """Return a stream's columns, with faults for values; None if it cannot be read."""
        frame = self._frame(value)
        if frame is None:
            return None
        source = self._source
        return Columns(
            _times(frame, source),
            _column(frame, source.type_at, "string"),
            self._ids(frame),
            {field.name: _column(frame, field.at, field.type) for field in self._fields},
        )

    def event(self, columns: Columns, row: int) -> Event | Faults:
        """Return the event of a row, or why there is none."""
        return self._event(
            columns.times[row], columns.types[row], columns.ids[row],
            [(name, column[row]) for name, column in columns.fields.items()],
        )  # fmt: skip

    def _frame(self, value: bytes) -> pl.DataFrame | None:
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

    def _ids(self, frame: pl.DataFrame) -> list[Any]:
        path = self._source.id_at
        if path is None:
            return [None] * frame.height
        declared = next((f.type for f in self._source.fields if f.at == path), None)
        is_whole = _at(frame, path).dtype.is_integer()
        return _column(frame, path, declared or ("int" if is_whole else "string"))

    def _event(
        self, time: Any, kind: Any, identity: Any, values: list[tuple[str, Any]]
    ) -> Event | Faults:
        """Return the event of a row; a value that is a fault is a set of reasons."""
        found = [time, kind, identity, *(value for _, value in values)]
        faults: Faults = frozenset().union(*(one for one in found if isinstance(one, frozenset)))
        fields = {name: value for name, value in values if value is not None}
        required = (field.name for field in self._fields if field.required)
        if time is None or kind is None or any(name not in fields for name in required):
            faults |= {"missing"}
        if faults:
            return faults
        own = {self._source.time_at: time, self._source.type_at: kind}
        fields |= {name: own[path] for name, path in self._declared.items()}
        return Event(time, kind, fields, "" if identity is None else str(identity))


_WRONG: Faults = frozenset({"wrong_type"})
_RANGE: Faults = frozenset({"out_of_range"})
_INFINITE: Faults = frozenset({"not_finite"})


def _at(frame: pl.DataFrame, path: Path) -> pl.Series:
    """Return the values at a path; a column of nulls if it misses."""
    column = frame.to_struct()
    for step in path:
        inner = column.dtype
        if isinstance(step, str) and step in getattr(inner, "to_schema", dict)():
            column = column.struct.field(step)
        elif isinstance(step, int) and isinstance(inner, pl.List | pl.Array):
            column = column.cast(pl.List(inner.inner)).list.get(step, null_on_oob=True)
        else:
            return pl.Series([None] * frame.height, dtype=pl.Null)
    return column


def _column(frame: pl.DataFrame, path: Path, kind: str) -> list[Any]:
    column = _at(frame, path)
    if not _takes(column.dtype, kind):
        return [None if value else _WRONG for value in column.is_null()]
    if kind == "string":
        return column.cast(pl.String).to_list()
    if kind == "float":
        return [_finite(value) for value in column.to_list()]
    if kind == "int":
        return [_in_range(value) for value in column.to_list()]
    return column.to_list()


def _takes(dtype: pl.DataType, kind: str) -> bool:
    whole = dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128)
    takes: dict[str, Callable[[], bool]] = {
        "string": lambda: _is_text(dtype),
        "int": lambda: whole,
        "bool": lambda: dtype == pl.Boolean,
        "float": lambda: dtype.is_float() or dtype.is_integer(),
    }
    return dtype == pl.Null or takes[kind]()


def _times(frame: pl.DataFrame, source: Source) -> list[Any]:
    """Return the times in milliseconds, cut off towards the past."""
    column = _at(frame, source.time_at)
    to_ms = _time_reader(column.dtype, source)
    if to_ms is None:
        return [None if value else _WRONG for value in column.is_null()]
    kind = pl.String if _is_text(column.dtype) else pl.Int64
    if not column.dtype.is_integer():
        column = column.cast(kind)
    return [None if value is None else to_ms(value) for value in column.to_list()]


def _time_reader(dtype: pl.DataType, source: Source) -> Callable[[Any], Any] | None:
    """Return the function from a column's value to a time or a fault; None for other columns."""
    if dtype.is_integer():
        return lambda value: _year(value * source.time_unit_ms)
    if isinstance(dtype, pl.Datetime):
        per_ms = _MS_PER[dtype.time_unit]
        return lambda value: _year(value // per_ms)
    if dtype == pl.Date:
        return lambda value: _year(value * _DAY_MS)
    return _text_time if _is_text(dtype) else None


def _text_time(text: str) -> Any:
    time_ms = text_time_ms(text)
    return _RANGE if time_ms is None else time_ms


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _year(time_ms: int) -> Any:
    return time_ms if TIME_MS_MIN <= time_ms <= TIME_MS_MAX else _RANGE


def _finite(value: float | None) -> Any:
    return None if value is None else (float(value) if math.isfinite(value) else _INFINITE)


def _in_range(value: int | None) -> Any:
    return value if value is None or INT64_MIN <= value <= INT64_MAX else _RANGE
