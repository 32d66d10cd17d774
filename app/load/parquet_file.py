"""Parquet: the rows of a file as events.

A row is an object of its columns, nested as they are. Timestamps become RFC 3339 texts in UTC, and
decimals numbers; a float that is not finite becomes null, because JSON has none.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import polars as pl

from app.load.input_piece import InputError, Piece

_ROWS = 10_000
_RFC3339 = "%Y-%m-%dT%H:%M:%S%.fZ"


def read_parquet(path: pathlib.Path) -> Iterator[Piece]:
    """Yield the rows of a file, some at a time.

    Raises:
        InputError: it is not Parquet, or has a column that no JSON can hold.
    """
    try:
        scan = pl.scan_parquet(path, glob=False)
        schema = scan.collect_schema()
        columns = [_column(path, *one) for one in schema.items()]
        assumed_utc = frozenset(
            name
            for name, kind in schema.items()
            if isinstance(kind, pl.Datetime) and not kind.time_zone
        )
        total = scan.select(pl.len()).collect().item()
        for first in range(0, total, _ROWS):
            frame = scan.slice(first, _ROWS).collect()
            text = frame.select(columns).write_ndjson()
            share = (first + frame.height) / total
            rows = functools.partial(pl.DataFrame.clone, frame)
            yield Piece(text.encode().splitlines(), share, rows, assumed_utc)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"cannot read {path} as Parquet: {error}; want a whole file; get it again"
        ) from error


def _column(path: pathlib.Path, name: str, kind: pl.DataType) -> pl.Expr:
    if _holds(kind, pl.Binary):
        raise InputError(
            f"cannot read {path}: column {name} holds bytes, which JSON cannot; got {kind}; want"
            " texts and numbers; leave the column out, or make it a text"
        )
    return _plain(pl.col(name), kind).alias(name)


def _plain(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Return a column as JSON has it."""
    if not _holds(kind, pl.Datetime) and not _holds(kind, pl.Decimal):
        return column
    if isinstance(kind, pl.Datetime):
        utc = column.dt.convert_time_zone("UTC") if kind.time_zone else column
        return utc.dt.strftime(_RFC3339)
    if isinstance(kind, pl.Decimal):
        return column.cast(pl.Float64)
    if isinstance(kind, pl.List):
        return column.list.eval(_plain(pl.element(), _kind(kind.inner)))
    if isinstance(kind, pl.Array):
        return column.arr.to_list().list.eval(_plain(pl.element(), _kind(kind.inner)))
    assert isinstance(kind, pl.Struct)
    fields = [
        _plain(column.struct.field(field.name), _kind(field.dtype)).alias(field.name)
        for field in kind.fields
    ]
    return pl.when(column.is_not_null()).then(pl.struct(fields))


def _holds(kind: pl.DataType, wanted: type[pl.DataType]) -> bool:
    """Return whether a type is ``wanted``, or has it inside."""
    if isinstance(kind, pl.List | pl.Array):
        return _holds(_kind(kind.inner), wanted)
    if isinstance(kind, pl.Struct):
        return any(_holds(_kind(field.dtype), wanted) for field in kind.fields)
    return isinstance(kind, wanted)


def _kind(kind: Any) -> pl.DataType:
    """Return an inner type; polars says that it may be a class."""
    found: pl.DataType = kind() if isinstance(kind, type) else kind
    return found
