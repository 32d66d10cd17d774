"""Extremes: the least and the greatest of a field's values.

Null says that no event had the field if the number of values is 0, and else that the extreme is not
known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from tables.measures.kind import AccumulatorKind, Columns, MeasureForm, MeasureKind, Values
from tables.measures.sum import N


def _unknown_rows(extremes: Columns, n: Columns) -> Columns:
    return extremes.is_null() & (n.is_null() | (n > 0))


def _has_unknown(extremes: Values, counts: Values) -> bool:
    pairs = zip(extremes, counts, strict=True)
    return any(extreme is None and n != 0 for extreme, n in pairs)


def _extreme(_: Any, extreme: Any) -> Any:
    return extreme


def _kind(
    name: str, of_column: Callable[[pl.Expr], pl.Expr], of_values: Callable[..., Any]
) -> MeasureKind:

    def form(number: pl.DataType) -> MeasureForm:
        stored = AccumulatorKind(
            name,
            number,
            fold_column=lambda values: of_column(values).cast(number),
            fold_values=lambda values: of_values(values, default=None),
            merge_columns=lambda extremes, _: of_column(extremes),
            merge_values=lambda extremes, _: of_values(
                (extreme for extreme in extremes if extreme is not None), default=None
            ),
            beside=(N.name,),
            unknown_rows=_unknown_rows,
            has_unknown=_has_unknown,
        )
        return MeasureForm((N, stored), number, _extreme, _extreme)

    return MeasureKind(name, {"int": form(pl.Int64()), "float": form(pl.Float64())})


MIN = _kind("min", pl.Expr.min, min)
MAX = _kind("max", pl.Expr.max, max)
