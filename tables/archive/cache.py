"""The archive's cache: rows that will never change, kept in memory up to a number of bytes.

Only final rows are kept (``tables.query.facts``), so the cache need not hear of changes; the
least recently used goes when there is no room. The rows of one key filter are kept in spans of
time, which do not overlap and have their rows in order of windows, so that a range is a slice:

    layer, key filter  ->  [from, to) rows | [from, to) rows |     hole     | [from, to) rows

Readers leave out rows that have expired. A process runs one revision of the map, and its spans die
with it.
"""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import logging
from collections import OrderedDict
from typing import cast

import polars as pl

from tables.archive.protocol import Archive, CellRange
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveDamagedError
from tables.model.layer import Layer, Scalar
from tables.state.cell import in_order, no_rows, stacked
from tables.threads import THREADS, Threads, ended

SPAN_BYTES = 1_000
"""The approximate bytes of a span beside its rows, with its entry among the others."""

COLUMN_BYTES = 600
"""Bytes of a frame's column beside its values: measured were 210 for one row, 570 for 32."""

SPAN_ROWS_MAX = 16_384
"""Rows of a span, unless one window has more: they are dropped together to make room."""

JOINED_ROWS_MAX = 4_096
"""Rows up to which neighbours become one span; to copy them costs some 0.1 ms."""

AT_ONCE_ROWS_MAX = 2_000
"""Rows that are cut into spans faster than a thread begins."""

log = logging.getLogger(__name__)

CacheKey = tuple[str, tuple[tuple[str, Scalar], ...]]


@dataclasses.dataclass(slots=True, frozen=True, eq=False)
class Span:
    """All rows of windows that start in ``[from_ms, to_ms)``, in order of their windows."""

    from_ms: int
    to_ms: int
    rows: pl.DataFrame

    @property
    def bytes(self) -> int:
        """The approximate bytes of memory that it takes."""
        if self.rows.is_empty():
            return SPAN_BYTES
        columns = self.rows.width * self.rows.n_chunks() * COLUMN_BYTES
        return SPAN_BYTES + columns + int(self.rows.estimated_size())

    def within(self, from_ms: int, to_ms: int) -> pl.DataFrame:
        """Return the rows of windows that start in a range."""
        if (from_ms <= self.from_ms and self.to_ms <= to_ms) or self.rows.is_empty():
            return self.rows
        starts = self.rows["window_start"]
        first, stop = (starts.search_sorted(time, side="left") for time in (from_ms, to_ms))
        return self.rows.slice(first, stop - first)


@dataclasses.dataclass(slots=True)
class _Asked:
    """A read that is under way, and how many wait for it."""

    task: asyncio.Task[pl.DataFrame]
    waiting: int = 0


