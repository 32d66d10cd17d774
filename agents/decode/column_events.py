"""Column events: the columns of some events into an event frame, and why rows are not events.

The decoder of a format derives from :class:`ColumnDecoder` if its reader returns the typed columns
of a record, from :class:`ColumnEvents` if it returns anything else that becomes columns.
"""

from __future__ import annotations

import abc
from typing import ClassVar, cast

import polars as pl

from agents.decode.conversions import Converted, cast_column, convert_column, is_text
from agents.decode.event_batch import (
    DETAIL_CHARS_MAX,
    ID_COLUMN,
    INDEX_COLUMN,
    NULLED_PREFIX,
    RECORD_SPAN,
)
from agents.decode.record_format import RunResults
from agents.decode.times import TimeReader
from tables.model.layer import Field, Source
from tables.model.path import Path
from tables.model.window import DAY_MS, TIME_MS_MAX, TIME_MS_MIN
from tables.state.cell import in_order

_MS_PER = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_NOT_EVENTS = {
    "missing": "time or type is null or absent",
    "wrong_type": "a declared field is of another type",
    "out_of_range": "a number or a time that its column or its source cannot hold",
    "not_finite": "a float that is not a number, or infinite",
    "csv": "quotes as RFC 4180 does not have them, bytes that are not UTF-8, or another number of"
    " values than there are columns",
}


ALONE_MAX = 100
"""Rows of a record that get a dead letter each, if rows of their reason do; hostile records have
very many, which share one."""


