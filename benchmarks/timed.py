"""``python -m benchmarks.timed worker``: notes when deltas and archive rows are done.

The notes go to the file that ``TIMES_FILE`` names when the worker ends: one row for each
delta that was applied, and one for each window and source partition of rows that the archive has
acknowledged. Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import polars as pl

import app.__main__
from agents.fold.content import Content
from agents.partition.owned_partition import OwnedPartition
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Layer

TIMES: list[tuple[str, str, int, int, int, int]] = []
SCHEMA = {"what": pl.String, "name": pl.String, "partition": pl.Int64, "start": pl.Int64,
          "stop": pl.Int64, "at_ns": pl.Int64}  # fmt: skip

_advance: Callable[..., Awaitable[str]] = OwnedPartition.advance
_write: Callable[..., Awaitable[None]] = EmbeddedArchive.write


async def _timed_advance(self: OwnedPartition, content: Content, tail: Any) -> str:
    dropped = await _advance(self, content, tail)
    if not dropped and content.stop > content.start:
        TIMES.append(("delta", *self.key, content.start, content.stop, time.monotonic_ns()))
    return dropped


async def _timed_write(
    self: EmbeddedArchive, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series
) -> None:
    await _write(self, layer, rows, write_times_us)
    at_ns = time.monotonic_ns()
    for start, partition in rows.select("window_start", "source_partition").unique().iter_rows():
        TIMES.append(("rows", layer.name, partition, start, layer.window.end(start), at_ns))


def _save() -> None:
    pl.DataFrame(TIMES, schema=SCHEMA, orient="row").write_ipc(os.environ["TIMES_FILE"])


if __name__ == "__main__":
    OwnedPartition.advance = _timed_advance  # type: ignore[method-assign]
    EmbeddedArchive.write = _timed_write  # type: ignore[method-assign]
    atexit.register(_save)
    sys.argv[0] = "app"
    app.__main__.main()
