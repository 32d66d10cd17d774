"""CSV recomputed: a record's rows by RFC 4180, character by character, and the values of its texts.

A row that breaks the rules of quotes ends at its first line feed.
"""

from __future__ import annotations

import re
from typing import Any

from tables.model.layer import RecordForm, Source

Row = dict[str, str]
"""The values that are not empty, by column."""

WHOLE = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|-?inf(inity)?|-?nan", re.IGNORECASE)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


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


def text_value(text: str, kind: str) -> tuple[Any, str]:
    """Return the value of a text of a declared type, and the reason if it has none."""
    if kind == "string":
        return text, ""
    if kind == "bool":
        return text == "true", "" if text in ("true", "false") else "wrong_type"
    if kind == "int":
        if not WHOLE.fullmatch(text):
            return None, "wrong_type"
        number = _whole(text)
        return number, "" if _INT64_MIN <= number <= _INT64_MAX else "out_of_range"
    if not _NUMBER.fullmatch(text):
        return None, "wrong_type"
    found = float(text)
    return found, "" if abs(found) < float("inf") else "not_finite"


def time_value(text: str) -> str | int:
    """Return the time of a text: a whole number, or the text itself."""
    return _whole(text) if WHOLE.fullmatch(text) else text


def _whole(text: str) -> int:
    """Return a whole number; of one with more digits than any type has, another such number."""
    digits = text.lstrip("-").lstrip("0")[:40]
    return int(digits or "0") * (-1 if text.startswith("-") else 1)


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
            rows.append(values if _is_text(whole) else None)
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


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
