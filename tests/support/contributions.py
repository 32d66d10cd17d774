"""Contributions of combiners, as they stand in a layer topic."""

from __future__ import annotations

from typing import Any

import polars as pl

from tables.model.window import NEVER_MS
from tables.state.block import encode_block
from tables.state.cell import cell_schema
from tables.state.contribution import Contribution, encode_contribution
from tables.state.journal import Announcement
from tests.support.common import HOUR_MS
from tests.support.state_support import DAY, measured

TOPIC = "small.layer.day"
NEVER = Announcement(NEVER_MS, NEVER_MS)
Row = tuple[str, int, int, int]
"""Carrier, hour, delay, version at the sender."""


def block_of(rows: list[Row]) -> bytes:
    """Return the block of these contributions, each of one event."""
    cell = cell_schema(DAY)
    schema: dict[str, Any] = {name: cell[name] for name in DAY.key_columns}
    schema["fine_start"] = pl.Int64()
    schema |= {acc.column: cell[acc.column] for acc in DAY.accumulators}
    schema["contributed"] = pl.Int64()
    frame = [
        {
            "key_carrier": carrier,
            "fine_start": hour * HOUR_MS,
            "contributed": contributed,
        }
        | measured([delay])
        for carrier, hour, delay, contributed in rows
    ]
    return encode_block(pl.DataFrame(frame, schema=schema))


def contribution(
    rows: list[Row], sender: int = 0, announced: Announcement = NEVER, layer: str = "hour"
) -> bytes:
    """Return a record of the layer topic; without rows it only announces."""
    block = block_of(rows) if rows else b""
    return encode_contribution(Contribution(layer, 1, sender, announced, block))
