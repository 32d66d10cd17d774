"""Emissions: cells of one layer for one sink, and the names of sinks that are not layers."""

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
"""The sink of a published layer for other programs. Open cells are never sent to it."""


@dataclasses.dataclass(slots=True, frozen=True)
class Emission:
    """Cells of one layer on their way to one sink, captured from applied state.

    On the way to a coarser layer they are added up to its key (:func:`contribution.added_up`).
    ``versions`` are those of the windows at capture: an acknowledgement covers them. ``announced``
    is the announcement that may go to a coarser layer with the cells. ``whole`` has, by
    accumulator, the time from which on that layer gets all windows.
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

    It is made from at most ``rows`` rows. ``emission`` may be called in any thread.
    """

    rows: int
    emission: Callable[[], Emission]
