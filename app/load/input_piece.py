"""Pieces of an input file: some events as JSON texts, and as rows if the file has columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import polars as pl

from tables.model.errors import TreasureMapError


class InputError(TreasureMapError):
    """A file of events that cannot be read as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Some events of a file, in its order.

    ``lines`` has the JSON text of each; ``share`` is the part of the file that has been read, None
    if nobody knows how much is to come. ``rows`` returns the same events as a frame, of files with
    columns. ``assumed_utc`` names columns of times without a zone, which were read as UTC.
    """

    lines: list[bytes]
    share: float | None
    rows: Callable[[], pl.DataFrame] | None = None
    assumed_utc: frozenset[str] = frozenset()
