"""Contributions: cells cut by the partition that they go to, and into records that fit."""

from __future__ import annotations

import polars as pl
import pytest
from support import HOUR_MS, small_map

from tables import contribution
from tables.cell import cell_schema
from tables.contribution import Contribution, decode_cells, split_cells
from tables.keyhash import key_hashes

MAP = small_map()
HOUR, DAY = MAP.layer("hour"), MAP.layer("day")


def cells(count: int) -> pl.DataFrame:
    """Return cells of the hour layer, each of a carrier of its own."""
    schema = cell_schema(HOUR)
    number = pl.int_range(count, eager=True)
    columns = {name: pl.repeat(1, count, dtype=pl.Int64, eager=True) for name in schema}
    columns |= {
        "key_origin": pl.repeat("JFK", count, eager=True),
        "key_carrier": "carrier-" + number.cast(pl.String),
        "window_start": number % 3 * HOUR_MS,
        "version": number,
    }
    return pl.DataFrame(columns).cast(schema).select(list(schema))  # type: ignore[arg-type]


@pytest.mark.parametrize("bytes_max", [1, 1_000, 50_000, 4 << 20])
def test_cells_are_cut_and_none_is_lost(monkeypatch: pytest.MonkeyPatch, bytes_max: int) -> None:
    """Each stands once, in the partition of its coarser key, in a block that is small enough."""
    monkeypatch.setattr(contribution, "BLOCK_BYTES_MAX", bytes_max)
    frame = cells(500)
    found = []
    for target, block in split_cells(HOUR, DAY, frame):
        rows = decode_cells(Contribution("hour", 1, 0, (0, 0), block), HOUR, DAY)
        hashes = key_hashes(rows, DAY.key_columns).cast(pl.Int64) % DAY.partitions
        assert (hashes == target).all()
        assert rows.height == 1 or rows.estimated_size() <= 2 * bytes_max
        found.append(rows)
    together = pl.concat(found).sort("contributed")
    assert together["key_carrier"].to_list() == frame["key_carrier"].to_list()
    assert together["contributed"].to_list() == list(range(500))
    assert len(found) == DAY.partitions or bytes_max < 1 << 20
