"""Mean: the sum of a field's values divided by their number."""

from __future__ import annotations

import polars as pl

from tables.measures.kind import MeasureForm, MeasureKind
from tables.measures.sum import FLOAT_SUM, INT_SUM, N, total_in_floats


def _mean(n: int | None, total: float | None) -> float | None:
    return total / n if n and total is not None else None


def _estimate(n: pl.Expr, total: pl.Expr) -> pl.Expr:
    return total_in_floats(n, total) / n


MEAN = MeasureKind(
    "mean",
    {
        number: MeasureForm((N, total), pl.Float64(), _mean, _estimate)
        for number, total in (("int", INT_SUM), ("float", FLOAT_SUM))
    },
)
