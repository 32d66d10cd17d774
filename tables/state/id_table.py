"""Remembered ids: hashes of one source partition's event ids, in log order, that show duplicates.

    blocks   high low until | high low until | ...    one a delta, joined up as they pile up
             ^ forgotten first                  ^ the newest
    filter   one word for each id: nearly every new id is known to be new from it alone

An id is forgotten when stream time reaches its ``until``, or when ``ids_max`` more are remembered
after it (docs/formats/journal.md rule 17). A forgotten id may lie here for a while: the caller that
finds an id applies the rule.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import polars as pl
from xxhash import xxh3_128_digest

from tables.state.block import Block, TupleRows, decode_block
from tables.state.block_table import BlockTable

IDS = ".ids"
"""The table's name, which no layer can have, and that of its blocks in deltas and stores."""

HASH = {"high": pl.UInt64(), "low": pl.UInt64()}
"""The columns of a hash, 128 bits. Among n remembered ids, a new one has the hash of another with
probability n / 2^128: with two million ids and a million events a second, once in 10^18 years."""

JOIN_ROWS = (64, 1_024, 16_384, 262_144)
"""Blocks at the end that are smaller than one of these are joined when there are JOIN_BLOCKS; so a
row is joined four times at most, and a search reads a small number of blocks."""

JOIN_BLOCKS = 16
SURPLUS_SHARE = 4
"""``ids_max`` divided by this is the surplus of ids that may lie here."""

_MASKS = 65_536
_MASK_BITS = 8
_WORDS_MIN = 1_024


def hash_ids(ids: pl.Series) -> pl.DataFrame:
    """Return the hash of each id text: XXH3-128 of its UTF-8, the same everywhere and for ever."""
    data = b"".join([xxh3_128_digest(text.encode()) for text in ids.to_list()])
    shape = pl.Array(pl.UInt64, 2 * len(ids))
    halves = pl.Series([data]).bin.reinterpret(dtype=shape, endianness="big").explode()
    return halves.to_frame("half").select(
        high=pl.col("half").gather_every(2), low=pl.col("half").gather_every(2, 1)
    )


class RememberedId(NamedTuple):
    """The newest of an id's rows: ``until``, and its ``row`` from the end, -1 for the last."""

    until: int
    row: int


