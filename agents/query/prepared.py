"""Prepared answers: all rows that were read for a request; any thread makes the answer of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from agents.query.base_reads import BaseRead
from agents.query.parts import KEYS_MAX, Part
from tables.model.layer import Layer
from tables.query.answer import matching, rows_of
from tables.query.family import FamilyQuery
from tables.state.cell import no_rows, stacked, whole_only


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedAnswer:
    """An answer before its rows are made.

    Attributes:
        query: the request.
        base: the way its base layer was read.
        parts: the rows that were read of each layer.
        whole: by column, the time from which on windows of the base layer are whole.
    """

    query: FamilyQuery
    base: BaseRead
    parts: Sequence[Part]
    whole: Mapping[str, int]

    @property
    def height(self) -> int:
        """How many rows were read."""
        return sum(part.live_height + part.archived_height for part in self.parts)

    def rows(self) -> pl.DataFrame:
        """Return the rows that were asked for, a cell frame of ``query.rows``."""
        cells = [
            (
                part.layer,
                self.base.cells(
                    part,
                    self._asked_for(part.layer, part.evicted),
                    self._asked_for(part.layer, part.final),
                ),
            )
            for part in self.parts
        ]
        return whole_only(rows_of(self.query, cells), self.whole)

    def _asked_for(self, layer: Layer, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
        rows, keys = stacked(frames, no_rows(layer)), self.query.keys
        is_read_by_key = keys.is_single or keys.keys_of(layer, KEYS_MAX) is not None
        return rows if is_read_by_key else matching(layer, rows, keys)
