"""The events that are decoded so far from a chunk's runs of one source, and their one frame."""

from __future__ import annotations

from typing import Any

import polars as pl

from agents.decode.event_batch import RECORD_SPAN, SetAside
from agents.decode.json_events import JsonEvents
from tables.state.block import repeated


class DecodedEvents:
    """The events that have been decoded from a chunk's runs of one source so far, in log order.

    JSON events and heartbeats are structs, so that all of a chunk become columns at once; events of
    formats that have columns already are frames, in their order between the structs::

        structs  s0 s1 s2 | s3 s4        frames  (3, F): F comes after three structs

    Args:
        json: decodes the source's events into structs, and structs into columns.

    Attributes:
        structs: JSON events and heartbeats; call :meth:`add_indexes` after you add some.
        aside: the records and events that are set aside.
        rows: the number of events and heartbeats that have an index.
    """

    def __init__(self, json: JsonEvents) -> None:
        self._json = json
        self._indexes: list[pl.Series] = []
        self._frames: list[tuple[int, pl.DataFrame]] = []
        self.structs: list[Any] = []
        self.aside: list[SetAside] = []
        self.rows = 0

    def add_indexes(self, indexes: pl.Series) -> None:
        """Add the event indexes (UInt64) of the structs that were added last."""
        self._indexes.append(indexes)
        self.rows += indexes.len()

    def add_heartbeat(self, index: int, time_ms: int) -> None:
        """Add the heartbeat that is record ``index`` of its run."""
        self.structs.append(self._json.heartbeat(time_ms))
        self.add_indexes(pl.Series([index * RECORD_SPAN], dtype=pl.UInt64))

    def add_frame(self, frame: pl.DataFrame) -> None:
        """Add an event frame without ``partition``, after the structs so far."""
        self._frames.append((len(self.structs), frame))
        self.rows += frame.height

    def frame(self, parts: list[tuple[int, int]]) -> pl.DataFrame:
        """Return the event frame.

        Args:
            parts: for each run, its partition and number of rows.
        """
        indexes = pl.concat(self._indexes) if self._indexes else pl.Series(dtype=pl.UInt64)
        frame = self._json.frame(self.structs, indexes)
        if self._frames:
            json, pieces, done = frame, [], 0
            for at, piece in self._frames:
                pieces += [json[done:at], piece.select(json.columns)]
                done = at
            frame = pl.concat([*pieces, json[done:]])
        partitions = [repeated(partition, rows, pl.Int32) for partition, rows in parts]
        return frame.insert_column(0, pl.concat(partitions).alias("partition"))