class IdTable(BlockTable):
    """The remembered ids of one source partition: rows in log order."""

    def __init__(self, ids_max: int) -> None:
        super().__init__(IDS, HASH | {"until": pl.Int64()})
        self.ids_max = ids_max
        self._filter: _Filter | None = None
        self._orders: dict[int, pl.DataFrame] = {}

    def add(self, data: bytes, version: int, rows: pl.DataFrame | TupleRows | None = None) -> None:
        """Remember a delta's ids, which come after all others; their version says nothing."""
        del version
        frame = rows if isinstance(rows, pl.DataFrame) else decode_block(data, self._stored)
        self._put(Block(frame), -1, data)
        if self._filter is not None and not self._filter.add(frame):
            self._filter = None
        self._join()

    def _loaded(self, block: Block, rows: pl.DataFrame) -> None:
        del block, rows
        self._filter = None
        self._orders.clear()

    def clear(self) -> None:
        """Forget all ids."""
        super().clear()
        self._filter = None

    def keep(self, ids: int) -> None:
        """Forget all but the newest ``ids`` ids."""
        self.forget_oldest(max(0, self.rows - ids))

    def forget_oldest(self, ids: int) -> None:
        """Forget the oldest ``ids`` ids."""
        rows = ids
        for sequence, block in list(self._blocks.items()):
            if rows < block.height:
                if rows > 0:
                    self._swap(sequence, block.frame[rows:])
                return
            self._drop(sequence)
            rows -= block.height

    def forgettable(self, stream_time_ms: int) -> int:
        """Return how many of the oldest ids no event after this stream time needs."""
        expired = 0
        for block in self._blocks.values():
            if cast("int", block.frame["until"].max()) > stream_time_ms:
                break
            expired += block.height
        surplus = self.rows - self.ids_max
        return max(expired, surplus) if surplus > self.ids_max // SURPLUS_SHARE else expired

    def find(self, hashes: pl.DataFrame) -> dict[int, RememberedId]:
        """Return the newest row of each hash that is here, by the hash's row in ``hashes``."""
        if self._filter is None:
            self._filter = _filter_of(self._blocks.values(), self.rows)
        found: dict[int, RememberedId] = {}
        is_near = self._filter.may_have(hashes)
        if not is_near.any():
            return found
        wanted = hashes.select(*HASH).with_row_index("number").filter(is_near)
        after = 0
        for sequence in reversed(self._blocks):
            if not wanted.height:
                break
            block = self._blocks[sequence]
            after += block.height
            hits = self._rows_of(sequence, wanted)
            if hits is None:
                continue
            untils = block.frame["until"].gather(hits["row"])
            for number, row, until in zip(hits["number"], hits["row"], untils, strict=True):
                found[number] = RememberedId(until, row - after)
            wanted = wanted.join(hits, on="number", how="anti")
        return found

    def prepare(self) -> None:
        """Make the indexes of searches, which takes seconds if millions are remembered."""
        self._filter = _filter_of(self._blocks.values(), self.rows)
        for sequence in self._blocks:
            self._order_of(sequence)

    def merge_ahead(
        self, rows: pl.DataFrame | TupleRows, version: int
    ) -> Callable[[], _Filter] | None:
        """Return the maker of a larger filter, None if these ids have room in this one."""
        del version
        if self._filter is None or self._filter.has_room(rows.height):
            return None
        return functools.partial(_filter_of, list(self._blocks.values()), self.rows + rows.height)

    def commit_ahead(self, made: _Filter) -> None:
        """Take a larger filter."""
        self._filter = made

    def _join(self) -> None:
        """Join small blocks at the end, in their order."""
        for rows_max in JOIN_ROWS:
            tail: list[int] = []
            for sequence in reversed(self._blocks):
                if self._blocks[sequence].height >= rows_max:
                    break
                tail.insert(0, sequence)
            if len(tail) >= JOIN_BLOCKS:
                rows = pl.concat([self._blocks[one].frame for one in tail], rechunk=True)
                for sequence in tail[1:]:
                    self._drop(sequence)
                self._swap(tail[0], rows)

    def _swap(self, sequence: int, rows: pl.DataFrame) -> None:
        super()._swap(sequence, rows)
        self._orders.pop(sequence, None)

    def _drop(self, sequence: int) -> None:
        super()._drop(sequence)
        self._orders.pop(sequence, None)

    def _order_of(self, sequence: int) -> pl.DataFrame:
        order = self._orders.get(sequence)
        if order is None:
            block = self._blocks[sequence].frame
            order = (
                block.select("high")
                .with_row_index("row")
                .sort("high", maintain_order=True, multithreaded=False)
            )
            self._orders[sequence] = order
        return order

    def _rows_of(self, sequence: int, wanted: pl.DataFrame) -> pl.DataFrame | None:
        """Return ``number`` and newest ``row`` of those hashes that a block has, None for none."""
        block = self._blocks[sequence].frame
        order = self._order_of(sequence)
        first = order["high"].search_sorted(wanted["high"], side="left")
        stop = order["high"].search_sorted(wanted["high"], side="right")
        is_near = first < stop
        if not is_near.any():
            return None
        near = wanted.with_columns(rank=pl.int_ranges(first, stop)).filter(is_near)
        near = near.explode("rank")
        rows = order["row"].gather(near["rank"])
        same = block["low"].gather(rows) == near["low"]
        hits = near.select("number", row=rows).filter(same)
        return hits.unique("number", keep="last", maintain_order=True)


class _Filter:
    """A Bloom filter of 64-bit words, eight bits of one word an id; it forgets nothing.

    With at most one id a word about one new id in 30,000 is taken for a known one (measured).
    """

    def __init__(self, ids: int) -> None:
        self._room = max(2 * ids, _WORDS_MIN)
        self._words = pl.zeros(self._room, dtype=pl.UInt64, eager=True)

    def has_room(self, ids: int) -> bool:
        """Return whether ``ids`` more ids can be added."""
        return ids <= self._room

    def add(self, hashes: pl.DataFrame) -> bool:
        """Add ids; return whether there was room for them."""
        self._room -= hashes.height
        if self._room < 0:
            return False
        missing = hashes
        while missing.height:
            word = pl.col("high") % len(self._words)
            full = missing.select(word, full=self._word().or_(_mask()))
            self._words.scatter(full["high"], full["full"])
            # If several ids share a word, only the last was written.
            got = self.may_have(missing)
            missing = missing.clear() if got.all() else missing.filter(~got)
        return True

    def may_have(self, hashes: pl.DataFrame) -> pl.Series:
        """Return which ids may have been added; the others have not."""
        return hashes.select(self._word().and_(_mask()) == _mask()).to_series()

    def _word(self) -> pl.Expr:
        return pl.lit(self._words).gather(pl.col("high") % len(self._words))


def _filter_of(blocks: Iterable[Block], ids: int) -> _Filter:
    """Return a filter of all ids of blocks, with room for as many again as ``ids``."""
    made = _Filter(ids)
    for block in blocks:
        made.add(block.frame)
    return made


def _mask() -> pl.Expr:
    return pl.lit(_masks()).gather(pl.col("low") % _MASKS)


@functools.cache
def _masks() -> pl.Series:
    """Return words of which each has up to eight bits set; they live in memory only."""
    chance = random.Random(_MASKS)  # noqa: S311 - repeatable
    bits = pl.Series([1 << bit for bit in range(64)], dtype=pl.UInt64)
    masks = pl.zeros(_MASKS, dtype=pl.UInt64, eager=True)
    for _ in range(_MASK_BITS):
        masks |= bits.gather([byte % 64 for byte in chance.randbytes(_MASKS)])
    return masks
