"""Layer tables: the cells of one layer and source partition, as lazily merged blocks.

    delta block, delta block, ...  -> merged when TAIL_BLOCKS_MAX pile up, or for a read
    | old, large |  | newer |  | n |   sizes fall by half, so a row is merged O(log n) times

A ``FoldTable`` holds partial cells of a base layer, which add up; ``tables.state.rollup_table`` has
the table of a coarser layer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import polars as pl

from tables.model.layer import Layer, Scalar
from tables.model.window import NEVER_ENDS_MS, START_MS_MIN
from tables.state.block import (
    Block,
    TupleRows,
    conform,
    decode_rows,
    encode_block,
    frames_of,
    is_among,
)
from tables.state.block_table import BlockTable
from tables.state.cell import cell_schema, merge_rows, whole_only
from tables.state.small_merge import SMALL_ROWS_MAX, columns_of, small_cells

TAIL_BLOCKS_MAX = 8
TAIL_ROWS_MAX = 256
"""Blocks that are smaller than these together stay longer: a merge costs as much as a hundred rows
even if it has fewer, and small blocks are read as one frame. With 1,000, an open loop of 200,000
events a second had a p99 of 63 ms instead of 32: many frames cost much to read."""

SMALL_TAIL_MAX = 64

AHEAD_ROWS_MIN = 5_000
"""Rows from which on a merge is made in a thread. 6,000 rows take 2 ms, 25,000 take 12."""

CellsJob = Callable[[], pl.DataFrame]
"""Makes a cell frame, once, in any thread: blocks never change."""


@dataclasses.dataclass(slots=True, frozen=True)
class Merge:
    """A merge: the numbers of the replaced blocks, and the new block with its bytes."""

    replaced: list[int]
    block: Block
    data: bytes

    @classmethod
    def of(cls, replaced: list[int], rows: pl.DataFrame) -> Merge:
        """Return the merge that replaces blocks by ``rows``."""
        return cls(replaced, Block(rows), encode_block(rows))


class LayerTable(BlockTable):
    """The common part of all kinds: cells by window, versions by window, merges, eviction.

    Attributes:
        versions: by window start, the version of the delta that last changed one of its cells.
        touched: the windows of the block that was added last.
        oldest: the start of the oldest window that has cells, None if no window has any.
        began: by accumulator that the layer got later, the start from which windows have all of it.
            Cells of other windows leave the table with null there.
    """

    def __init__(self, layer: Layer, stored: Mapping[str, pl.DataType]) -> None:
        super().__init__(layer.name, stored)
        self.layer = layer
        self.versions: dict[int, int] = {}
        self.touched: frozenset[int] = frozenset()
        self.oldest: int | None = None
        self.began: Mapping[str, int] = {}
        self._collected: tuple[dict[int, int], weakref.ref[CellsJob]] | None = None
        self._ahead: Merge | None = None
        self._cell = [*layer.key_columns, "window_start"]
        self._values = [*(acc.column for acc in layer.accumulators), "version"]

    @property
    def delta_columns(self) -> list[str]:
        """The columns of a delta's block, in order."""
        return list(self._delta)

    def bytes_of(self, windows: Collection[int]) -> int:
        """Return the approximate bytes of memory of the rows of these windows."""
        if not windows:
            return 0
        return int(sum(block.bytes_of(windows) for block in self._blocks.values()))

    def add(self, data: bytes, version: int, rows: pl.DataFrame | TupleRows | None = None) -> None:
        """Add a delta's block; its rows get ``version``. Its maker may pass the ``rows``."""
        if rows is None:
            rows = decode_rows(data, self._delta)
        elif isinstance(rows, pl.DataFrame):
            rows = conform(rows, self._delta)
        block = Block(rows, version)
        self._notice(block)
        self._put(block, version, data)
        self.touched = block.windows
        self.versions |= dict.fromkeys(block.windows, version)
        self._seen(block.windows)
        ahead, self._ahead = self._ahead, None
        if _is_tail_long(self._blocks):
            # After an eviction the blocks are not those that were merged ahead.
            if ahead is not None and ahead.replaced == self._due_for_merge(self._blocks):
                self._replace(ahead)
            else:
                self.merge()

    def merge(self) -> None:
        """Merge the newest blocks, and older ones that are due, into one."""
        self._replace(self._merge_of(self._blocks)())

    def merge_ahead(
        self, rows: pl.DataFrame | TupleRows, version: int
    ) -> Callable[[], Merge] | None:
        """Return the merge that adding these rows will bring, None if it is small or not due."""
        if len(self._blocks) < TAIL_BLOCKS_MAX or self.rows + rows.height < AHEAD_ROWS_MIN:
            return None
        if isinstance(rows, pl.DataFrame):
            rows = conform(rows, self._delta)
        blocks = self._blocks | {self._sequence: Block(rows, version)}
        due = self._due_for_merge(blocks)
        if not _is_tail_long(blocks) or sum(blocks[at].height for at in due) < AHEAD_ROWS_MIN:
            return None
        return self._merge_of(blocks)

    def commit_ahead(self, made: Merge) -> None:
        """Take a merge that was made, for the next :meth:`add`."""
        self._ahead = made

    def _loaded(self, block: Block, rows: pl.DataFrame) -> None:
        self._notice(block)
        newest = rows.group_by("window_start").agg(pl.col("version").max())
        for window, last in newest.iter_rows():
            self.versions[window] = max(last, self.versions.get(window, -1))
        self._seen(newest["window_start"])

    def evict(self, windows: Sequence[int]) -> None:
        """Forget all cells of these windows."""
        gone = frozenset(w for w in windows if self.versions.pop(w, None) is not None)
        if not gone:
            return
        if self.oldest in gone:
            self.oldest = min(self.versions, default=None)
        for sequence, block in list(self._blocks.items()):
            if not block.windows.isdisjoint(gone):
                rest = block.without(gone)
                self._drop(sequence)
                if rest.height:
                    self._put(Block(rest), -1, encode_block(rest))

    def clear(self) -> None:
        """Forget everything, as if no block had ever come."""
        super().clear()
        self.versions.clear()
        self.touched = frozenset()
        self.oldest = self._collected = self._ahead = None

    def forget(self, columns: Collection[str]) -> None:
        """Forget the values of these columns, as if no event had carried their fields."""
        if not columns:
            return
        self._collected = self._ahead = None
        for sequence, block in self._blocks.items():
            self._swap(sequence, conform(block.frame.drop(columns), self._stored))

    def cells(self, key: Mapping[str, Scalar] | None = None) -> pl.DataFrame:
        """Return the cell frame of all cells, or of those whose key columns have these values."""
        return self.collect_in(START_MS_MIN, NEVER_ENDS_MS, key or {})()

    def collect_in(
        self, from_ms: int, to_ms: int, key: Mapping[str, Scalar]
    ) -> Callable[[], pl.DataFrame]:
        """Return the maker of the cell frame of windows that start in ``[from_ms, to_ms)``, as now.

        ``key`` has the values of key columns; those not named match all. Any thread may call it.
        """
        matching, began = self._matching_in(from_ms, to_ms, key), dict(self.began)

        def cells() -> pl.DataFrame:
            rows = matching()
            is_small = rows.height <= SMALL_ROWS_MAX
            return whole_only(self._small_of(rows) if is_small else self._cells_of(rows), began)

        return cells

    def _matching_in(
        self, from_ms: int, to_ms: int, key: Mapping[str, Scalar]
    ) -> Callable[[], pl.DataFrame]:
        """Return a function that makes the frame of the rows in range that match ``key``."""
        found = [
            block
            for block in self._blocks.values()
            if block.windows and block.first < to_ms and block.last >= from_ms
        ]
        whole = all(from_ms <= block.first and block.last < to_ms for block in found)
        frames = frames_of(found, self._stored, key)
        return lambda: self._joined(
            [_matching(frame, from_ms, to_ms, key, whole=whole) for frame in frames]
        )

    def collect(self, windows: Collection[int]) -> CellsJob:
        """Return the maker of the cell frame of these windows, as they are now, for any thread.

        Every sink asks for the same ones, so one that is still in use is given again.
        """
        wanted = {window: self.versions.get(window, -1) for window in windows}
        if self._collected is not None and self._collected[0] == wanted:
            known = self._collected[1]()
            if known is not None:
                return known
        matching, began = self._of_windows(windows), dict(self.began)
        job = functools.cache(lambda: whole_only(self._cells_of(matching()), began))
        self._collected = wanted, weakref.ref(job)
        return job

    def rows_of(self, windows: Collection[int]) -> int:
        """Return an upper bound of the number of rows of these windows."""
        return sum(b.height for b in self._blocks.values() if not b.windows.isdisjoint(windows))

    def _cells_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the cell frame of rows that have all rows of their cells."""
        raise NotImplementedError

    def _small_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the same of at most ``SMALL_ROWS_MAX`` rows."""
        raise NotImplementedError

    def _due_for_merge(self, blocks: dict[int, Block]) -> list[int]:
        """Return the blocks that are merged next, oldest last."""
        raise NotImplementedError

    def _merge_of(self, blocks: dict[int, Block]) -> Callable[[], Merge]:
        """Return a function that merges the blocks that are due, in any thread."""
        raise NotImplementedError

    def _notice(self, block: Block) -> None:
        """Take note of the rows of a new block."""

    def _replace(self, merge: Merge) -> None:
        for sequence in merge.replaced:
            self._drop(sequence)
        if merge.block.height:
            self._put(merge.block, -1, merge.data)

    def _seen(self, windows: Iterable[int]) -> None:
        if (first := min(windows, default=None)) is not None:
            self.oldest = first if self.oldest is None else min(first, self.oldest)

    def _of_windows(self, windows: Collection[int]) -> Callable[[], pl.DataFrame]:
        """Return a function that makes the frame of the rows of windows."""
        wanted = frozenset(windows)
        found = [block for block in self._blocks.values() if not block.windows.isdisjoint(wanted)]
        is_whole = all(block.windows <= wanted for block in found)
        frames = frames_of(found, self._stored)

        def rows() -> pl.DataFrame:
            joined = self._joined(frames)
            return joined if is_whole else joined.filter(is_among(joined["window_start"], wanted))

        return rows

    def _joined(self, frames: list[pl.DataFrame]) -> pl.DataFrame:
        return pl.concat(frames) if frames else pl.DataFrame(schema=self._stored)


