"""Variance: that of the population (VAR_POP).

Of integers it is exact: cells store the sum of squares as ``sqhi * 2**64 + sqlo``, and each half is
summed on its own. Of floats they store ``m2``, the sum of squared deviations from the mean, which
is merged pairwise (Chan, Golub, LeVeque 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from tables.measures.floats import float_sum
from tables.measures.kind import AccumulatorKind, MeasureForm, MeasureKind
from tables.measures.sum import FLOAT_SUM, INT_SUM, N, total_in_floats
from tables.model.limits import INT64_MAX

_WORD = 2**64


def _square(values: pl.Expr) -> pl.Expr:
    wide = values.cast(pl.Int128)
    return wide * wide


def _halves(values: Sequence[int]) -> tuple[int, int]:
    """Return the sum of squares as ``(high, low)``, of which the low part is one word."""
    total = sum(value * value for value in values)
    return (0, total) if total <= INT64_MAX else divmod(total, _WORD)


def _fit(largest: int, count: int) -> bool:
    return largest * largest * count <= INT64_MAX


_LOW = AccumulatorKind(
    "sqlo",
    pl.Int128(),
    fold_column=lambda values: (_square(values) - _square(values) // _WORD * _WORD).sum(),
    fold_values=lambda values: _halves(values)[1],
    narrow=(lambda values: (values * values).sum().cast(pl.Int128), _fit),
)
_HIGH = AccumulatorKind(
    "sqhi",
    pl.Int128(),
    fold_column=lambda values: (_square(values) // _WORD).sum(),
    fold_values=lambda values: _halves(values)[0],
    narrow=(lambda _: pl.lit(0, pl.Int128), _fit),
)


def _int_variance(
    n: int | None, total: int | None, low: int | None, high: int | None
) -> float | None:
    if not n or total is None or low is None or high is None:
        return None
    return (n * ((high << 64) + low) - total**2) / (n * n)


def _mean_square(n: pl.Expr, _: pl.Expr, low: pl.Expr, high: pl.Expr) -> pl.Expr:
    return pl.when(n > 0).then((high * 2.0**64 + low) / n)


def _int_estimate(n: pl.Expr, total: pl.Expr, low: pl.Expr, high: pl.Expr) -> pl.Expr:
    # The difference of two numbers that may be much larger than itself.
    return _mean_square(n, total, low, high) - (total_in_floats(n, total) / n) ** 2


def _fold_column(values: pl.Expr) -> pl.Expr:
    value = values.cast(pl.Float64)
    return ((value - value.mean()) ** 2).sum()


def _fold_values(values: Sequence[float]) -> float:
    mean = float_sum(values) / len(values) if values else 0.0
    total = 0.0
    for value in values:
        off = value - mean
        # A product becomes infinite; a power would raise OverflowError.
        total += off * off
    return total


def _merge_columns(m2: pl.Expr, n: pl.Expr, total: pl.Expr) -> pl.Expr:
    mean = total.sum() / n.sum()
    shift = pl.when(n > 0).then(n * (total / n - mean) ** 2).otherwise(0.0)
    # Means beyond any float leave no number; the deviations from them are infinite.
    return (m2.sum() + shift.sum()).fill_nan(math.inf)


def _merge_values(m2: Sequence[float], counts: Sequence[int], totals: Sequence[float]) -> float:
    count = sum(counts)
    mean = float_sum(totals) / count if count else 0.0
    shift = 0.0
    for n, total in zip(counts, totals, strict=True):
        if n:
            off = total / n - mean
            shift += n * (off * off)
    merged = float_sum(m2) + shift
    return math.inf if math.isnan(merged) else merged


_M2 = AccumulatorKind(
    "m2",
    pl.Float64(),
    _fold_column,
    _fold_values,
    merge_columns=_merge_columns,
    merge_values=_merge_values,
    beside=(N.name, FLOAT_SUM.name),
)


def _float_variance(n: int | None, total: float | None, m2: float | None) -> float | None:
    return max(m2, 0.0) / n if n and total is not None and m2 is not None else None


def _float_estimate(n: pl.Expr, _: pl.Expr, m2: pl.Expr) -> pl.Expr:
    return pl.when(n > 0).then(m2 / n)


VARIANCE = MeasureKind(
    "variance",
    {
        "int": MeasureForm(
            (N, INT_SUM, _LOW, _HIGH), pl.Float64(), _int_variance, _int_estimate, _mean_square
        ),
        "float": MeasureForm((N, FLOAT_SUM, _M2), pl.Float64(), _float_variance, _float_estimate),
    },
)
