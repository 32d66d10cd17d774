"""Aggregate: events of one layer into partial cells, one group_by a chunk. Pure."""

from __future__ import annotations

from typing import cast

import polars as pl

from agents.decode.event_batch import Rows
from tables.model.layer import Accumulator, Layer
from tables.state.cell import accumulator_type

_WORD = 2**64
_INT64_MAX = 2**63 - 1


class Aggregation:
    """How the events of one layer become its cells."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._keys = ["partition", *layer.key_columns, "window_start"]
        self._fields = [a.field for a in layer.accumulators if a.field is not None]
        # Sums of integers depend on the values of the chunk; all others are the same for every one.
        self._fixed = {a: _expr(a) for a in layer.accumulators if not _is_int_sum(a)}

    def cells(self, rows: Rows, starts: pl.Series) -> list[pl.DataFrame]:
        """Return the partial cells of each run of ``rows``; ``starts`` are the rows' windows.

        Columns are those of a delta's block: key, ``window_start``, accumulators.
        """
        frame = rows.frame
        columns = {field: _measured(frame[field]) for field in self._fields}
        columns |= {field.column: frame[field.name] for field in self._layer.key}
        columns |= {"partition": frame["partition"], "window_start": starts}
        exprs = [
            self._fixed[a] if a in self._fixed else _int_sum(a, columns[str(a.field)])
            for a in self._layer.accumulators
        ]
        # In order of first appearance, so that the cells of one run are neighbours like its events.
        cells = pl.DataFrame(columns).group_by(self._keys, maintain_order=True).agg(*exprs)
        heights = dict(cells.drop_in_place("partition").value_counts().iter_rows())
        found, first = [], 0
        for partition, (start, stop) in zip(rows.partitions, rows.bounds, strict=True):
            height = heights[partition] if stop > start else 0
            found.append(cells[first : first + height])
            first += height
        return found


def _measured(values: pl.Series) -> pl.Series:
    """Return a field's values; of floats with one zero, as in :mod:`agents.fold.small`."""
    # Polars leaves an addition of zero out.
    return values.set(values == 0.0, 0.0) if values.dtype == pl.Float64 else values


def _is_int_sum(accumulator: Accumulator) -> bool:
    return accumulator.type == "int" and accumulator.kind in ("sum", "sqlo", "sqhi")


def _expr(acc: Accumulator) -> pl.Expr:
    """Return the aggregation of one accumulator over raw events."""
    if acc.kind == "events":
        return pl.len().cast(pl.Int64).alias("events")
    assert acc.field is not None
    column = pl.col(acc.field)
    if acc.kind == "n":
        return column.count().cast(pl.Int64).alias(acc.column)
    if acc.kind in ("min", "max"):
        extreme = column.min() if acc.kind == "min" else column.max()
        return extreme.cast(accumulator_type(acc)).alias(acc.column)
    value = column.cast(pl.Float64)
    if acc.kind == "m2":
        return ((value - value.mean()) ** 2).sum().alias(acc.column)
    return value.sum().alias(acc.column)


def _int_sum(acc: Accumulator, values: pl.Series) -> pl.Expr:
    """Return an integer sum that cannot wrap; in 64 bits where the chunk's values allow it."""
    column = pl.col(values.name)
    low, high = values.min(), values.max()
    largest = 0 if low is None else max(abs(cast("int", low)), abs(cast("int", high)))
    wide = column.cast(pl.Int128)
    if acc.kind == "sum":
        total = column.sum() if largest * len(values) <= _INT64_MAX else wide.sum()
        return total.cast(pl.Int128).alias(acc.column)
    if largest * largest * len(values) <= _INT64_MAX:
        words = (column * column).sum().cast(pl.Int128), pl.lit(0, pl.Int128)
    else:
        square = wide * wide
        above = square // _WORD
        words = (square - above * _WORD).sum(), above.sum()
    return words[acc.kind == "sqhi"].alias(acc.column)
