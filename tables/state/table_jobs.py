"""Long steps of a table that may be done in a thread: they read blocks, which never change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import polars as pl

from tables.state.block import Block, encode_block

Made = TypeVar("Made")


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


@dataclasses.dataclass(slots=True, frozen=True)
class MergeJob(Generic[Made]):
    """A merge that is made before the rows that bring it are added.

    ``make`` changes nothing and may be called in any thread. Its result is given to ``commit``, in
    the thread that changes the table.
    """

    make: Callable[[], Made]
    commit: Callable[[Made], None]


class CellsJob:
    """The cells of some windows as they were when it was made: computed once, in any thread.

    Args:
        make: computes their cell frame.
    """

    def __init__(self, make: Callable[[], pl.DataFrame]) -> None:
        self._make = make
        self._made: pl.DataFrame | None = None

    def __call__(self) -> pl.DataFrame:
        """Return the cell frame."""
        if self._made is None:
            self._made = self._make()
        return self._made
