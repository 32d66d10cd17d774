"""The simulated archive: rows with write times, of which the largest stays."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from tables.archive.identity import History
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveError
from tables.model.layer import Layer, Map
from tests.simulation.faults import Faults

Row = tuple[str, tuple[Any, ...], int, int]
"""Layer, key, window start, source partition."""

Value = tuple[Any, ...]
"""The accumulators in the layer's order; None for a greatest value that is unknown."""

ACCUMULATORS = 4


class SimulatedArchive:
    """``tables.archive.protocol.Archive`` in memory; writes come late, twice or never.

    ``sent`` remembers all values that writers tried to write, by row and version: there should be
    one.
    """

    is_open = True
    id = "0123456789abcdef"
    place = "in memory"

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.away = False
        self.histories: dict[tuple[str, int], History] = {}
        self.rows: dict[Row, tuple[int, Value]] = {}
        self.sent: dict[tuple[Row, int], set[Value]] = {}

    async def open(self, themap: Map) -> None:
        """There is nothing to be opened."""

    async def close(self) -> None:
        """There is nothing to be closed."""

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Write row by row: some of a failed write's rows are there."""
        keys = len(layer.key)
        values = rows.select(
            *layer.key_columns,
            "window_start",
            "source_partition",
            "version",
            *(acc.column for acc in layer.accumulators),
        )
        failed = None
        for cells, write_time in zip(values.rows(), write_times_us, strict=True):
            self._faults.loop.note(write_time)
            row = (layer.name, cells[:keys], cells[keys], cells[keys + 1])
            version, value = cells[keys + 2], padded(cells[keys + 3 :])
            self.sent.setdefault((row, version), set()).add(value)
            try:
                await self._write_row(row, write_time, value)
            except ArchiveError as error:
                failed = error
        if failed is not None:
            raise failed

    async def check(self) -> None:
        """Answer, unless the archive is away."""
        await self._answer()

    async def history(self, topic: str, partition: int) -> History | None:
        """Return the remembered history, unless the archive is away."""
        await self._answer()
        return self.histories.get((topic, partition))

    async def remember(self, topic: str, partition: int, history: History) -> History:
        """Remember the first history of a partition, unless the archive is away."""
        await self._answer()
        return self.histories.setdefault((topic, partition), history)

    async def _answer(self) -> None:
        await self._faults.delay()
        if self.away:
            raise ArchiveError("the archive is away")

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Nobody reads through the protocol here."""
        raise NotImplementedError

    def put(self, row: Row, write_time: int, value: Value) -> None:
        """Take a row as Cassandra does: of equal write times the larger value stays."""
        known = self.rows.get(row)
        if known is None or (write_time, _rank(value)) >= (known[0], _rank(known[1])):
            self.rows[row] = write_time, value

    async def _write_row(self, row: Row, write_time: int, value: Value) -> None:
        if self.away:
            await self._answer()
        await self._faults.request(
            lambda: self.put(row, write_time, value), ArchiveError, lingers=True
        )


def padded(value: Value) -> Value:
    """Return all accumulators of a value whose layer may lack the last one, the greatest."""
    return (*value, *[None] * (ACCUMULATORS - len(value)))


def _rank(value: Value) -> tuple[float, ...]:
    """Return the order of values of one write time: a deletion stays."""
    return tuple(math.inf if one is None else one for one in value)
