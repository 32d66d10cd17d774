"""The border between folds and owners: the state before a fold, and the content it adds."""

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
    """The part of a partition's state that a fold needs: stream time and, by layer, the floor.

    ``ids`` are the remembered ids, None if the source's events have no ids.
    """

    stream_time_ms: int
    floors: Mapping[str, int]
    ids: IdTable | None = None


@dataclasses.dataclass(slots=True)
class Content:
    """The content of a delta, before its framing: all that a chunk adds to one source partition."""

    start: int
    stop: int
    stream_time_ms: int
    ledger: Ledger
    blocks: dict[str, pl.DataFrame | TupleRows]
    announced: dict[int, Announcement] = dataclasses.field(default_factory=dict)
    whole: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
