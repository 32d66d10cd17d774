"""The two ways to read a family's base layer at one position of each partition of its source.

    keyed:   base and coarser tables                 in one round
    merged:  merge stage and coarser tables, then    in two rounds, so that combiners have sealed
             combiners                               all that the merge stage has settled

A keyed base folds events into its own tables. A merged one folds them into its combiners', and the
merge stage settles the cells that those send; its open windows are read in parts of both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import polars as pl

from agents.query.parts import Part
from tables.model.layer import Layer, Map, combiner_of
from tables.model.window import NEVER_ENDS_MS
from tables.query.answer import are_behind, are_torn, cells_of, merged_cells_of
from tables.query.facts import KnownFacts
from tables.query.family import FamilyQuery
from tables.query.live import LiveRead, LiveRows
from tables.state.cell import later_of

Ask = Callable[[list[LiveRead]], Awaitable[list[LiveRows]]]
"""Asks the owners of several reads at once."""


class KeyedRead:
    """Reads a base layer with the key of its source.

    Attributes:
        folded: the layer whose tables events are folded into; an answer has their positions.
        beside: layers whose facts are needed beside those of the layers of a request.
    """

    def __init__(self, base: Layer) -> None:
        self.folded = base
        self.beside: tuple[Layer, ...] = ()

    def whole(self, known: KnownFacts) -> dict[str, int]:
        """Return, by column, the time from which on windows of the base are known to be whole."""
        return known.whole(self.folded)

    async def read(
        self, ask: Ask, query: FamilyQuery, parts: Sequence[Part], facts: Sequence[LiveRead]
    ) -> LiveRows:
        """Ask all tables at once: give parts their live rows, return the facts of the base."""
        reads = [_live_read(query, part) for part in parts]
        *found, base = await ask([*reads, *facts, LiveRead(self.folded)])
        for part, rows in zip(parts, found[: len(parts)], strict=True):
            part.live = rows
        return base

    def are_torn(self, parts: Iterable[Part], base: LiveRows) -> bool:
        """Return whether an owner of the base is behind coarser cells."""
        return _is_behind(self.folded, parts, base)

    def cells(self, part: Part, evicted: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
        """Return the cells of a part: of live tables, evicted ones, and those that are final."""
        return cells_of(part.layer, part.inside(part.live), evicted, final)


class MergedRead:
    """Reads a base layer whose source has another key: its merge stage and its combiners.

    It has the attributes and methods of a :class:`KeyedRead`.
    """

    def __init__(self, base: Layer, combiner: Layer) -> None:
        self.folded = combiner
        self.beside = (combiner,)
        self._base = base

    def whole(self, known: KnownFacts) -> dict[str, int]:
        """Return the times of the combiners, or a later one of the merge stage.

        The merge stage may have begun to keep a measure later.
        """
        merged = known.whole(self._base).items()
        kept = {name: ms for name, ms in merged if ms < NEVER_ENDS_MS}
        return later_of(known.whole(self.folded), kept)

    async def read(
        self, ask: Ask, query: FamilyQuery, parts: Sequence[Part], facts: Sequence[LiveRead]
    ) -> LiveRows:
        """Ask the merge stage before its combiners, which then have sealed all it has settled."""
        found = await ask([*(_live_read(query, part) for part in parts), *facts])
        for part, rows in zip(parts, found[: len(parts)], strict=True):
            part.live = rows
        in_parts = [part for part in parts if part.layer is self._base]
        combined = [
            LiveRead(self.folded, part.live_from_ms, part.to_ms, query.keys) for part in in_parts
        ]
        *found, base = await ask([*combined, LiveRead(self.folded)])
        for part, rows in zip(in_parts, found, strict=True):
            part.combined = rows
        return base

    def are_torn(self, parts: Iterable[Part], base: LiveRows) -> bool:
        """Return whether an owner is behind, or the merge stage and combiners are apart."""
        parts = list(parts)
        return _is_behind(self._base, parts, base) or any(
            are_torn(self._base, part.live, part.combined, part.live_from_ms, part.to_ms)
            for part in parts
            if part.layer is self._base and not part.is_final
        )

    def cells(self, part: Part, evicted: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
        """Return the cells of a part, those of the base in parts of cells."""
        live = part.inside(part.live)
        if part.layer is not self._base:
            return cells_of(part.layer, live, evicted, final)
        return merged_cells_of(part.layer, live, part.inside(part.combined), evicted, final)


BaseRead = KeyedRead | MergedRead


def base_read(themap: Map, base: Layer) -> BaseRead:
    """Return the way to read a base layer."""
    if not base.merged:
        return KeyedRead(base)
    assert base.source is not None
    return MergedRead(base, combiner_of(themap.source(base.source), base))


def _live_read(query: FamilyQuery, part: Part) -> LiveRead:
    return LiveRead(
        part.layer, part.live_from_ms, part.to_ms, query.keys,
        parts=part.layer.merged, partitions=part.partitions,
    )  # fmt: skip


def _is_behind(base_layer: Layer, parts: Iterable[Part], base: LiveRows) -> bool:
    coarse = [part.to_ms for part in parts if part.layer is not base_layer]
    return bool(coarse) and are_behind(base, max(coarse))
