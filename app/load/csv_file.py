"""CSV: the rows of a file as events, with the names of its first line.

A column has one type, found in a first reading of the whole file. It is of numbers, booleans or
timestamps only if every value is written as one, else of texts; an empty value is null::

    id,  size, at                    {"id":"007","size":1,"at":"2024-01-02T03:04:05Z"}
    007, 1,    2024-01-02 03:04:05   {"id":"012","size":null,"at":"2024-01-02T03:04:06Z"}
    012, ,     2024-01-02 03:04:06

Numbers are written digit by digit as they are. A timestamp without zone is one of UTC.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import msgspec
import polars as pl

from app.load.input_piece import InputError, Piece

Open = Callable[[], contextlib.AbstractContextManager[tuple[IO[bytes], IO[bytes]]]]

_ROWS = 5_000
_FIELD_CHARS_MAX = 2**31 - 1
_BOOLEAN = r"^(true|false|True|False|TRUE|FALSE)$"
_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_TIME = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?( UTC)?$"
# With more digits, a float has not all of them.
_DIGITS_MAX = 17


def read_csv(name: str, open_file: Open, rows_max: int | None = None) -> Iterator[Piece]:
    """Yield the rows of a file, some at a time: all of them, or those in which ``rows_max`` are.

    Raises:
        InputError: it is not UTF-8, not CSV, or its rows have other numbers of values.
    """
    kinds: list[set[str]] | None = None
    # One piece more shows that there are more rows.
    pieces_max = None if rows_max is None else rows_max // _ROWS + 1
    for _, rows, _ in itertools.islice(_read(name, open_file), pieces_max):
        kinds = kinds or [set(_IS_KIND) for _ in rows[0]]
        for column, left in zip(zip(*rows, strict=True), kinds, strict=True):
            texts = pl.Series(column, dtype=pl.String)
            given = texts.filter(texts != "")
            left -= {kind for kind in left if not _IS_KIND[kind](given)}
    chosen = [next((kind for kind in _IS_KIND if kind in left), "text") for left in kinds or ()]
    for header, rows, share in itertools.islice(_read(name, open_file), pieces_max):
        columns = list(zip(*rows, strict=True))
        without_zone = (
            name
            for name, kind, texts in zip(header, chosen, columns, strict=True)
            if kind == "time" and any(text and not text.endswith(" UTC") for text in texts)
        )
        yield Piece(
            _lines(header, chosen, columns), share,
            functools.partial(_frame, header, chosen, columns), frozenset(without_zone),
        )  # fmt: skip


def _read(name: str, open_file: Open) -> Iterator[tuple[list[str], list[list[str]], float]]:
    """Yield names, rows, and the share of the file that was read; a blank line is not a row."""
    csv.field_size_limit(_FIELD_CHARS_MAX)
    with open_file() as (stream, raw):
        size = max(1, os.fstat(raw.fileno()).st_size)
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        reader = None
        try:
            first = text.readline()
            reader = csv.reader(
                itertools.chain([first], text), delimiter=_delimiter(first), strict=True
            )
            header = next(reader, [])
            _check_header(name, header)
            filled = (row for row in reader if row)
            while rows := list(itertools.islice(filled, _ROWS)):
                for row in rows:
                    if len(row) != len(header):
                        raise InputError(
                            f"cannot read {name} as CSV: a row near line {reader.line_num} has"
                            f" another number of values; got {len(row)}: {row[:5]}; want"
                            f" {len(header)} as in its first line; mend the row"
                        )
                yield header, rows, min(1.0, raw.tell() / size)
        except (csv.Error, UnicodeDecodeError) as error:
            line = reader.line_num if reader is not None else 1
            raise InputError(
                f"cannot read {name} as CSV: {error}, near line {line}; want UTF-8 and quoted"
                " values; mend that line, or run: iconv -t UTF-8"
            ) from error


def _delimiter(line: str) -> str:
    """Return the character between the names of the first line."""
    return next((mark for mark in (",", "\t", ";") if mark in line), ",")


def _check_header(name: str, header: Sequence[str]) -> None:
    """Raise InputError if the first line does not name every column once."""
    twice = sorted({column for column in header if header.count(column) > 1})
    if not header or "" in header or twice:
        raise InputError(
            f"cannot read {name} as CSV: its first line must name every column once; got"
            f" {', '.join(header)[:200] or 'nothing'}; want names, e.g. time,type,size"
        )


def _is_integer(values: pl.Series) -> bool:
    return (
        _all(values.str.contains(_INTEGER)) and not values.cast(pl.Int64, strict=False).has_nulls()
    )


def _is_number(values: pl.Series) -> bool:
    if not _all(values.str.contains(_NUMBER)):
        return False
    digits = values.str.replace(r"[eE].*$", "").str.replace_all(r"[-.]", "")
    fits = digits.str.strip_chars_start("0").str.len_bytes() <= _DIGITS_MAX
    return _all(fits) and _all(values.cast(pl.Float64).is_finite())


def _all(found: pl.Series) -> bool:
    return bool(found.all())


_IS_KIND: dict[str, Callable[[pl.Series], bool]] = {
    "empty": lambda values: not len(values),
    "boolean": lambda values: _all(values.str.contains(_BOOLEAN)),
    "integer": _is_integer,
    "number": _is_number,
    "time": lambda values: _all(values.str.contains(_TIME)),
}
"""Whether all of some values are written as a kind; the first that holds for all is a column's."""


def _time(text: str) -> str:
    return f"{text[:10]}T{text[11:].removesuffix(' UTC')}Z"


_encode = msgspec.json.encode
_JSON: dict[str, Callable[[str], bytes]] = {
    "empty": lambda _: b"null",
    "boolean": lambda text: text.lower().encode(),
    "integer": str.encode,
    "number": str.encode,
    "time": lambda text: _encode(_time(text)),
    "text": _encode,
}


def _lines(
    header: Sequence[str], kinds: Sequence[str], columns: Sequence[Sequence[str]]
) -> list[bytes]:
    """Return the JSON text of each row."""
    names = (_encode(name).replace(b"%", b"%%") for name in header)
    form = b"{" + b",".join(name + b":%b" for name in names) + b"}"
    texts = [
        [write(text) if text else b"null" for text in column]
        for write, column in zip((_JSON[kind] for kind in kinds), columns, strict=True)
    ]
    return [form % row for row in zip(*texts, strict=True)]


def _frame(
    header: Sequence[str], kinds: Sequence[str], columns: Sequence[Sequence[str]]
) -> pl.DataFrame:
    """Return the rows as a frame of the same values."""
    frame = {}
    for name, kind, column in zip(header, kinds, columns, strict=True):
        texts = pl.Series(name, [text or None for text in column], dtype=pl.String)
        if kind == "integer":
            texts = texts.cast(pl.Int64)
        elif kind == "number":
            texts = texts.cast(pl.Float64)
        elif kind == "boolean":
            texts = texts.str.to_lowercase() == "true"
        elif kind == "time":
            given = [None if text is None else _time(text) for text in texts]
            texts = pl.Series(name, given, dtype=pl.String)
        frame[name] = texts
    return pl.DataFrame(frame)
