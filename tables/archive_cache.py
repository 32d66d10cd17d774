"""The archive's cache: rows that will never change, kept in memory up to a number of bytes.

Only what is final is kept (``tables.facts``), so nothing here ever expires or has to be told of a
change; the least recently used goes when there is no room. An entry is what one key filter finds in
one bucket of windows, of the part of the bucket that was final:

    layer, key filter, bucket  ->  rows of windows that start in [from, to)

A process runs one revision of the map, and its entries die with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections import OrderedDict
from collections.abc import Iterator

import polars as pl

from tables.archive import Archive, CellRange
from tables.archive_layout import bucket_ms
from tables.cell import no_rows, stacked
from tables.cost import QueryCost
from tables.layer import Layer, Scalar
from tables.threads import Threads

ENTRY_BYTES = 1_000
"""About what an entry takes beside its rows; a frame without rows is not nothing."""

BUCKETS_MAX = 20_000
"""A range of more is read past the cache: it would push out everything else."""

THREADS = 4

log = logging.getLogger(__name__)

Place = tuple[str, tuple[tuple[str, Scalar], ...], int]


@dataclasses.dataclass(slots=True, frozen=True)
class Entry:
    """The rows of windows of one bucket that start in ``[from_ms, to_ms)``."""

    from_ms: int
    to_ms: int
    rows: pl.DataFrame

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return ENTRY_BYTES + int(self.rows.estimated_size())


class ArchiveCache:
    """An archive, of which what is final is remembered.

    Args:
        archive: what is asked for the rest.
        bytes_max: most bytes to keep; 0 keeps nothing, and reads that are under way are shared
            all the same.
        threads: where long steps are made; those of the queries that read here, too.

    Attributes:
        threads: as given.
        bytes: how much is kept.
        hits_total: ranges that were answered from memory.
        misses_total: ranges of final rows that had to be read.
    """

    def __init__(self, archive: Archive, bytes_max: int, threads: Threads | None = None) -> None:
        self._archive = archive
        self.threads = threads or Threads(THREADS, "query")
        self._bytes_max = bytes_max
        self._entries: OrderedDict[Place, Entry] = OrderedDict()
        self._asked: dict[tuple[object, ...], asyncio.Task[pl.DataFrame]] = {}
        self.bytes = 0
        self.hits_total = 0
        self.misses_total = 0

    @property
    def entries(self) -> int:
        """How many ranges are kept."""
        return len(self._entries)

    async def read(
        self, layer: Layer, cells: CellRange, *, final: bool, cost: QueryCost
    ) -> pl.DataFrame:
        """Return the archive frame of a range; see :class:`tables.archive.Archive`.

        Args:
            layer: whose rows.
            cells: which of them.
            final: whether none of them will ever change.
            cost: what it costs is added.
        """
        wide = cells.to_ms - cells.from_ms > BUCKETS_MAX * bucket_ms(layer)
        if wide or not final:
            return await self._read(layer, cells, cost)
        frames, missing = self._look_up(layer, cells)
        if missing is None:
            self.hits_total += 1
            cost.cache_hits += 1
        else:
            self.misses_total += 1
            cost.cache_misses += 1
            from_ms, to_ms = missing
            wanted = dataclasses.replace(cells, from_ms=from_ms, to_ms=to_ms)
            rows = await self._once(layer, wanted, cost)
            start = pl.col("window_start")
            outside = (start < from_ms) | (start >= to_ms)
            frames = [*(frame.filter(outside) for frame in frames), rows]
        return stacked(frames, no_rows(layer))

    def _look_up(
        self, layer: Layer, cells: CellRange
    ) -> tuple[list[pl.DataFrame], tuple[int, int] | None]:
        """Return what is known of a range, and the span in which something is not."""
        frames = []
        from_ms: int | None = None
        to_ms = 0
        for place, start, stop in _buckets(layer, cells):
            entry = self._entries.get(place)
            if entry is None or entry.from_ms > start or entry.to_ms < stop:
                from_ms = start if from_ms is None else from_ms
                to_ms = stop
            if entry is not None:
                self._entries.move_to_end(place)
                inside = start <= entry.from_ms and entry.to_ms <= stop
                frames.append(entry.rows if inside else _within(entry.rows, start, stop))
        return frames, None if from_ms is None else (from_ms, to_ms)

    async def _once(self, layer: Layer, cells: CellRange, cost: QueryCost) -> pl.DataFrame:
        """Read a range and keep it; who asks for the same one meanwhile waits for this read."""
        what = (layer.name, _filter(cells), cells.from_ms, cells.to_ms, cells.rows_max)
        task = self._asked.get(what)
        if task is None:
            task = asyncio.create_task(self._fetch(layer, cells, cost))
            self._asked[what] = task
            task.add_done_callback(functools.partial(self._done, what))
        # Who asked first may give up; the others still want it.
        return await asyncio.shield(task)

    def _done(self, what: tuple[object, ...], task: asyncio.Task[pl.DataFrame]) -> None:
        del self._asked[what]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Those who still wait are told; where all have given up, nobody is.
            log.debug("a read of the archive failed: %s", error)

    async def _fetch(self, layer: Layer, cells: CellRange, cost: QueryCost) -> pl.DataFrame:
        rows = await self._read(layer, cells, cost)
        for place, start, stop in _buckets(layer, cells) if self._bytes_max else ():
            self._keep(place, Entry(start, stop, _within(rows, start, stop)))
        return rows

    async def _read(self, layer: Layer, cells: CellRange, cost: QueryCost) -> pl.DataFrame:
        rows = await self._archive.read(layer, cells, cost)
        cost.archive_reads += 1
        cost.archive_bytes += int(rows.estimated_size())
        columns = no_rows(layer).columns
        return rows if rows.columns == columns else rows[columns]

    def _keep(self, place: Place, entry: Entry) -> None:
        known = self._entries.pop(place, None)
        if known is not None:
            self.bytes -= known.bytes
            entry = _joined(known, entry)
        if entry.bytes > self._bytes_max:
            return
        self._entries[place] = entry
        self.bytes += entry.bytes
        while self.bytes > self._bytes_max:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.bytes


def _joined(known: Entry, entry: Entry) -> Entry:
    """Return both where they touch or overlap, else the one of more time."""
    if entry.from_ms > known.to_ms or known.from_ms > entry.to_ms:
        return max(known, entry, key=lambda one: one.to_ms - one.from_ms)
    start = pl.col("window_start")
    rest = known.rows.filter((start < entry.from_ms) | (start >= entry.to_ms))
    return Entry(
        min(known.from_ms, entry.from_ms),
        max(known.to_ms, entry.to_ms),
        # One copy of its own, so that no slice keeps a larger frame in memory.
        pl.concat([rest, entry.rows], rechunk=True),
    )


def _filter(cells: CellRange) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted(cells.key.items()))


def _buckets(layer: Layer, cells: CellRange) -> Iterator[tuple[Place, int, int]]:
    """Yield the buckets of a range, each with the part of it that is in the range."""
    size = bucket_ms(layer)
    named = _filter(cells)
    for bucket in range(cells.from_ms // size, -(-cells.to_ms // size)):
        start, stop = max(cells.from_ms, bucket * size), min(cells.to_ms, (bucket + 1) * size)
        yield (layer.name, named, bucket), start, stop


def _within(rows: pl.DataFrame, from_ms: int, to_ms: int) -> pl.DataFrame:
    start = rows["window_start"]
    return rows.filter((start >= from_ms) & (start < to_ms))
