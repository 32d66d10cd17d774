"""Sum: of a field's values, beside their number.

Sums of integers are kept in 128 bits, so that no order of events wraps or rounds them.
"""

from __future__ import annotations

import polars as pl

from tables.measures.floats import float_sum
from tables.measures.kind import AccumulatorKind, MeasureForm, MeasureKind
from tables.model.limits import INT64_MAX

SUM_TYPE = pl.Decimal(38, 0)
"""The type of sums of integers in answers: every reader of Arrow knows it, unlike 128 bits. 2**63
events of 2**63 each have the sum 2**126, which has 38 digits."""

N = AccumulatorKind(
    "n",
    pl.Int64(),
    fold_column=lambda values: values.count().cast(pl.Int64),
    fold_values=len,
)
INT_SUM = AccumulatorKind(
    "sum",
    pl.Int128(),
    fold_column=lambda values: values.cast(pl.Int128).sum().cast(pl.Int128),
    fold_values=sum,
    narrow=(
        lambda values: values.sum().cast(pl.Int128),
        lambda largest, count: largest * count <= INT64_MAX,
    ),
)
FLOAT_SUM = AccumulatorKind(
    "sum",
    pl.Float64(),
    fold_column=lambda values: values.cast(pl.Float64).sum(),
    fold_values=float_sum,
    merge_values=float_sum,
)


def _sum(n: int | None, total: float | None) -> float | None:
    return total if n else None


def total_in_floats(n: pl.Expr, total: pl.Expr) -> pl.Expr:
    """Return the sum, null if no event had the field."""
    return pl.when(n > 0).then(total)


SUM = MeasureKind(
    "sum",
    {
        "int": MeasureForm((N, INT_SUM), SUM_TYPE, _sum, total_in_floats),
        "float": MeasureForm((N, FLOAT_SUM), pl.Float64(), _sum, total_in_floats),
    },
)