class ColumnEvents:
    """Takes the events of one source from columns that have one row per event.

    Attributes:
        alone: the reasons of rows that would become others beside each other in one dead letter.
        wanted: the names of the columns in which the source reads something.
    """

    alone: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: Source) -> None:
        self._source = source
        self._times = TimeReader(source)
        self.wanted = list(dict.fromkeys(str(path[0]) for path in source.paths))

    def add(
        self,
        run: RunResults,
        indexes: pl.Series,
        found: pl.DataFrame,
        faults: Faults | None = None,
    ) -> None:
        """Add the events of columns to a run, and refuse the rows that are not events.

        Args:
            run: the results of the run.
            indexes: the event index of each row.
            found: the columns of the rows.
            faults: those that are known already.
        """
        frame, reasons = self.events(found, faults)
        frame = frame.with_columns(indexes.alias(INDEX_COLUMN))
        if reasons is not None:
            refused = indexes.to_frame("index").with_columns(reason=reasons).drop_nulls()
            event_index = pl.col("index")
            groups = refused.group_by(event_index // RECORD_SPAN, "reason").agg(at=event_index)
            for index, reason, at in in_order(groups, ["index", "reason"]).iter_rows():
                events = tuple(event % RECORD_SPAN for event in at)
                single = ALONE_MAX if reason in self.alone else 0
                for some in (*((event,) for event in events[:single]), events[single:]):
                    if some:
                        run.refuse_events(index, some, reason, _NOT_EVENTS[reason])
            frame = frame.filter(reasons.is_null())
        run.events.add_frame(frame)

    def events(
        self, found: pl.DataFrame, faults: Faults | None = None
    ) -> tuple[pl.DataFrame, pl.Series | None]:
        """Return time, type and declared fields of columns, and why rows are not events.

        The second is a series of reasons, null for events; None if all rows are events. ``faults``
        are those that are known already.
        """
        source = self._source
        faults = faults or Faults(found.height)
        time = self._time(found, faults)
        frame = {"time": time, "type": self._field(found, source.type_at, "string", faults)}
        if time.null_count() or frame["type"].null_count():
            faults.add("missing", time.is_null() | frame["type"].is_null())
        for field in source.fields:
            if field.at == source.time_at:
                column = time
            elif field.converts:
                column = self._converted(found, field, faults, frame)
            else:
                column = self._field(found, field.at, field.type, faults)
            frame[field.name] = column
            if field.required and column.null_count():
                faults.add("missing", column.is_null())
        if source.id_at is not None:
            frame[ID_COLUMN] = self._id(found, source.id_at, faults)
        return pl.DataFrame(frame), faults.reasons

    def _time(self, found: pl.DataFrame, faults: Faults) -> pl.Series:
        """Return the times in milliseconds, cut off towards the past."""
        column = _column_at(found, self._source.time_at)
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
            times = column.cast(pl.Int64) * DAY_MS
        elif is_text(kind):
            times = self._times.texts(column.cast(pl.String))
        elif kind.is_float() and self._source.time_fraction:
            times = self._times.floats(column)
        else:
            faults.add("wrong_type", column.is_not_null())
            return pl.repeat(None, found.height, dtype=pl.Int64, eager=True)
        if not _lies_between(times, TIME_MS_MIN, TIME_MS_MAX):
            usable = times.is_between(TIME_MS_MIN, TIME_MS_MAX).fill_null(value=False)
            faults.add("out_of_range", column.is_not_null() & ~usable)
        return times.alias("")

    def _id(self, found: pl.DataFrame, path: Path, faults: Faults) -> pl.Series:
        """Return ids as texts; a whole number becomes the text of its digits."""
        declared = next((field.type for field in self._source.fields if field.at == path), None)
        kind = "int" if _column_at(found, path).dtype.is_integer() else "string"
        return self._field(found, path, declared or kind, faults).cast(pl.String)

    def _field(self, found: pl.DataFrame, path: Path, kind: str, faults: Faults) -> pl.Series:
        return faults.of(cast_column(_column_at(found, path), kind))

    def _converted(
        self, found: pl.DataFrame, field: Field, faults: Faults, frame: dict[str, pl.Series]
    ) -> pl.Series:
        """Return the column of a field that converts values, and add where it nulled one."""
        converted = convert_column(_column_at(found, field.at), field)
        if not field.null_on_error:
            return faults.of(converted)
        wrong = pl.repeat(value=False, n=found.height, eager=True)
        for _, mask in converted.faults:
            wrong |= mask
        frame[NULLED_PREFIX + field.name] = wrong
        return converted.values.set(wrong, None)


class ColumnDecoder(ColumnEvents, abc.ABC):
    """Decodes records of one source, each of which holds columns with one row per event.

    Attributes:
        reason: the reason with which an unreadable record is set aside.
        broken: the errors that :meth:`read` raises for such a record.
    """

    reason: ClassVar[str]
    broken: ClassVar[tuple[type[BaseException], ...]]

    @abc.abstractmethod
    def read(self, value: bytes) -> pl.DataFrame:
        """Return the columns of a value, at least those of ``wanted`` that it has.

        Raises:
            BaseException: one of ``broken``; the value cannot be read.
        """

    @abc.abstractmethod
    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return a value with only these of its events, and its content type."""

    def decode(self, run: RunResults, first: int, values: list[bytes]) -> None:
        """Decode records, neighbours of one schema at once."""
        pieces: list[tuple[int, pl.DataFrame]] = []
        for index, value in enumerate(values, first):
            try:
                found = self.read(value)
            except self.broken as error:
                detail = str(error)[:DETAIL_CHARS_MAX]
                run.refuse_record(index, "unreadable", self.reason, detail)
                continue
            if not found.height:
                run.refuse_record(index, "empty", "empty", "no rows")
                continue
            run.ledger.add_decoded(1, found.height)
            if pieces and pieces[-1][1].schema != found.schema:
                self._add(run, pieces)
                pieces = []
            pieces.append((index, found))
        if pieces:
            self._add(run, pieces)

    def _add(self, run: RunResults, pieces: list[tuple[int, pl.DataFrame]]) -> None:
        """Add records of one schema; each piece is a record's index and columns."""
        indexes = pl.concat(
            pl.int_range(
                index * RECORD_SPAN, index * RECORD_SPAN + piece.height, dtype=pl.UInt64, eager=True
            )
            for index, piece in pieces
        )
        self.add(run, indexes, pl.concat([piece for _, piece in pieces], rechunk=True))


class Faults:
    """Why rows are not events; a row with several faults keeps the first that was added.

    Attributes:
        reasons: the reason of each row, null for events; None if all rows are events.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.reasons: pl.Series | None = None

    def of(self, converted: Converted) -> pl.Series:
        """Add the faults of a column; return its values."""
        for reason, mask in converted.faults:
            self.add(reason, mask)
        return converted.values

    def add(self, reason: str, mask: pl.Series) -> None:
        """Add a reason to the rows for which ``mask`` is true."""
        if not mask.any():
            return
        reasons = self.reasons
        if reasons is None:
            reasons = pl.repeat(None, self._rows, dtype=pl.String, eager=True)
        self.reasons = reasons.set(mask & reasons.is_null(), reason)


def _lies_between(times: pl.Series, low: int, high: int) -> bool:
    """Return whether all times are in the range and not null, at a tenth of the cost of a mask."""
    first, last = times.min(), times.max()
    if first is None or times.null_count():
        return False
    return low <= cast("int", first) and cast("int", last) <= high


def _column_at(frame: pl.DataFrame, path: Path) -> pl.Series:
    """Return the values at a path through structs and lists, null for rows that it misses.

    The column is of type ``Null`` if it misses in all rows.
    """
    nothing = pl.repeat(None, frame.height, dtype=pl.Null, eager=True)
    name, *steps = path
    if name not in frame.columns:
        return nothing
    column = frame[str(name)]
    for step in steps:
        kind = column.dtype
        if isinstance(step, int) and isinstance(kind, pl.Array):
            column = column.arr.get(step, null_on_oob=True)
        elif isinstance(step, int) and isinstance(kind, pl.List):
            column = column.list.get(step, null_on_oob=True)
        elif isinstance(kind, pl.Struct) and any(step == field.name for field in kind.fields):
            column = column.struct.field(str(step))
        else:
            return nothing
    return column
