"""The archive, which keeps compacted layers: a protocol with two implementations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import polars as pl

from tables.archive.identity import History
from tables.model.cost import QueryCost
from tables.model.layer import Layer, Map, Scalar


@dataclasses.dataclass(frozen=True, slots=True)
class CellRange:
    """Cells of one layer: windows that start in ``[from_ms, to_ms)``, keys that match ``key``.

    ``key`` maps names of key fields (without the ``key_`` prefix) to values; fields not named match
    all. ``rows_max`` bounds the archive rows read; past it the read raises QueryError and says so.
    """

    from_ms: int
    to_ms: int
    key: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    rows_max: int = 1_000_000


class Archive(Protocol):
    """Rows of absolute values; of two writes of one row the one with the larger write time wins."""

    @property
    def is_open(self) -> bool:
        """Whether it is open now."""

    @property
    def id(self) -> str:
        """The id that it was given when it was made; empty while it is not open."""

    @property
    def place(self) -> str:
        """Its place, in words that name the data to wipe."""

    async def open(self, themap: Map) -> None:
        """Connect and make ready for the map's layers.

        Raises:
            ArchiveAwayError: it does not answer; until it is opened, reads and writes fail.
            ArchiveError: it cannot be opened as things are.
        """

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Store an archive frame (``tables.state.cell``); returns when every row is durable.

        ``write_times_us`` (Int64, one a row) orders writes of the same row: window end in
        microseconds plus version, the same over all owners, so a repeat changes nothing and a stale
        value never wins.

        Raises:
            ArchiveError: some row may not have been stored; the caller sends all of them again.
        """

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Return the archive frame of the rows in range, in no particular order.

        The number of partitions that it reads is added to ``cost``.

        Raises:
            ArchiveError: the archive cannot answer now.
            QueryError: more than ``cells.rows_max`` rows.
        """

    async def check(self) -> None:
        """Return if it answers now as reads need it; costs about as much as reading a row.

        Raises:
            ArchiveError: it does not.
        """

    async def history(self, topic: str, partition: int) -> History | None:
        """Return the journal that the rows of an input partition come from, None if there are none.

        Raises:
            ArchiveError: the archive cannot answer now.
        """

    async def remember(self, topic: str, partition: int, history: History) -> History:
        """Return the journal that they come from; it is ``history`` from now on if there is none.

        Raises:
            ArchiveError: it may not have been stored.
        """

    async def close(self) -> None:
        """Release everything; the archive may be opened again after."""
