"""The answers of the query endpoint, as types: it encodes them, and clients decode them.

Its OpenAPI document has their schemas. Once a client has an answer, integers in measures are exact.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Key = dict[str, str | int | bool]
Measures = dict[str, int | float | str | None]


class QueryFailedError(Exception):
    """A request that was not answered.

    Attributes:
        status: the HTTP status, None if no answer came.
        retry_after_s: the seconds after which the same request may do better, None if it will not.
    """

    def __init__(
        self, detail: str, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(detail)


class Row(msgspec.Struct, frozen=True):
    """One row of a family: its key, its step ``[window_start, window_end)`` in ms, its measures.

    An integer beyond 64 bits is its decimal text in JSON.
    """

    key: Key
    window_start: int
    window_end: int
    measures: Measures


class Cell(Row, frozen=True):
    """One aggregate: its key, its window ``[window_start, window_end)`` in ms, its measures.

    An integer beyond 64 bits is its decimal text in JSON.
    """

    version: int


class RowsRead(msgspec.Struct, frozen=True):
    """Rows before merging."""

    live: int
    archived: int


class Asked(msgspec.Struct, frozen=True):
    """The instants that were asked for, in ms; None for an end that was left open."""

    from_ms: int | None = msgspec.field(name="from")
    to_ms: int | None = msgspec.field(name="to")


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of cells; ``cursor`` asks for the next one, None at the end.

    The range of all pages is ``[from, to)`` in ms, in whole windows; ``asked`` is there if other
    instants were asked for. ``rows_after`` cells follow this page.
    ``partial`` says that owners did not answer, so that their open cells are missing: as many of
    the layer's ``partitions`` were served. ``whole_from`` is, by measure that the layer got later,
    from when on it is known, in ms, if that is after the start of the range: in earlier cells it
    is None. The time is None while that is not known. ``hint`` says why there may be no cells.
    """

    layer: str
    map_revision: int
    # Zeros are for clients: workers of 0.2.0 send neither range nor rows_after.
    from_ms: int = msgspec.field(name="from", default=0)
    to_ms: int = msgspec.field(name="to", default=0)
    asked: Asked | UnsetType = UNSET
    partial: bool
    partitions_served: int
    partitions: int
    rows_read: RowsRead
    whole_from: dict[str, int | None]
    hint: str | UnsetType = UNSET
    rows_after: int = 0
    cells: list[Cell]
    cursor: str | None


class Answer(msgspec.Struct, frozen=True):
    """The cells of all pages that were read; ``more`` says that the limit cut some off.

    ``rows_after`` is how many those are. ``whole_from`` and the range are as of a :class:`Page`.
    """

    layer: str
    partial: bool
    more: bool
    cells: list[Cell]
    whole_from: dict[str, int | None] = {}
    rows_after: int = 0
    from_ms: int = msgspec.field(name="from", default=0)
    to_ms: int = msgspec.field(name="to", default=0)


class Segment(msgspec.Struct, frozen=True):
    """Windows of one layer that start in ``[from_ms, to_ms)``, with their approximate cells."""

    layer: str
    from_ms: int = msgspec.field(name="from")
    to_ms: int = msgspec.field(name="to")
    windows: int
    cells: float


class Plan(msgspec.Struct, frozen=True):
    """The layers that a range is answered from, in order of time."""

    exactness: Literal["exact", "settling"]
    cells: float
    segments: list[Segment]


class LayerCost(msgspec.Struct, frozen=True):
    """Rows read of one layer."""

    live_rows: int
    archived_rows: int


class Cost(msgspec.Struct, frozen=True):
    """The cost of an answer."""

    workers_asked: int
    archive_reads: int
    archive_partitions: int
    archive_bytes: int
    cache_hits: int
    cache_misses: int
    layers: dict[str, LayerCost]


class FamilyPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of rows of a family, or the first keys of a layer; see docs/formats/http.md.

    Attributes:
        layer: the layer whose keys were ranked; this and the next three are of a top alone.
        by: the measure that ranks them.
        order: whether the greatest or the least is first.
        keys: the number of keys that there were.
        family: the family's name.
        map_revision: the revision of the worker's map.
        from_ms: the start of the range of all pages, of a whole window. A worker of 0.2.0 sends
            neither range nor ``rows_after``: they are 0 then.
        to_ms: its end.
        asked: the instants that were asked for, if they are others.
        exactness: ``exact``, ``settling`` or ``partial``.
        final: whether no later answer can differ.
        as_of: by topic and partition, the offset up to which events are in.
        watermark_ms: windows that end at or before it are closed; None before any event.
        data_age_ms: events appended at least this long ago are all in; None if not known.
        whole_from: as of a :class:`Page`.
        cost: the cost of the answer.
        plan: the layers that it came from.
        hint: why there may be no rows.
        rows_after: the number of rows that follow this page; 0 of a top.
        cells: the rows.
        cursor: asks for the next page; None at the end, and of a top.
    """

    layer: str | UnsetType = UNSET
    by: str | UnsetType = UNSET
    order: Literal["desc", "asc"] | UnsetType = UNSET
    keys: int | UnsetType = UNSET
    family: str
    map_revision: int
    from_ms: int = msgspec.field(name="from", default=0)
    to_ms: int = msgspec.field(name="to", default=0)
    asked: Asked | UnsetType = UNSET
    exactness: Literal["exact", "settling", "partial"]
    final: bool
    as_of: dict[str, dict[str, int]]
    watermark_ms: int | None
    data_age_ms: int | None
    whole_from: dict[str, int | None]
    cost: Cost
    plan: Plan
    hint: str | UnsetType = UNSET
    rows_after: int = 0
    cells: list[Row]
    cursor: str | None


class Explained(msgspec.Struct, frozen=True):
    """The plan of a request to a family, which was not carried out."""

    family: str
    plan: Plan


class FamilyAbout(msgspec.Struct, frozen=True):
    """One family: its name, and the layers, key, measures and window that it has."""

    name: str
    layers: list[str]
    key: list[str]
    measures: list[str]
    window: str


class Families(msgspec.Struct, frozen=True):
    """The families of a map."""

    families: list[FamilyAbout]


class FamilyAnswer(msgspec.Struct, frozen=True):
    """The rows of all pages that were read; ``more`` says that the limit cut some off.

    ``rows_after`` is how many those are. ``exactness`` is the least of all pages; ``as_of``,
    watermark, age, ``whole_from`` and the range ``[from, to)`` in ms are those of the first.
    """

    family: str
    exactness: str
    as_of: dict[str, dict[str, int]]
    watermark_ms: int | None
    data_age_ms: int | None
    rows: list[Row]
    more: bool
    whole_from: dict[str, int | None] = {}
    rows_after: int = 0
    from_ms: int = msgspec.field(name="from", default=0)
    to_ms: int = msgspec.field(name="to", default=0)


class LiveCell(Cell, frozen=True):
    """A cell that has changed, or closed.

    Of equal key, window and source partition the larger version counts.
    """

    source_partition: int
    closed: bool


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457); ``detail`` gives the remedy."""

    type: str | UnsetType = UNSET
    title: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    detail: str


def exact(measures: Measures) -> None:
    """Make integers of those beyond 64 bits, which come as text; no measure is text."""
    for name, value in measures.items():
        if isinstance(value, str):
            measures[name] = int(value)