class FoldTable(LayerTable):
    """Partial cells of a base layer: rows of one cell add up."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, cell_schema(layer))

    def _due_for_merge(self, blocks: dict[int, Block]) -> list[int]:
        """Return the newest blocks, with older ones of up to twice their size."""
        chosen: list[int] = []
        rows = 0
        for sequence in reversed(blocks):
            height = blocks[sequence].height
            if len(chosen) >= TAIL_BLOCKS_MAX and height > 2 * rows:
                break
            chosen.append(sequence)
            rows += height
        return chosen

    def _merge_of(self, blocks: dict[int, Block]) -> Callable[[], Merge]:
        chosen = self._due_for_merge(blocks)
        frames = frames_of([blocks[sequence] for sequence in chosen], self._stored)
        return lambda: Merge.of(chosen, self._cells_of(self._joined(frames)))

    def _cells_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        # Columns are in the order of a cell frame.
        return merge_rows(rows, self._cell, self.layer.accumulators)

    def _small_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        keys = columns_of(rows, self._cell)
        if len(set(zip(*keys, strict=True))) == rows.height:
            return rows
        return small_cells(self.layer, keys, columns_of(rows, self._values))


def _matching(
    rows: pl.DataFrame, from_ms: int, to_ms: int, key: Mapping[str, Scalar], *, whole: bool
) -> pl.DataFrame:
    """Return rows in range; comparing columns costs a tenth of a query that does the same."""
    masks = [rows[column] == value for column, value in key.items()]
    if not whole:
        starts = rows["window_start"]
        masks += [starts >= from_ms, starts < to_ms]
    if not masks:
        return rows
    mask = functools.reduce(operator.and_, masks)
    return rows.filter(mask) if mask.any() else rows.clear()


def _is_tail_long(blocks: dict[int, Block]) -> bool:
    """Return whether blocks are to be merged; it follows from their sizes alone."""
    if len(blocks) <= TAIL_BLOCKS_MAX:
        return False
    if len(blocks) > SMALL_TAIL_MAX:
        return True
    newest = itertools.islice(reversed(blocks.values()), TAIL_BLOCKS_MAX + 1)
    return sum(block.height for block in newest) > TAIL_ROWS_MAX
