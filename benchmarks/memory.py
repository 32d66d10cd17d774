"""Memory: bytes of an open cell, from the growth of a worker's resident size with their number.

A worker folds one event a key into one window of a day, and is left alone until its size stands
still. The cells that it serves are counted before a size is told.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from app.mapfile.load import parse_map
from benchmarks.recovery import LAYER, MAP_TEXT, fill
from benchmarks.runs import WorkerRun
from treasure_map.query import QueryClient

CELLS = (250_000, 500_000, 1_000_000, 2_000_000)
SMOKE_CELLS = (2_000, 8_000)
SETTLED_SECONDS, SMOKE_SETTLED_SECONDS = 75.0, 1.0
"""A worker gives freed memory back once a minute."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One worker of so many open cells; ``bytes_per_cell`` is the slope over the whole run."""

    cells: int
    resident_bytes: int
    peak_bytes: int
    bytes_per_cell: float


def run(brokers: str, sizes: Sequence[int], folder: Path, settled_seconds: float) -> list[Row]:
    """Measure a worker of each size; return a row for each."""
    found = [_measure(brokers, cells, folder / str(cells), settled_seconds) for cells in sizes]
    slope, _ = statistics.linear_regression(sizes, [resident for resident, _ in found])
    return [
        Row(cells, resident, peak, slope)
        for cells, (resident, peak) in zip(sizes, found, strict=True)
    ]


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table by number of cells, its head first."""
    table = [["open cells", "resident MiB", "peak MiB", "bytes a cell"]]
    table += [
        [f"{row.cells:,}", f"{row.resident_bytes / 2**20:,.0f}", f"{row.peak_bytes / 2**20:,.0f}",
         f"{row.bytes_per_cell:.0f}"]
        for row in rows
    ]  # fmt: skip
    return table


def _measure(brokers: str, cells: int, folder: Path, settled_seconds: float) -> tuple[int, int]:
    name = f"b{uuid.uuid4().hex[:8]}"
    text = MAP_TEXT.format(name=name)
    folder.mkdir(parents=True)
    map_file = folder / "map.toml"
    map_file.write_text(text)
    asyncio.run(fill(brokers, parse_map(text, name), cells, events_per_cell=1))

    def done(client: QueryClient) -> bool:
        return bool(client.ledger()["layers"][LAYER]["folded"] == cells)

    with WorkerRun(brokers, map_file, folder) as worker:
        worker.wait(done)
        with QueryClient(worker.url) as client:
            (layer,) = client.layers()
        if layer.open_cells != cells:
            raise AssertionError(f"the worker has {layer.open_cells} rows; want {cells}")
        time.sleep(settled_seconds)
        return worker.memory_bytes(), worker.peak_memory_bytes()
