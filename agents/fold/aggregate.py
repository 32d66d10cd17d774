"""Aggregate: events of one layer into partial cells, one group_by a chunk. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import polars as pl

from agents.decode.event_batch import Rows
from tables.measures.registry import kind_of
from tables.model.layer import Accumulator, Layer


class Aggregation:
    """Folds the events of one layer into its cells."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._keys = ["partition", *layer.key_columns, "window_start"]
        self._fields = [a.field for a in layer.accumulators if a.field is not None]
        self._folds = [_Fold(accumulator) for accumulator in layer.accumulators]
        self._bounded = {fold.field for fold in self._folds if fold.fits is not None}

    def cells(self, rows: Rows, starts: pl.Series) -> list[pl.DataFrame]:
        """Return the partial cells of each run of ``rows``; ``starts`` are the rows' windows.

        Columns are those of a delta's block: key, ``window_start``, accumulators.
        """
        frame = rows.frame
        columns = {field: _measured(frame[field]) for field in self._fields}
        largest = {field: _largest(columns[field]) for field in self._bounded}
        columns |= {field.column: frame[field.name] for field in self._layer.key}
        columns |= {"partition": frame["partition"], "window_start": starts}
        exprs = [fold.expr(largest, frame.height) for fold in self._folds]
        # In order of first appearance, so that the cells of one run are neighbours like its events.
        cells = pl.DataFrame(columns).group_by(self._keys, maintain_order=True).agg(*exprs)
        heights = dict(cells.drop_in_place("partition").value_counts().iter_rows())
        found, first = [], 0
        for partition, (start, stop) in zip(rows.partitions, rows.bounds, strict=True):
            height = heights[partition] if stop > start else 0
            found.append(cells[first : first + height])
            first += height
        return found


class _Fold:
    """The aggregations of one accumulator; the values of a chunk decide which one is used."""

    def __init__(self, accumulator: Accumulator) -> None:
        kind, self.field = kind_of(accumulator), accumulator.field or ""
        values, column = pl.col(self.field), accumulator.column
        self._wide = self._narrow = kind.fold_column(values).alias(column)
        self.fits: Callable[[int, int], bool] | None = None
        if kind.narrow is not None:
            fold_column, self.fits = kind.narrow
            self._narrow = fold_column(values).alias(column)

    def expr(self, largest: dict[str, int], count: int) -> pl.Expr:
        """Return the aggregation for ``count`` rows with values of at most these magnitudes."""
        if self.fits is not None and self.fits(largest[self.field], count):
            return self._narrow
        return self._wide


def _measured(values: pl.Series) -> pl.Series:
    """Return a field's values; floats have one zero, as in :mod:`agents.fold.small`."""
    # Polars optimizes an addition of zero away.
    return values.set(values == 0.0, 0.0) if values.dtype == pl.Float64 else values


def _largest(values: pl.Series) -> int:
    """Return the greatest magnitude of integers."""
    low, high = values.min(), values.max()
    return 0 if low is None else max(abs(cast("int", low)), abs(cast("int", high)))
