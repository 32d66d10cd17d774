"""Archive: cost of writing rows, in emissions as workers make them; rows are read back first.

An emission is a window's cells of one source partition. Eight partitions write at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import groupby

import polars as pl

from app.mapfile.load import parse_map
from benchmarks.cases import CASES, WINDOW_MS
from benchmarks.load import START_MS
from tables.archive.protocol import Archive, CellRange
from tables.model.layer import Layer, Map
from tables.state.cell import archive_schema

ROWS, SMOKE_ROWS = 200_000, 4_000
CELLS = (20, 200, 2_000)
"""Cells of one emission."""

PARTITIONS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The time to write so many rows: CPU time of this process, and time by the clock."""

    case: str
    cells: int
    rows: int
    rows_per_cpu_second: float
    rows_per_second: float


def map_of(name: str) -> Map:
    """Return the map whose base layer is written."""
    return parse_map(CASES["json"].map_text(name), name)


async def run(archive: Archive, themap: Map, kind: str, rows: int, cells: int) -> Row:
    """Write ``rows`` rows in emissions of ``cells``; read them back; return the costs."""
    layer = themap.layer("five_seconds")
    emissions = _emissions(layer, rows, cells)
    await archive.open(themap)
    try:
        used, begun = time.process_time(), time.monotonic()
        for first in range(0, len(emissions), PARTITIONS):
            some = emissions[first : first + PARTITIONS]
            await asyncio.gather(*(archive.write(layer, frame, times) for frame, times in some))
        seconds, used = time.monotonic() - begun, time.process_time() - used
        last = max(int(frame["window_start"].max()) for frame, _ in emissions)  # type: ignore[arg-type]
        found = await archive.read(layer, CellRange(START_MS, last + 1, rows_max=10**9))
    finally:
        await archive.close()
    written = sum(frame.height for frame, _ in emissions)
    events = sum(int(frame["events"].sum()) for frame, _ in emissions)
    if found.height != written or found["events"].sum() != events:
        raise AssertionError(f"read {found.height} rows; want {written}")
    return Row(f"{kind}, {cells:,} cells", cells, written, written / used, written / seconds)


def summary(rows: Iterable[Row]) -> list[list[str]]:
    """Return a table of medians by case, its head first, with the spread of the rates."""
    table = [["case", "rows", "runs", "rows/CPU-s", "spread", "rows/s"]]
    for case, group in groupby(rows, key=lambda row: row.case):
        runs = list(group)
        rates = [row.rows_per_cpu_second for row in runs]
        table.append([
            case, f"{runs[0].rows:,}", str(len(runs)), f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}..{max(rates):,.0f}",
            f"{statistics.median(row.rows_per_second for row in runs):,.0f}",
        ])  # fmt: skip
    return table


def _emissions(layer: Layer, rows: int, cells: int) -> Sequence[tuple[pl.DataFrame, pl.Series]]:
    """Return frames and write times; all partitions have the same windows, one after the other."""
    found = []
    for number in range(-(-rows // cells)):
        window, partition = divmod(number, PARTITIONS)
        start = START_MS + window * WINDOW_MS
        place = pl.int_range(cells, eager=True) + number * cells
        columns = {
            "key_type": pl.Series(["order.paid"]).new_from_index(0, cells),
            "key_entity": "user-" + place.cast(pl.String),
            "window_start": pl.lit(start),
            "events": place % 100 + 1,
            "source_partition": pl.lit(partition),
        }
        frame = pl.DataFrame({"place": place}).with_columns(**columns)
        frame = frame.select(
            (pl.col(name) if name in columns else pl.col("place")).cast(kind).alias(name)
            for name, kind in archive_schema(layer).items()
        )
        found.append((frame, frame["window_start"] * 1_000 + frame["version"]))
    return found
