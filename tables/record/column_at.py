"""The values at a path of an event, of events that are the rows of columns."""

from __future__ import annotations

import polars as pl

from tables.model.path import Path


def column_at(frame: pl.DataFrame, path: Path) -> pl.Series:
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
