"""The demo's check: the layers of the flights, as answered and as archived, against the file.

The same rows come from three sources: recomputed from the file, read over HTTP from the running
worker, and read straight from the archive's folder once the worker has stopped. A row is one cell:
its window and key, and its measures, which must be equal to the last bit.
"""

from __future__ import annotations

import pathlib

import polars as pl

from app.demo.flights import truth
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import Archive, CellRange
from tables.model.layer import Layer, Map, Scalar
from tables.state.cell import latest, measures_of, merge_partitions
from treasure_map.query import QueryClient

# All windows of the flights start in these years.
FROM_MS = 1_325_376_000_000  # 2012-01-01
TO_MS = 1_420_070_400_000  # 2015-01-01
_SHOWN_MAX = 3

CellId = tuple[int, tuple[Scalar, ...]]
Rows = dict[CellId, dict[str, Scalar | None]]


def expected(layer: Layer, flights: pl.DataFrame) -> Rows:
    """Return the rows of a layer as recomputed from the file's ``flights``."""
    frame = truth.truth(layer.name, flights)
    names = [measure.name for measure in layer.measures]
    return {
        _cell_id(layer, row): {name: row[name] for name in names}
        for row in frame.iter_rows(named=True)
    }


def answered(url: str, layer: Layer) -> tuple[Rows, bool]:
    """Return the rows of a layer as the endpoint answers, and whether it says they are partial."""
    with QueryClient(url) as client:
        answer = client.cells(layer.name, {}, FROM_MS, TO_MS)
    fields = [field.name for field in layer.key]
    rows: Rows = {}
    for cell in answer.cells:
        cell_id = (cell.window_start, tuple(cell.key[name] for name in fields))
        rows[cell_id] = dict(cell.measures)
    return rows, answer.partial


async def archived(folder: pathlib.Path, themap: Map, layers: list[Layer]) -> dict[str, Rows]:
    """Return the rows of each layer in the embedded archive of a stopped worker.

    Raises:
        ArchiveError: the folder cannot be read, or a worker still has it.
    """
    archive = EmbeddedArchive(folder)
    await archive.open(themap)
    try:
        return {layer.name: await archived_rows(archive, layer) for layer in layers}
    finally:
        await archive.close()


def differences(where: str, layer: Layer, want: Rows, got: Rows) -> list[str]:
    """Return a sentence for each of the first rows that differ; empty if all are equal."""
    wrong = sorted(one for one in want.keys() | got.keys() if want.get(one) != got.get(one))
    shown = [
        f"{layer.name} {where}, window {one[0]}, key {one[1]}:"
        f" got {got.get(one, 'no row')}; want {want.get(one, 'no row')}"
        for one in wrong[:_SHOWN_MAX]
    ]
    if len(wrong) > _SHOWN_MAX:
        shown.append(f"{layer.name} {where}: {len(wrong) - _SHOWN_MAX:,} more rows differ")
    return shown


async def archived_rows(archive: Archive, layer: Layer) -> Rows:
    """Return the rows of a layer in an open archive."""
    frame = await archive.read(layer, CellRange(FROM_MS, TO_MS))
    cells = merge_partitions(layer, latest(layer, frame))
    return {
        _cell_id(layer, row): measures
        for row, measures in zip(
            cells.iter_rows(named=True), measures_of(layer, cells), strict=True
        )
    }


def _cell_id(layer: Layer, row: dict[str, Scalar]) -> CellId:
    return int(row["window_start"]), tuple(row[name] for name in layer.key_columns)
