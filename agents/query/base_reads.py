"""The parts of an answer, and how those of a family's base layer are read at one position.

    keyed:   base and coarser tables                 in one round
    merged:  merge stage and coarser tables, then    in two rounds, so that combiners have sealed
             combiners                               all that the merge stage has settled

A keyed base folds events into its own tables. A merged one folds them into its combiners', and the
merge stage settles the cells that those send; its open windows are read in parts of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import polars as pl

from tables.model.layer import Layer, Map, combiner_of
from tables.model.window import NEVER_ENDS_MS
from tables.query.answer import are_behind, are_torn, cells_of, matching, merged_cells_of, rows_of
from tables.query.cover import Segment
from tables.query.facts import KnownFacts
from tables.query.family import FamilyQuery, KeyFilter
from tables.query.live import LiveRead, LiveRows
from tables.state.cell import later_of, no_rows, stacked, whole_only

KEYS_MAX = 64
"""Keys up to which the archive is read key by key; for more keys, windows are read whole."""

Ask = Callable[[list[LiveRead]], Awaitable[list[LiveRows]]]
"""Asks the owners of several reads at once."""


@dataclasses.dataclass(slots=True)
class Part:
    """The segments of one layer, in order, and the rows that were read for them.

    Attributes:
        archived_ms: the end of its windows that are known to be final; later windows are read
            live, as one range.
        partitions: the partitions of its input that can have the keys, None for all.
        live: the rows of owners; for a merged layer, its contributions.
        combined: the rows of its combiners.
        final: archive frames of windows that are final.
        evicted: archive frames of windows that were read from live tables too.
    """

    layer: Layer
    segments: list[Segment]
    archived_ms: int
    partitions: frozenset[int] | None
    live: LiveRows = dataclasses.field(default_factory=LiveRows)
    combined: LiveRows = dataclasses.field(default_factory=LiveRows)
    final: list[pl.DataFrame] = dataclasses.field(default_factory=list)
    evicted: list[pl.DataFrame] = dataclasses.field(default_factory=list)

    @property
    def live_height(self) -> int:
        """The number of rows that were read from live tables."""
        return sum(frame.height for frame in (*self.live.rows, *self.combined.rows))

    @property
    def archived_height(self) -> int:
        """The number of rows that were read from the archive."""
        return sum(frame.height for frame in (*self.final, *self.evicted))

    @property
    def to_ms(self) -> int:
        """The end of the last segment."""
        return self.segments[-1].to_ms

    @property
    def live_from_ms(self) -> int:
        """The start of the range that is read live; the end of the part if it is final."""
        live = (one.from_ms for one in self.segments if one.to_ms > self.archived_ms)
        return max(next(live, self.to_ms), self.archived_ms)

    @property
    def is_final(self) -> bool:
        """Whether all of it is in the archive."""
        return self.archived_ms >= self.to_ms

    @property
    def lacks_owners(self) -> bool:
        """Whether some owner of live cells did not answer."""
        asked = self.partitions or frozenset(range(self.layer.partitions))
        return not (self.is_final or asked <= self.live.facts.keys())

    def ranges(self, from_ms: int, to_ms: int) -> list[tuple[int, int]]:
        """Return the parts of the segments that lie in a range."""
        cut = ((max(one.from_ms, from_ms), min(one.to_ms, to_ms)) for one in self.segments)
        return [(start, stop) for start, stop in cut if start < stop]

    def inside(self, rows: LiveRows) -> LiveRows:
        """Return the live rows that lie in the segments, from those of the whole range."""
        if len(self.segments) == 1:
            return rows
        starts = pl.Series([one.from_ms for one in self.segments])
        stops = pl.Series([one.to_ms for one in self.segments])
        found = []
        for frame in rows.rows:
            windows = frame["window_start"]
            # The last segment that begins before a row or with it, if there is one.
            at = starts.search_sorted(windows, side="right").cast(pl.Int64) - 1
            found.append(frame.filter((at >= 0) & (windows < stops[at.clip(lower_bound=0)])))
        return LiveRows(rows.facts, found)


class BaseRead:
    """Reads a base layer, and the coarser ones with it.

    Attributes:
        base: the base layer.
        combiner: that of a merged base, None for a keyed one.
        folded: the layer whose tables events are folded into; an answer has their positions.
    """

    def __init__(self, themap: Map, base: Layer) -> None:
        self.base = base
        self.combiner: Layer | None = None
        if base.merged:
            assert base.source is not None
            self.combiner = combiner_of(themap.source(base.source), base)
        self.folded = self.combiner or base

    def whole(self, known: KnownFacts) -> dict[str, int]:
        """Return, by column, the time from which on windows of the base are known to be whole."""
        whole = known.whole(self.folded)
        if self.combiner is None:
            return whole
        # The merge stage may have begun to keep a measure later.
        merged = known.whole(self.base).items()
        return later_of(whole, {name: ms for name, ms in merged if ms < NEVER_ENDS_MS})

    async def read(
        self, ask: Ask, query: FamilyQuery, parts: Sequence[Part], facts: Sequence[LiveRead]
    ) -> LiveRows:
        """Give parts their live rows; return the facts of the folded layer."""
        first = [
            LiveRead(
                part.layer, part.live_from_ms, part.to_ms, query.keys,
                parts=part.layer.merged, partitions=part.partitions,
            )
            for part in parts
        ]  # fmt: skip
        first += facts
        combined = [part for part in parts if self.combiner and part.layer is self.base]
        then = [
            LiveRead(self.folded, part.live_from_ms, part.to_ms, query.keys) for part in combined
        ]
        then.append(LiveRead(self.folded))
        if self.combiner is None:
            found = await ask(first + then)
        else:
            found = await ask(first)
            found += await ask(then)
        for part, rows in zip(parts, found, strict=False):
            part.live = rows
        for part, rows in zip(combined, found[len(first) :], strict=False):
            part.combined = rows
        return found[-1]

    def are_torn(self, parts: Iterable[Part], folded: LiveRows) -> bool:
        """Return whether an owner is behind coarser cells, or merge stage and combiners differ."""
        coarse = [part.to_ms for part in parts if part.layer is not self.base]
        if coarse and are_behind(folded, max(coarse)):
            return True
        return self.combiner is not None and any(
            are_torn(self.base, part.live, part.combined, part.live_from_ms, part.to_ms)
            for part in parts
            if part.layer is self.base and not part.is_final
        )

    def rows(
        self, query: FamilyQuery, parts: Iterable[Part], whole: Mapping[str, int]
    ) -> pl.DataFrame:
        """Return the rows that were asked for, a cell frame of ``query.rows``; for any thread."""
        cells = [(part.layer, self._cells(query.keys, part)) for part in parts]
        return whole_only(rows_of(query, cells), whole)

    def _cells(self, keys: KeyFilter, part: Part) -> pl.DataFrame:
        layer, live = part.layer, part.inside(part.live)
        evicted, final = (_asked_for(keys, layer, some) for some in (part.evicted, part.final))
        if self.combiner is None or layer is not self.base:
            return cells_of(layer, live, evicted, final)
        return merged_cells_of(layer, live, part.inside(part.combined), evicted, final)


def _asked_for(keys: KeyFilter, layer: Layer, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    rows = stacked(frames, no_rows(layer))
    is_read_by_key = keys.is_single or keys.keys_of(layer, KEYS_MAX) is not None
    return rows if is_read_by_key else matching(layer, rows, keys)
