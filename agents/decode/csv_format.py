"""CSV as a format of records: rows of text by RFC 4180, an event each.

The first row of a record names the columns, unless the source declares them. A row that breaks the
rules of quotes ends at its first line feed, and is no event; the rows behind it are::

    at,type,note
    1,a,"two
    lines"                event 0
    2,a,say "hi"          event 1, malformed: a quote in a value that does not begin with one
    3,a,                  event 2, whose note is null
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import polars as pl

from agents.decode.column_events import ColumnEvents, Faults
from agents.decode.event_batch import DETAIL_CHARS_MAX, RECORD_SPAN
from agents.decode.record_format import RecordFormat, RunResults
from tables.model.layer import RecordForm, Source
from tables.model.path import Path

_CSV_TYPE = "text/csv"
_REASON = "csv"

_NOT_UTF8 = re.compile("[\ud800-\udfff]")

Columns = tuple[str, ...]


class CsvError(Exception):
    """A record whose columns have no names."""


class CsvDecoder(ColumnEvents):
    """Decodes the CSV records of one source."""

    # A quote that is not closed may be closed by that of another broken row.
    alone = frozenset((_REASON,))

    def __init__(self, source: Source) -> None:
        super().__init__(_of_texts(source))
        declared = (
            source.format if source.format and source.format.name == "csv" else RecordForm("csv")
        )
        self._columns = declared.columns
        self._delimiter = declared.delimiter
        mark = re.escape(declared.delimiter)
        value = rf'(?:"(?:[^"]++|"")*+"|[^"{mark}\n]*+)'
        self._row = re.compile(rf"{value}(?:{mark}{value})*+\r?(?:\n|\Z)")
        self._value = re.compile(rf"(?:^|{mark})({value})")

    def decode(self, run: RunResults, first: int, values: list[bytes]) -> None:
        """Decode records, neighbours of the same columns at once."""
        rows: list[str | None] = []
        indexes: list[int] = []
        known: Columns = ()
        for index, value in enumerate(values, first):
            if not value.strip():
                run.refuse_blank(index)
                continue
            try:
                columns, own = self._read(value)
            except CsvError as error:
                detail = str(error)[:DETAIL_CHARS_MAX]
                run.refuse_record(index, "unreadable", _REASON, detail)
                continue
            if not own:
                run.refuse_record(index, "empty", "empty", "no rows")
                continue
            run.ledger.add_decoded(1, len(own))
            if columns != known and rows:
                self._add(run, indexes, known, rows)
                rows, indexes = [], []
            known = columns
            rows += [row if is_sound else None for row, is_sound in own]
            indexes += range(index * RECORD_SPAN, index * RECORD_SPAN + len(own))
        if rows:
            self._add(run, indexes, known, rows)

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return these rows, behind the row of names if there is one."""
        rows = [row for row, _ in self._rows(_text(value))]
        names = [] if self._columns else [rows.pop(0)]
        # A carriage return before the end is one more than the row had: it may end with one.
        text = "".join(f"{row}\r\n" for row in [*names, *(rows[event] for event in events)])
        return text.encode("utf-8", "surrogateescape"), _CSV_TYPE

    def _id(self, found: pl.DataFrame, path: Path, faults: Faults) -> pl.Series:
        """Return ids as they are written; a declared type has been checked."""
        return self._field(found, path, "string", faults)

    def _read(self, value: bytes) -> tuple[Columns, list[tuple[str, bool]]]:
        """Return the names of a record's columns, and its rows.

        Raises:
            CsvError: its first row is to name the columns, and does not.
        """
        rows = list(self._rows(_text(value)))
        if self._columns or not rows:
            return self._columns, rows
        row, is_sound = rows.pop(0)
        columns = tuple(self._values(row)) if is_sound else ()
        if not is_sound or len(set(columns)) < len(columns):
            raise CsvError(f"the first row does not name each column once: {row!a}")
        return columns, rows

    def _rows(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield rows without line ends, and whether each is sound; an empty line is not a row."""
        is_utf8 = _NOT_UTF8.search(text) is None
        at = 0
        if '"' not in text:
            for row in text.split("\n"):
                if whole := row.removesuffix("\r"):
                    yield whole, is_utf8 or not _NOT_UTF8.search(whole)
            return
        while at < len(text):
            match = self._row.match(text, at)
            end = match.end() if match else text.find("\n", at) + 1 or len(text)
            if whole := text[at:end].removesuffix("\n").removesuffix("\r"):
                yield whole, match is not None and (is_utf8 or not _NOT_UTF8.search(whole))
            at = end

    def _values(self, row: str) -> list[str]:
        """Return the values of a row that is sound."""
        if '"' not in row:
            return row.split(self._delimiter)
        return [
            one[1:-1].replace('""', '"') if one.startswith('"') else one
            for one in self._value.findall(row)
        ]

    def _add(
        self, run: RunResults, indexes: list[int], columns: Columns, rows: list[str | None]
    ) -> None:
        """Add rows of the same columns, of which those that are not sound are None."""
        found, is_broken = self._frame(columns, rows)
        faults = Faults(len(rows))
        faults.add(_REASON, is_broken)
        self.add(run, pl.Series(indexes, dtype=pl.UInt64), found, faults)

    def _frame(self, columns: Columns, rows: list[str | None]) -> tuple[pl.DataFrame, pl.Series]:
        """Return the wanted columns of rows, of type String, and which rows are broken."""
        count = len(columns)
        at = {name: columns.index(name) for name in self.wanted if name in columns}
        if any(row is not None and '"' in row for row in rows):
            values = [[] if row is None else self._values(row) for row in rows]
            is_broken = pl.Series([len(own) != count for own in values], dtype=pl.Boolean)
            sound = [own if len(own) == count else [""] * count for own in values]
            frame = {
                name: pl.Series([own[number] for own in sound], dtype=pl.String)
                for name, number in at.items()
            }
        else:
            texts = pl.Series(rows, dtype=pl.String)
            marks = texts.str.count_matches(self._delimiter, literal=True)
            is_broken = (marks != count - 1).fill_null(value=True)
            parts = texts.set(is_broken, None).str.split_exact(self._delimiter, count - 1).struct
            frame = {name: parts.field(f"field_{number}") for name, number in at.items()}
        frame = {name: texts.set(texts == "", None) for name, texts in frame.items()}
        if not frame:
            frame = {"none": pl.repeat(None, len(rows), eager=True)}
        return pl.DataFrame(frame), is_broken


def _of_texts(source: Source) -> Source:
    """Return a source that takes each number and boolean, its time too, from its text."""
    fields = tuple(
        field if field.type == "string" else msgspec.structs.replace(field, text=True)
        for field in source.fields
    )
    return msgspec.structs.replace(source, fields=fields, time_text=True)


def _text(value: bytes) -> str:
    """Return a value as text; bytes that are not UTF-8 become halves of surrogate pairs."""
    return value.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


CSV = RecordFormat("csv", _CSV_TYPE, CsvDecoder, (), (_REASON,))
