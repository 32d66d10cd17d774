"""Measures as columns: the types and values that readers outside get, in whatever format."""

from __future__ import annotations

import polars as pl

from tables.measures.registry import form_of
from tables.model.layer import Layer
from tables.state.cell import measures_of


def measure_columns(layer: Layer, cells: pl.DataFrame) -> list[pl.Series]:
    """Return a layer's measures of the rows of a cell frame, one column each.

    A float that is not finite is null, as in JSON; so is a sum of more digits than its type has,
    which no events can come to.
    """
    types = {measure.name: form_of(layer, measure).type for measure in layer.measures}
    # Polars takes integers beyond 64 bits into columns of 128, and these into decimals.
    wide = {name: pl.Int128() if kind.is_decimal() else kind for name, kind in types.items()}
    frame = pl.DataFrame(measures_of(layer, cells), schema=wide)
    return frame.select(_as_answered(name, kind) for name, kind in types.items()).get_columns()


def _as_answered(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    return (
        pl.when(column.is_finite()).then(column)
        if kind == pl.Float64()
        else column.cast(kind, strict=False)
    )
