"""Emissions: cells of one layer for one sink, and the names of the sinks that are no layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import polars as pl

from tables.model.layer import Layer
from tables.state.journal import Announcement

ARCHIVE = ".archive"
"""The sink that every layer but a combiner has; the others are the names of layers, which begin
with a letter, and feeds."""

FEED = ".feed"
"""The sink of a published layer for programs of others. Open cells never go there."""


@dataclasses.dataclass(slots=True, frozen=True)
class Emission:
    """Cells of one layer on their way to one sink, captured from applied state.

    On the way to a coarser layer they are added up to its key (:func:`contribution.added_up`).
    ``versions`` are those of the windows at capture: what an acknowledgement covers. ``announced``
    is what may be said to a coarser layer along with them, and ``whole`` from when on it gets all
    windows, by accumulator.
    """

    layer: Layer
    sink: str
    cells: pl.DataFrame
    versions: dict[int, int]
    announced: Announcement
    whole: dict[str, int]


@dataclasses.dataclass(slots=True, frozen=True)
class Due:
    """An emission that is still to be made, of the state as it was when it became due.

    ``rows`` is at most how many rows it is made from. ``emission`` may be called in any thread.
    """

    rows: int
    emission: Callable[[], Emission]
