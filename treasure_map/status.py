"""A worker's reports on itself, as types: the endpoint encodes them, and clients decode them."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class LayerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The counts and times of one layer on one worker.

    Attributes:
        name: the layer's name.
        open_cells: rows of its live table: an upper bound of its cells.
        unacknowledged_windows: closed windows that some sink lacks.
        waiting_open_windows: open windows that some sink lacks.
        archived_cells: cells that the archive acknowledged since the worker started.
        watermark_ms: the least watermark of its partitions; None before any event.
        floor_ms: the same of its floor.
        partitions: the partitions of its input that the worker owns.
        whole_from: by such partition, from when on ``cells`` and measures that the map got later
            are whole, in ms; None while that is not known.
        selected: the events, or contributions of a finer layer, that it has selected.
        first_ms: the start of its first window; None if it has none, or that is not known.
        last_ms: the start of its last window, or of one that would be after it.
        hint: why it has selected nothing, though there were events.
    """

    name: str
    open_cells: int
    unacknowledged_windows: int
    waiting_open_windows: int
    archived_cells: int
    watermark_ms: int | None
    floor_ms: int | None
    partitions: list[int]
    whole_from: dict[str, dict[str, int | None]]
    selected: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    hint: str | UnsetType = UNSET


class Layers(msgspec.Struct, frozen=True):
    """The counts and times of all layers on one worker.

    ``unselected`` has, by source, the event types that no layer selects, with their events since
    the worker started. Of the most types, the rest is counted as ``...``.
    """

    layers: list[LayerStatus]
    unselected: dict[str, dict[str, int]] = {}


class WorkerAbout(msgspec.Struct, frozen=True):
    """One worker of the group, with its number of partitions, and those by topic.

    ``problem`` says why it is not asked or not trusted.
    """

    url: str
    own: bool
    partitions: int
    problem: str
    owns: dict[str, list[int]] = {}


class Cluster(msgspec.Struct, frozen=True):
    """The workers of the group that own partitions."""

    workers: list[WorkerAbout]


class Ready(msgspec.Struct, frozen=True):
    """Whether a worker is restored and caught up; without a wanted token, it says no more.

    ``lag`` has the records that are not read yet, by topic and partition; None before a partition's
    first fetch.
    """

    ready: bool
    reason: str | UnsetType = UNSET
    reasons: list[str] | UnsetType = UNSET
    serving: dict[str, list[int]] | UnsetType = UNSET
    restoring: dict[str, list[int]] | UnsetType = UNSET
    paused: dict[str, list[str]] | UnsetType = UNSET
    insecure: bool | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    map: str | UnsetType = UNSET
    map_revision: int | UnsetType = UNSET
    version: str | UnsetType = UNSET
    lag: dict[str, dict[str, int | None]] | UnsetType = UNSET


class Live(msgspec.Struct, frozen=True):
    """The answer that the event loop runs."""

    live: bool
