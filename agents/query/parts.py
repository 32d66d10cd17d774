"""Parts of an answer: the segments of a plan that are of one layer, and their rows."""

from __future__ import annotations

import dataclasses

import polars as pl

from tables.model.layer import Layer
from tables.query.cover import Segment
from tables.query.live import LiveRows

KEYS_MAX = 64
"""Keys up to which the archive is read key by key; for more keys, windows are read whole."""


@dataclasses.dataclass(slots=True)
class Part:
    """The segments of one layer, in order, and the rows that were read for them.

    Attributes:
        layer: the layer.
        segments: ranges of its windows.
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
        """How many rows of live tables were read."""
        return sum(frame.height for frame in (*self.live.rows, *self.combined.rows))

    @property
    def archived_height(self) -> int:
        """How many rows of the archive were read."""
        return sum(frame.height for frame in (*self.final, *self.evicted))

    @property
    def to_ms(self) -> int:
        """The end of the last segment."""
        return self.segments[-1].to_ms

    @property
    def live_from_ms(self) -> int:
        """The start of the range that is read live."""
        first = next(one for one in self.segments if one.to_ms > self.archived_ms)
        return max(first.from_ms, self.archived_ms)

    @property
    def is_final(self) -> bool:
        """Whether all of it is in the archive."""
        return self.archived_ms >= self.to_ms

    @property
    def lacks_owners(self) -> bool:
        """Whether some owner of live cells did not answer."""
        if self.is_final:
            return False
        asked = self.partitions or frozenset(range(self.layer.partitions))
        return not asked <= self.live.facts.keys()

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
