"""Small merges: cells in plain Python, in less time than a query over frames takes to begin.

Most answers are made of some dozen rows, and every query over a frame wakes a thread of polars. The
rules are those of :func:`tables.state.cell.merge_rows`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from tables.measures.kind import AccumulatorKind
from tables.measures.registry import kind_of, merge_columns
from tables.model.layer import Accumulator, Layer
from tables.state.block import TupleRows
from tables.state.cell import cell_schema

SMALL_ROWS_MAX = 256
"""Rows whose merge takes about as long here as it does as a frame."""

Values = tuple[Any, ...]
_Step = tuple[AccumulatorKind, list[int]]


def merge_small(
    accumulators: tuple[Accumulator, ...], rows: Iterable[tuple[Values, Values]]
) -> dict[Values, Values]:
    """Return, by key, the values of rows that add up: accumulators in order, the version last."""
    groups: dict[Values, list[Values]] = {}
    for key, values in rows:
        groups.setdefault(key, []).append(values)
    steps = _steps_of(accumulators)
    merged = {}
    for key, some in groups.items():
        is_whole = len(some) == 1 and None not in some[0]
        merged[key] = some[0] if is_whole else _merged(steps, some)
    return merged


def small_cells(
    layer: Layer, keys: Iterable[Sequence[Any]], values: Iterable[Sequence[Any]]
) -> pl.DataFrame:
    """Return the cell frame of rows, whose columns are given in order, the window last of keys."""
    rows = zip(zip(*keys, strict=True), zip(*values, strict=True), strict=True)
    merged = merge_small(layer.accumulators, rows)
    return TupleRows(cell_schema(layer), [(*key, *one) for key, one in merged.items()]).frame()


def columns_of(frame: pl.DataFrame, names: Iterable[str]) -> list[list[Any]]:
    """Return the values of columns; a query that selects them costs more than a few rows do."""
    return [frame.get_column(name).to_list() for name in names]


def _merged(steps: Sequence[_Step], rows: list[Values]) -> Values:
    *columns, versions = zip(*rows, strict=True)
    found: list[Any] = []
    for kind, indexes in steps:
        values = [columns[index] for index in indexes]
        found.append(None if _has_unknown(kind, values) else kind.merge_values(*values))
    return (*found, max(versions))


def _has_unknown(kind: AccumulatorKind, values: list[Values]) -> bool:
    """Return whether some value of an accumulator is not known."""
    return kind.has_unknown(*values)


@functools.lru_cache(1_024)
def _steps_of(accumulators: tuple[Accumulator, ...]) -> tuple[_Step, ...]:
    """Return how each accumulator is made, and the indexes of the columns that merging it takes."""
    indexes = {accumulator.column: index for index, accumulator in enumerate(accumulators)}
    return tuple(
        (kind_of(accumulator), [indexes[name] for name in merge_columns(accumulator)])
        for accumulator in accumulators
    )
