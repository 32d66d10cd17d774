"""Count: the number of all events, which every cell stores."""

from __future__ import annotations

from typing import Any

import polars as pl

from tables.measures.kind import AccumulatorKind, MeasureForm, MeasureKind
from tables.model.layer import EVENTS


def _same(events: Any) -> Any:
    return events


_EVENTS = AccumulatorKind(
    EVENTS.kind,
    pl.Int64(),
    fold_column=lambda _: pl.len().cast(pl.Int64),
    fold_values=len,
)

COUNT = MeasureKind(
    "count", {"int": MeasureForm((_EVENTS,), pl.Int64(), _same, _same)}, has_field=False
)
