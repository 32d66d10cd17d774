"""Answers: the rows that a reader has for a request, and what they are."""

from __future__ import annotations

import dataclasses
from typing import Literal

import polars as pl

from tables.model.cost import QueryCost
from tables.query.planner import QueryPlan

Exactness = Literal["exact", "settling", "partial"]


@dataclasses.dataclass(slots=True)
class FamilyAnswer:
    """Rows, and what they are.

    Attributes:
        rows: a cell frame of ``query.rows``; see :func:`tables.query.answer.rows_of`.
        plan: what was read.
        exactness: ``exact`` is the fold of the raw log up to ``as_of``; late events may still
            change what is ``settling``; of what is ``partial`` some owners did not answer.
        as_of: by source partition, the offset up to which events are in.
        watermark_ms: smallest watermark of the base layer; ``NEVER_MS`` before any event.
        data_age_ms: everything appended so long before the answer is in; None if not known.
        final: whether no later answer can have other rows.
        cost: what it took.
        whole: by measure, from when on it is whole, where that is not the whole range; None while
            that is not known. In rows that start before, the measure is null.
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
    """The rows of one layer, live and archived: archive frames that may both have a cell.

    Attributes:
        live: of the owners that answered.
        archived: everything that those may have evicted.
        partial: whether live cells may be missing.
        served: the partitions of the layer's input whose owners answered.
        cost: what it took.
        whole: as of a :class:`FamilyAnswer`.
    """

    live: pl.DataFrame
    archived: pl.DataFrame
    partial: bool
    served: frozenset[int]
    cost: QueryCost
    whole: dict[str, int | None]
