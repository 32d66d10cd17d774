"""What the query endpoint answers, as types; integers in measures are exact."""

from __future__ import annotations

from typing import Any

import msgspec

Key = dict[str, str | int | bool]
Measures = dict[str, int | float | str | None]


class QueryFailedError(Exception):
    """A request that was not answered.

    Attributes:
        status: the HTTP status, None where no answer came.
        retry_after_s: in how many seconds the same request may do better, None if it will not.
    """

    def __init__(
        self, detail: str, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(detail)


class Cell(msgspec.Struct, frozen=True):
    """One aggregate: its key, its window ``[window_start, window_end)`` in ms, its measures."""

    key: Key
    window_start: int
    window_end: int
    measures: Measures
    version: int


class Page(msgspec.Struct, frozen=True):
    """One page of cells; ``cursor`` asks for the next one, None at the end.

    ``partial`` says that owners did not answer, so that their open cells are missing.
    ``whole_from`` is, by measure that the layer got later, from when on it is known, in ms, where
    that is after the start of the range: in earlier cells it is None. The time is None while that
    is not known.
    """

    layer: str
    map_revision: int
    partial: bool
    cells: list[Cell]
    cursor: str | None = None
    whole_from: dict[str, int | None] = {}


class Answer(msgspec.Struct, frozen=True):
    """The cells of all pages that were read; ``more`` says that the limit cut some off.

    ``whole_from`` is as of a :class:`Page`.
    """

    layer: str
    partial: bool
    more: bool
    cells: list[Cell]
    whole_from: dict[str, int | None] = {}


class Row(msgspec.Struct, frozen=True):
    """One row of a family: its key, its step ``[window_start, window_end)`` in ms, its measures."""

    key: Key
    window_start: int
    window_end: int
    measures: Measures


class FamilyPage(msgspec.Struct, frozen=True):
    """One page of rows of a family, or the first keys of a layer; see docs/formats/http.md.

    Attributes:
        exactness: ``exact``, ``settling`` or ``partial``.
        final: whether no later answer can differ.
        as_of: by topic and partition, the offset up to which events are in.
        watermark_ms: what ends at or before it is closed; None before any event.
        data_age_ms: everything appended so long before the answer is in; None if not known.
        cost: what it cost.
        plan: which layers it came from.
        whole_from: as of a :class:`Page`.
    """

    family: str
    exactness: str
    final: bool
    as_of: dict[str, dict[str, int]]
    watermark_ms: int | None
    data_age_ms: int | None
    cost: dict[str, Any]
    plan: dict[str, Any]
    cells: list[Row]
    cursor: str | None = None
    whole_from: dict[str, int | None] = {}


class FamilyAnswer(msgspec.Struct, frozen=True):
    """The rows of all pages that were read; ``more`` says that the limit cut some off.

    ``exactness`` is the least of all pages; ``as_of``, watermark, age and ``whole_from`` are those
    of the first.
    """

    family: str
    exactness: str
    as_of: dict[str, dict[str, int]]
    watermark_ms: int | None
    data_age_ms: int | None
    rows: list[Row]
    more: bool
    whole_from: dict[str, int | None] = {}


class LiveCell(msgspec.Struct, frozen=True):
    """A cell that has changed, or closed.

    Of equal key, window and source partition the larger version counts.
    """

    key: Key
    window_start: int
    window_end: int
    measures: Measures
    version: int
    source_partition: int
    closed: bool


class Problem(msgspec.Struct):
    """A refusal; ``detail`` says what to change."""

    detail: str


def exact(measures: Measures) -> None:
    """Make integers of those beyond 64 bits, which come as text; no measure is text."""
    for name, value in measures.items():
        if isinstance(value, str):
            measures[name] = int(value)
