"""Tables of blocks: rows in numbered blocks that never change, oldest first, and their writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from tables.state.block import Block, TupleRows, decode_block, encode_block


@dataclasses.dataclass(slots=True, frozen=True)
class BlockWrite:
    """A block to put into the local store, or to delete if data is None.

    ``version`` is that of all rows, or -1 if the block itself has the column.
    """

    layer: str
    sequence: int
    version: int
    data: bytes | None


class BlockTable:
    """The part of a table that deltas, local store and snapshots need.

    Attributes:
        name: the name of its blocks in deltas and stores.
        writes: the blocks that the local store lacks; the owner empties the list with every save.
    """

    def __init__(self, name: str, stored: Mapping[str, pl.DataType]) -> None:
        self.name = name
        self.writes: list[BlockWrite] = []
        self._stored = dict(stored)
        self._delta = {name: kind for name, kind in stored.items() if name != "version"}
        self._blocks: dict[int, Block] = {}
        self._sequence = 0

    @property
    def rows(self) -> int:
        """Rows over all blocks: of a layer, an upper bound of the cells held."""
        return sum(block.height for block in self._blocks.values())

    @property
    def blocks(self) -> dict[int, pl.DataFrame]:
        """The blocks by sequence number, oldest first, with all columns that are stored."""
        return {sequence: block.frame for sequence, block in self._blocks.items()}

    def add(self, data: bytes, version: int, rows: pl.DataFrame | TupleRows | None = None) -> None:
        """Add a delta's block; its rows get ``version``. Its maker may pass the ``rows``."""
        raise NotImplementedError

    def load(self, sequence: int, version: int, data: bytes) -> None:
        """Take a block back from the local store or a snapshot, whole or piece by piece."""
        if version < 0:
            rows = decode_block(data, self._stored)
        else:
            rows = decode_block(data, self._delta).with_columns(version=pl.lit(version, pl.Int64))
        known = self._blocks.get(sequence)
        block = Block(rows if known is None else pl.concat([known.frame, rows]))
        # Oldest first, however the store lists them: the choice of merges, and the last bits of
        # float sums with it, follows from the order.
        self._blocks = dict(sorted((self._blocks | {sequence: block}).items()))
        self._sequence = max(self._sequence, sequence + 1)
        self._loaded(block, rows)

    def merge_ahead(self, rows: pl.DataFrame | TupleRows, version: int) -> Callable[[], Any] | None:
        """Return the long part of adding these rows, for any thread; None if there is none.

        Its result goes to :meth:`commit_ahead`. :meth:`add` gives the same table without it.
        """
        raise NotImplementedError

    def commit_ahead(self, made: Any) -> None:
        """Take the result of :meth:`merge_ahead`, before the rows are added."""
        raise NotImplementedError

    def all_writes(self) -> list[BlockWrite]:
        """Return the writes that fill an empty local store."""
        return [
            BlockWrite(self.name, sequence, -1, encode_block(block.frame))
            for sequence, block in self._blocks.items()
        ]

    def clear(self) -> None:
        """Forget everything, as if no block had ever come."""
        for sequence in list(self._blocks):
            self._drop(sequence)
        self._sequence = 0

    def _put(self, block: Block, version: int, data: bytes) -> None:
        self._blocks[self._sequence] = block
        self._write(self._sequence, version, data)
        self._sequence += 1

    def _loaded(self, block: Block, rows: pl.DataFrame) -> None:
        """Take note of rows that were taken back, and of the block that they are in now."""
        raise NotImplementedError

    def _swap(self, sequence: int, rows: pl.DataFrame) -> None:
        """Give a block other rows."""
        self._blocks[sequence] = Block(rows)
        self._write(sequence, -1, encode_block(rows))

    def _drop(self, sequence: int) -> None:
        del self._blocks[sequence]
        self._write(sequence, -1, None)

    def _write(self, sequence: int, version: int, data: bytes | None) -> None:
        self.writes.append(BlockWrite(self.name, sequence, version, data))
