"""CSV recomputed: a record's rows by RFC 4180, character by character.

A row that breaks the rules of quotes ends at its first line feed.
"""

from __future__ import annotations

from app.verify.documents import is_text
from tables.model.layer import RecordForm, Source

Row = dict[str, str]
"""The values that are not empty, by column."""


def csv_rows(value: bytes, source: Source) -> list[Row | None] | None:
    """Return the rows of a record, None for one that is broken; None if its columns have no names.

    Empty lines are not rows.
    """
    form = source.format or RecordForm("csv")
    rows = _rows(value.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), form.delimiter)
    columns = form.columns
    if not columns and rows:
        first = rows.pop(0)
        if first is None or len(set(first)) != len(first):
            return None
        columns = tuple(first)
    return [
        {name: text for name, text in zip(columns, row, strict=True) if text}
        if row is not None and len(row) == len(columns)
        else None
        for row in rows
    ]


def _rows(text: str, mark: str) -> list[list[str] | None]:
    rows = []
    at = 0
    while at < len(text):
        values, end = _row(text, at, mark)
        if values is None:
            end = text.find("\n", at)
            end = len(text) if end < 0 else end + 1
        whole = text[at:end].removesuffix("\n").removesuffix("\r")
        if whole:
            rows.append(values if is_text(whole) else None)
        at = end
    return rows


def _row(text: str, at: int, mark: str) -> tuple[list[str] | None, int]:
    """Return the values of the row that begins at a character, and the index behind its end."""
    values = []
    while True:
        if text.startswith('"', at):
            close = text.find('"', at + 1)
            while close >= 0 and text.startswith('"', close + 1):
                close = text.find('"', close + 2)
            if close < 0:
                return None, 0
            values.append(text[at + 1 : close].replace('""', '"'))
            at = close + 1
            if text.startswith("\r", at) and not text.startswith(mark, at + 1):
                at += 1
        else:
            stop = at
            while stop < len(text) and text[stop] not in (mark, "\n"):
                stop += 1
            value = text[at:stop]
            if '"' in value:
                return None, 0
            is_last = stop == len(text) or text[stop] == "\n"
            values.append(value.removesuffix("\r") if is_last else value)
            at = stop
        if at == len(text) or text[at] == "\n":
            return values, min(at + 1, len(text))
        if text[at] != mark:
            return None, 0
        at += 1
