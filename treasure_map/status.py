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


class Layers(msgspec.Struct, frozen=True):
    """The counts and times of all layers on one worker."""

    layers: list[LayerStatus]


class WorkerAbout(msgspec.Struct, frozen=True):
    """One worker of the group; ``problem`` says why it is not asked or not trusted."""

    url: str
    own: bool
    partitions: int
    problem: str


class Cluster(msgspec.Struct, frozen=True):
    """The workers of the group that own partitions."""

    workers: list[WorkerAbout]


class Ready(msgspec.Struct, frozen=True):
    """Whether a worker is restored and caught up; without a wanted token, it says no more."""

    ready: bool
    reason: str | UnsetType = UNSET
    reasons: list[str] | UnsetType = UNSET
    serving: dict[str, list[int]] | UnsetType = UNSET
    restoring: dict[str, list[int]] | UnsetType = UNSET
    paused: dict[str, list[str]] | UnsetType = UNSET
    insecure: bool | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET


class Live(msgspec.Struct, frozen=True):
    """The answer that the event loop runs."""

    live: bool
