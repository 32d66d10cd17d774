"""Answers: the rows that a reader has for a request, and their exactness and age."""

from __future__ import annotations

import dataclasses
from typing import Literal

import polars as pl

from tables.model.cost import QueryCost
from tables.query.planner import QueryPlan

Exactness = Literal["exact", "settling", "partial"]


@dataclasses.dataclass(slots=True)
class FamilyAnswer:
    """Rows, with their exactness, age and cost.

    Attributes:
        rows: a cell frame of ``query.rows``; see :func:`tables.query.answer.rows_of`.
        plan: the plan by which they were read.
        exactness: ``exact`` rows are the fold of the raw log up to ``as_of``; late events may still
            change ``settling`` rows; for ``partial`` rows some owners did not answer.
        as_of: by source partition, the offset up to which events are in.
        watermark_ms: smallest watermark of the base layer; ``NEVER_MS`` before any event.
        data_age_ms: every event that was appended longer ago than this is in; None if not known.
        final: whether no later answer can have other rows.
        cost: the work of the answer.
        whole: by measure that is not whole in all of the range, the time from which on it is; None
            while that is not known. In rows that start before, the measure is null.
    """

    rows: pl.DataFrame
    plan: QueryPlan
    exactness: Exactness
    as_of: dict[int, int]
    watermark_ms: int
    data_age_ms: int | None
    final: bool
    cost: QueryCost
    whole: dict[str, int | None]


@dataclasses.dataclass(slots=True)
class LayerAnswer:
    """The rows of one layer, live and archived: archive frames, both of which may have a cell.

    Attributes:
        live: the rows of the owners that answered.
        archived: all rows that those owners may have evicted.
        partial: whether live cells may be missing.
        served: the partitions of the layer's input whose owners answered.
        cost: the work of the answer.
        whole: as of a :class:`FamilyAnswer`.
    """

    live: pl.DataFrame
    archived: pl.DataFrame
    partial: bool
    served: frozenset[int]
    cost: QueryCost
    whole: dict[str, int | None]
