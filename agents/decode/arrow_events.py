"""Decode Arrow: an IPC stream of events into an event frame, and why rows of it are no events."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import cast

import polars as pl

from agents.decode.event_batch import ID_COLUMN
from agents.decode.json_events import COLUMNS, parse_times
from tables.model.layer import Source
from tables.model.window import TIME_MS_MAX, TIME_MS_MIN
from tables.record.arrow_stream import CONTINUATION, ArrowError, check_stream

ARROW_START = CONTINUATION
BROKEN_ARROW = (ArrowError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What reading a broken stream raises."""

_MS_PER = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_DAY_MS = 86_400_000
_FAULT = "fault"


class ArrowEvents:
    """Decodes the Arrow streams of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._fields = [f for f in source.fields if f.name != source.time_field]
        self._takes_time = any(f.name == source.time_field for f in source.fields)
        wanted = [source.time_field, source.type_field, *(f.name for f in self._fields)]
        wanted += [source.id_field] if source.id_field is not None else []
        self._wanted = list(dict.fromkeys(wanted))

    def read(self, value: bytes) -> pl.DataFrame:
        """Return the columns of a stream that are of use, as they are.

        Raises:
            ArrowError: the stream is broken, lies, or inflates too far; so do all BROKEN_ARROW.
        """
        columns, rows = check_stream(value, self._source.inflated_bytes_max)
        present = [name for name in self._wanted if name in columns]
        if not present:
            return pl.DataFrame({"none": pl.repeat(None, rows, eager=True)})
        return pl.read_ipc_stream(io.BytesIO(value), columns=present)

    def events(self, found: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | None]:
        """Return time, type and declared fields of what was read, and why rows are no events.

        The second is a series of reasons, null for events; None where all rows are events.
        """
        source = self._source
        faults = _Faults(found.height)
        time = self._time(found, faults)
        frame = {"time": time, "type": self._field(found, source.type_field, "string", faults)}
        if time.null_count() or frame["type"].null_count():
            faults.add("missing", time.is_null() | frame["type"].is_null())
        for field in self._fields:
            frame[field.name] = self._field(found, field.name, field.type, faults)
        if self._takes_time:
            frame[source.time_field] = time
        if source.id_field is not None:
            frame[ID_COLUMN] = self._id(found, source.id_field, faults)
        return pl.DataFrame(frame), faults.reasons

    def select(self, value: bytes, rows: tuple[int, ...]) -> bytes:
        """Return an IPC stream of some rows of a stream that was read.

        All columns are kept where the reader can read them, else those that the map declares.
        """
        try:
            frame = pl.read_ipc_stream(io.BytesIO(value))
        except BROKEN_ARROW:
            frame, _ = self.events(self.read(value))
        file = io.BytesIO()
        frame[list(rows)].write_ipc_stream(file, compression="zstd")
        return file.getvalue()

    def _time(self, found: pl.DataFrame, faults: _Faults) -> pl.Series:
        """Return the times in milliseconds, cut off towards the past."""
        column = _column(found, self._source.time_field)
        kind = column.dtype
        if kind.is_integer():
            unit = self._source.time_unit_ms
            low, high = -(-TIME_MS_MIN // unit), TIME_MS_MAX // unit
            times = column.cast(pl.Int64, strict=False)
            if not _lies_between(times, low, high):
                usable = times.is_between(low, high)
                times = times.set(~usable.fill_null(value=False), None)
            times = times if unit == 1 else times * unit
        elif isinstance(kind, pl.Datetime):
            times = column.cast(pl.Int64) // _MS_PER[kind.time_unit]
        elif kind == pl.Date:
            times = column.cast(pl.Int64) * _DAY_MS
        elif _is_text(kind):
            times = parse_times(column.cast(pl.String))
        else:
            faults.add("wrong_type", column.is_not_null())
            return pl.repeat(None, found.height, dtype=pl.Int64, eager=True)
        if not _lies_between(times, TIME_MS_MIN, TIME_MS_MAX):
            usable = times.is_between(TIME_MS_MIN, TIME_MS_MAX).fill_null(value=False)
            faults.add("out_of_range", column.is_not_null() & ~usable)
        return times.alias("")

    def _id(self, found: pl.DataFrame, name: str, faults: _Faults) -> pl.Series:
        """Return ids as texts; a whole number becomes the text of its digits."""
        declared = next((field.type for field in self._fields if field.name == name), None)
        kind = "int" if _column(found, name).dtype.is_integer() else "string"
        return self._field(found, name, declared or kind, faults).cast(pl.String)

    def _field(self, found: pl.DataFrame, name: str, kind: str, faults: _Faults) -> pl.Series:
        column = _column(found, name)
        if not _TAKES[kind](column.dtype):
            if column.null_count() < column.len():
                faults.add("wrong_type", column.is_not_null())
            return pl.repeat(None, found.height, dtype=COLUMNS[kind], eager=True)
        values = column.cast(COLUMNS[kind], strict=False)
        if kind == "int" and values.null_count() != column.null_count():
            faults.add("out_of_range", column.is_not_null() & values.is_null())
        # A sum that is finite has no term that is not; one that is not may still be of good terms.
        if kind == "float" and not math.isfinite(values.sum()):
            faults.add("not_finite", ~values.is_finite().fill_null(value=True))
        return values


class _Faults:
    """Why rows are no events; of several faults of a row the first that is added is told."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.reasons: pl.Series | None = None

    def add(self, reason: str, mask: pl.Series) -> None:
        if not mask.any():
            return
        reasons = self.reasons
        if reasons is None:
            reasons = pl.repeat(None, self._rows, dtype=pl.String, eager=True)
        self.reasons = reasons.set(mask & reasons.is_null(), reason)


def _lies_between(times: pl.Series, low: int, high: int) -> bool:
    """Tell whether no time is null or outside, which costs a tenth of telling which ones are."""
    first, last = times.min(), times.max()
    if first is None or times.null_count():
        return False
    return low <= cast("int", first) and cast("int", last) <= high


def _column(found: pl.DataFrame, name: str) -> pl.Series:
    if name in found.columns:
        return found[name]
    return pl.repeat(None, found.height, dtype=pl.Null, eager=True)


def _is_text(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.String | pl.Categorical | pl.Enum)


def _or_null(takes: Callable[[pl.DataType], bool]) -> Callable[[pl.DataType], bool]:
    return lambda kind: kind == pl.Null or takes(kind)


_WIDE = (pl.Int128, pl.UInt128)
_TAKES: dict[str, Callable[[pl.DataType], bool]] = {
    "string": _or_null(_is_text),
    "int": _or_null(lambda kind: kind.is_integer() and not isinstance(kind, _WIDE)),
    "bool": _or_null(lambda kind: isinstance(kind, pl.Boolean)),
    "float": _or_null(lambda kind: kind.is_float() or kind.is_integer()),
}
