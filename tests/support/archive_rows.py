"""An archive of one layer of hours: its cells, and the rows that are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import polars as pl

from tables.archive.protocol import Archive, CellRange
from tables.model.layer import Accumulator, KeyField, Layer, Measure
from tables.model.window import Window
from tables.state.cell import archive_schema

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_356_998_400_000  # 2013-01-01T00:00Z
ACCUMULATORS = (
    Accumulator("events", None, "int"),
    Accumulator("n", "delay", "int"),
    Accumulator("sum", "delay", "int"),
    Accumulator("min", "delay", "int"),
    Accumulator("max", "delay", "int"),
    Accumulator("sqlo", "delay", "int"),
    Accumulator("sqhi", "delay", "int"),
    Accumulator("n", "speed", "float"),
    Accumulator("sum", "speed", "float"),
    Accumulator("min", "speed", "float"),
    Accumulator("max", "speed", "float"),
    Accumulator("m2", "speed", "float"),
)
HOURS = Layer(
    name="hours",
    key=(KeyField("origin", "string"), KeyField("gate", "int"), KeyField("late", "bool")),
    window=Window(HOUR_MS),
    measures=(Measure("count"), Measure("variance", "delay"), Measure("variance", "speed")),
    accumulators=ACCUMULATORS,
    max_out_of_orderness_ms=0,
    allowed_lateness_ms=0,
    partitions=2,
    source="flights",
)
TTL = msgspec.structs.replace(HOURS, name="hours_ttl", archive_ttl_ms=2 * DAY_MS)


class Clock:
    """A wall clock that stands at the time that the test sets."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        """Return the time."""
        return self.now_ms


def cell(layer: Layer = HOURS, **values: Any) -> dict[str, Any]:
    """Return one archive row: a cell with no measured field, changed by ``values``."""
    row: dict[str, Any] = {}
    for name, kind in archive_schema(layer).items():
        row[name] = {pl.String(): "JFK", pl.Boolean(): False, pl.Float64(): 0.0}.get(kind, 0)
        if name.startswith(("min_", "max_")):
            row[name] = None
    return row | {"window_start": START_MS, "events": 1} | values


def frame(rows: Sequence[Mapping[str, Any]], layer: Layer = HOURS) -> pl.DataFrame:
    """Return the archive frame of rows."""
    return pl.DataFrame(rows, schema=archive_schema(layer), orient="row")


async def put(archive: Archive, *rows: dict[str, Any], at: int = 1, layer: Layer = HOURS) -> None:
    """Write rows with one write time."""
    times = pl.Series("write_time", [at] * len(rows), dtype=pl.Int64)
    await archive.write(layer, frame(rows, layer), times)


async def get(
    archive: Archive,
    from_ms: int = START_MS,
    to_ms: int = START_MS + DAY_MS,
    layer: Layer = HOURS,
    **key: Any,
) -> pl.DataFrame:
    """Read a range, sorted."""
    got = await archive.read(layer, CellRange(from_ms, to_ms, key))
    return got.sort([*layer.key_columns, "window_start", "source_partition"])