class ArchiveCache:
    """An archive with a cache of its final rows.

    It keeps ``bytes_max`` bytes at most; with 0 it keeps nothing, and reads that are under way are
    shared all the same.

    Attributes:
        threads: run long steps, as those of the queries that read here.
        hits_total: ranges that were answered from memory.
        misses_total: ranges of final rows that had to be read.
        damaged_total: reads that met damaged rows.
    """

    def __init__(self, archive: Archive, bytes_max: int, threads: Threads | None = None) -> None:
        self._archive = archive
        self.threads = threads or Threads(THREADS, "query")
        self._bytes_max = bytes_max
        self._spans: dict[CacheKey, list[Span]] = {}
        self._recent: OrderedDict[Span, CacheKey] = OrderedDict()
        self._asked: dict[tuple[object, ...], _Asked] = {}
        self.bytes = 0
        self.hits_total = 0
        self.misses_total = 0
        self.damaged_total = 0

    @property
    def entries(self) -> int:
        """The number of spans that are kept."""
        return len(self._recent)

    async def read(
        self, layer: Layer, cells: CellRange, *, final: bool, cost: QueryCost
    ) -> pl.DataFrame:
        """Return the rows in range, ``final`` if none will ever change; see the protocol."""
        if not final:
            return await self._read(layer, cells, cost)
        known = self._known(_cache_key(layer, cells), cells.from_ms, cells.to_ms)
        for span in known:
            self._recent.move_to_end(span)
        hole = _hole(known, cells.from_ms, cells.to_ms)
        if hole is None:
            self.hits_total += 1
            cost.cache_hits += 1
        else:
            self.misses_total += 1
            cost.cache_misses += 1
            from_ms, to_ms = hole
            wanted = dataclasses.replace(cells, from_ms=from_ms, to_ms=to_ms)
            rows = await self._once(layer, wanted, cost)
            # Spans inside of it were read again.
            known = [one for one in known if one.to_ms <= from_ms or one.from_ms >= to_ms]
            known.append(Span(from_ms, to_ms, rows))
        return stacked((one.within(cells.from_ms, cells.to_ms) for one in known), no_rows(layer))

    def _known(self, key: CacheKey, from_ms: int, to_ms: int) -> list[Span]:
        """Return the spans that overlap a range, in order of time."""
        spans = self._spans.get(key, [])
        first = bisect.bisect_right(spans, from_ms, key=lambda span: span.to_ms)
        stop = bisect.bisect_left(spans, to_ms, key=lambda span: span.from_ms)
        return spans[first:stop]

    async def _once(self, layer: Layer, cells: CellRange, cost: QueryCost) -> pl.DataFrame:
        """Read a range and keep it; who asks for the same one meanwhile waits for this read.

        The read continues while anybody waits. The last who gives it up waits until it has ended.
        """
        request = (_cache_key(layer, cells), cells.from_ms, cells.to_ms, cells.rows_max)
        asked = self._asked.get(request)
        if asked is None:
            asked = _Asked(asyncio.create_task(self._fetch(layer, cells, cost)))
            self._asked[request] = asked
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.task)
        finally:
            asked.waiting -= 1
            if not asked.waiting:
                del self._asked[request]
                if not asked.task.done():
                    asked.task.cancel()
                    await ended(asked.task)

    async def _fetch(self, layer: Layer, cells: CellRange, cost: QueryCost) -> pl.DataFrame:
        rows = await self._read(layer, cells, cost)
        # A range that takes half of the room would push out everything else.
        if self._bytes_max > 0 and rows.estimated_size() <= self._bytes_max // 2:
            span = Span(cells.from_ms, cells.to_ms, rows)
            if rows.height <= AT_ONCE_ROWS_MAX:
                spans = _cut(span)
            else:
                spans = await self.threads.run(_cut, span)
            for one in spans:
                self._keep(_cache_key(layer, cells), one)
        return rows

    async def _read(self, layer: Layer, cells: CellRange, cost: QueryCost) -> pl.DataFrame:
        try:
            rows = await self._archive.read(layer, cells, cost)
        except ArchiveDamagedError as error:
            self.damaged_total += 1
            error.where = f"layer {layer.name}, windows from {cells.from_ms} to {cells.to_ms} ms"
            raise
        cost.archive_reads += 1
        cost.archive_bytes += int(rows.estimated_size())
        # An empty frame takes some KiB too, so all share one.
        nothing = no_rows(layer)
        if rows.is_empty():
            return nothing
        return rows if rows.columns == nothing.columns else rows[nothing.columns]

    def _keep(self, key: CacheKey, span: Span) -> None:
        """Keep a span instead of those that it overlaps, as one with small neighbours."""
        for known in self._known(key, span.from_ms, span.to_ms):
            self._forget(known, key)
        for known in self._known(key, span.from_ms - 1, span.to_ms + 1):
            if known.rows.height + span.rows.height <= JOINED_ROWS_MAX:
                self._forget(known, key)
                span = _joined(*sorted((known, span), key=lambda one: one.from_ms))
        if span.bytes > self._bytes_max:
            return
        bisect.insort(self._spans.setdefault(key, []), span, key=lambda one: one.from_ms)
        self._recent[span] = key
        self.bytes += span.bytes
        while self.bytes > self._bytes_max:
            self._forget(*next(iter(self._recent.items())))

    def _forget(self, span: Span, key: CacheKey) -> None:
        del self._recent[span]
        self.bytes -= span.bytes
        spans = self._spans[key]
        del spans[bisect.bisect_left(spans, span.from_ms, key=lambda one: one.from_ms)]
        if not spans:
            del self._spans[key]


def _cache_key(layer: Layer, cells: CellRange) -> CacheKey:
    return layer.name, tuple(sorted(cells.key.items()))


def _hole(known: list[Span], from_ms: int, to_ms: int) -> tuple[int, int] | None:
    """Return the span of a range that is not wholly in the cache, None if all of it is."""
    ends = [from_ms, *(span.to_ms for span in known)]
    starts = [*(span.from_ms for span in known), to_ms]
    holes = [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]
    return (holes[0][0], holes[-1][1]) if holes else None


def _cut(span: Span) -> list[Span]:
    """Return a span, whose rows may have any order, as spans of ``SPAN_ROWS_MAX`` rows in order."""
    if span.rows.is_empty():
        return [span]
    rows = span.rows
    numbered = rows.select("window_start").with_row_index("row")
    order = in_order(numbered, ["window_start"])["row"]
    # Copies, which take no more than their rows: frames may have room for more, and slices keep
    # all that they are of in memory.
    if rows.height <= SPAN_ROWS_MAX:
        return [Span(span.from_ms, span.to_ms, rows[order])]
    starts = rows["window_start"][order]
    found = []
    first, from_ms = 0, span.from_ms
    while first < rows.height:
        stop, to_ms = first + SPAN_ROWS_MAX, span.to_ms
        if stop < rows.height:
            # A window lies in one span, which may have to be larger for it.
            to_ms = cast("int", starts[stop])
            if to_ms == starts[first]:
                stop = starts.search_sorted(to_ms, side="right")
                to_ms = span.to_ms if stop == rows.height else cast("int", starts[stop])
            else:
                stop = starts.search_sorted(to_ms, side="left")
        found.append(Span(from_ms, to_ms, rows[order[first:stop]]))
        first, from_ms = stop, to_ms
    return found


def _joined(before: Span, after: Span) -> Span:
    """Return two neighbours as one span with a copy of its rows."""
    frames = [one.rows for one in (before, after) if one.rows.height]
    rows = pl.concat(frames, rechunk=True) if len(frames) > 1 else [*frames, before.rows][0]
    return Span(before.from_ms, after.to_ms, rows)
