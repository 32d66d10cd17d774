"""Measures as columns: the types and values that readers outside get, in whatever format."""

from __future__ import annotations

import polars as pl

from tables.model.layer import Layer, Measure
from tables.state.cell import measures_of

SUM_TYPE = pl.Decimal(38, 0)
"""Of sums of integers, which every reader of Arrow knows, unlike 128 bits. 2**63 events of 2**63
each come to 2**126, which has 38 digits."""


def measure_columns(layer: Layer, cells: pl.DataFrame) -> list[pl.Series]:
    """Return a layer's measures of the rows of a cell frame, one column each.

    A float that is not finite is null, as in JSON; so is a sum of more digits than its type has,
    which no events can come to.
    """
    types = {measure.name: measure_type(layer, measure) for measure in layer.measures}
    # Polars takes integers beyond 64 bits into columns of 128, and these into decimals.
    wide = {name: pl.Int128() if kind == SUM_TYPE else kind for name, kind in types.items()}
    frame = pl.DataFrame(measures_of(layer, cells), schema=wide)
    return frame.select(_as_answered(name, kind) for name, kind in types.items()).get_columns()


def measure_type(layer: Layer, measure: Measure) -> pl.DataType:
    """Return the type of a measure's column."""
    if measure.kind == "count":
        return pl.Int64()
    floats = {acc.field for acc in layer.accumulators if acc.type == "float"}
    if measure.field in floats or measure.kind in ("mean", "variance"):
        return pl.Float64()
    return SUM_TYPE if measure.kind == "sum" else pl.Int64()


def _as_answered(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    return (
        pl.when(column.is_finite()).then(column)
        if kind == pl.Float64()
        else column.cast(kind, strict=False)
    )
