"""Few cells: merged in plain Python, in less time than a query over frames takes to begin.

Most answers are made of some dozen rows, and every query over a frame wakes a thread of polars. The
rules are those of :func:`tables.state.cell.merge_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from tables.model.floats import float_sum, shift_of_means
from tables.model.layer import Accumulator, Layer
from tables.state.block import FewRows
from tables.state.cell import cell_schema

FEW_ROWS_MAX = 256
"""Merging so many rows takes about as long here as it does as a frame."""

Values = tuple[Any, ...]


def merge_few(
    accumulators: Sequence[Accumulator], rows: Iterable[tuple[Values, Values]]
) -> dict[Values, Values]:
    """Return, by key, the accumulators and the version of rows that add up.

    Args:
        accumulators: in order.
        rows: key; accumulators in order, with the version last.
    """
    groups: dict[Values, list[Values]] = {}
    for key, values in rows:
        groups.setdefault(key, []).append(values)
    merged = {}
    for key, some in groups.items():
        is_whole = len(some) == 1 and None not in some[0]
        merged[key] = some[0] if is_whole else _merged(accumulators, some)
    return merged


def few_cells(layer: Layer, rows: Iterable[tuple[Values, Values]]) -> pl.DataFrame:
    """Return the cell frame of rows, each its key with the window last, and values as above."""
    merged = merge_few(layer.accumulators, rows)
    return FewRows(cell_schema(layer), [(*key, *one) for key, one in merged.items()]).frame()


def columns_of(frame: pl.DataFrame, names: Iterable[str]) -> list[list[Any]]:
    """Return the values of columns; a query that selects them costs more than a few rows do."""
    return [frame.get_column(name).to_list() for name in names]


def _merged(accumulators: Sequence[Accumulator], rows: list[Values]) -> Values:
    *columns, versions = zip(*rows, strict=True)
    by_name = {acc.column: column for acc, column in zip(accumulators, columns, strict=True)}
    found: list[Any] = []
    for acc, column in zip(accumulators, columns, strict=True):
        known = [value for value in column if value is not None]
        if len(known) < len(column) and _is_unknown(acc, by_name):
            found.append(None)
        elif acc.kind == "min":
            found.append(min(known, default=None))
        elif acc.kind == "max":
            found.append(max(known, default=None))
        elif acc.kind == "m2":
            counts, totals = by_name[f"n_{acc.field}"], by_name[f"sum_{acc.field}"]
            if None in counts or None in totals:
                found.append(None)
                continue
            squares = float_sum(known) + shift_of_means(counts, totals)
            found.append(math.inf if math.isnan(squares) else squares)
        elif acc.kind == "sum" and acc.type == "float":
            found.append(float_sum(known))
        else:
            found.append(sum(known))
    return (*found, max(versions))


def _is_unknown(acc: Accumulator, by_name: Mapping[str, Values]) -> bool:
    """Tell whether a column with nulls has a value that is not known."""
    if acc.kind not in ("min", "max"):
        return True
    counts = by_name[f"n_{acc.field}"]
    pairs = zip(by_name[acc.column], counts, strict=True)
    return any(value is None and n != 0 for value, n in pairs)
