"""Kinds of accumulators and measures, with the same members for each of them.

An accumulator is a column that cells store. Events fold into it, and cells merge in it. Each of
these steps has two forms: expressions of polars over the columns of many rows, and plain Python
over the values of a few. Both forms give the same number, to the last bit. Only floats may be
rounded otherwise, in two cases in which polars adds in another order: squared deviations of more
than 128 values, and cells grouped by one column that it knows to be sorted. A measure is computed
from accumulators of one field.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import polars as pl

Columns = TypeVar("Columns", pl.Expr, pl.Series)
Values = Sequence[Any]


def _null_rows(*columns: Columns) -> Columns:
    return functools.reduce(operator.or_, [column.is_null() for column in columns])


@dataclasses.dataclass(frozen=True, slots=True)
class AccumulatorKind:
    """How one stored column is made. Columns are ``<name>_<field>``, as ``sum_delay``.

    Steps that merge take the values of this column in all cells, then those of the columns
    ``beside`` it.

    Attributes:
        name: without underscores.
        type: the column's.
        fold_column: from the values of events, the aggregation of each cell; nulls are left out.
        fold_values: from the values of the events of one cell, none of them null, the same.
        narrow: a cheaper ``fold_column`` of integers, and whether it is exact, given the greatest
            magnitude of the values and their count.
        merge_columns: from cells with known values, the aggregation that makes them one.
        merge_values: the same of values.
        beside: names of accumulators of the same field.
        unknown_rows: which cells have a value that is not known, of columns or expressions; those
            with a null unless a kind says otherwise.
        has_unknown: whether a value is not known.
    """

    name: str
    type: pl.DataType
    fold_column: Callable[[pl.Expr], pl.Expr]
    fold_values: Callable[[Values], Any]
    narrow: tuple[Callable[[pl.Expr], pl.Expr], Callable[[int, int], bool]] | None = None
    merge_columns: Callable[..., pl.Expr] = pl.Expr.sum
    merge_values: Callable[..., Any] = sum
    beside: tuple[str, ...] = ()
    unknown_rows: Callable[..., Any] = _null_rows
    has_unknown: Callable[..., bool] = lambda *columns: any(None in values for values in columns)


@dataclasses.dataclass(frozen=True, slots=True)
class MeasureForm:
    """How a measure of a field of one type is computed. All steps take the stored values in order.

    Attributes:
        stored: the accumulators that it is computed from.
        type: the column's in answers; floats that are not finite are null there.
        result: from the values of a cell the exact measure, None if it has none or is not known.
        estimate: from columns of floats the measure in floats, by which keys are ranked.
        magnitude: the number that the error of ``estimate`` is relative to, if not itself.
    """

    stored: tuple[AccumulatorKind, ...]
    type: pl.DataType
    result: Callable[..., int | float | None]
    estimate: Callable[..., pl.Expr]
    magnitude: Callable[..., pl.Expr] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MeasureKind:
    """A measure as a map file names it: ``name(field)``, or ``name`` if it has no field.

    Attributes:
        name: without underscores; the answer's is ``<name>_<field>``.
        forms: by the type of field that it measures; that of ``int`` if it has no field.
        has_field: whether it measures a field.
    """

    name: str
    forms: Mapping[str, MeasureForm]
    has_field: bool = True
