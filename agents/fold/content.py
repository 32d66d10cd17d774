"""The border between folds and owners: what a fold must know before, and what it adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import polars as pl

from tables.model.ledger import Ledger
from tables.state.block import TupleRows
from tables.state.id_table import IdTable
from tables.state.journal import Announcement


@dataclasses.dataclass(slots=True, frozen=True)
class Before:
    """What folding must know of a partition's state: stream time and, by layer, the floor.

    ``ids`` are the remembered ids where the source's events have ids.
    """

    stream_time_ms: int
    floors: Mapping[str, int]
    ids: IdTable | None = None


@dataclasses.dataclass(slots=True)
class Content:
    """What a chunk adds to one source partition: the content of a delta, before its framing."""

    start: int
    stop: int
    stream_time_ms: int
    ledger: Ledger
    blocks: dict[str, pl.DataFrame | TupleRows]
    announced: dict[int, Announcement] = dataclasses.field(default_factory=dict)
    whole: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
