"""Emit: closed cells to the archive and to coarser layers' topics, until they are acknowledged.

Emission never decides content: it may stop, repeat and reorder freely (docs/formats/journal.md
rules 8 and 11). Each owner has one task per destination, so that an archive that is away does not
hold back coarser layers.

    closed        -> at once, until acknowledged at its version
    open          -> once the partition's cells have not changed for early_emit_s
    combiner's    -> open cells too, at most once a second, so that the merged layer's live table is
                     at most about a second behind
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import polars as pl

from agents.guarded import guarded
from agents.owner import ARCHIVE, Emission, Owner
from tables.archive import Archive
from tables.contribution import Contribution, encode_contribution, split_cells
from tables.errors import ArchiveError, OutcomeUnknownError
from tables.journal import Announcement
from tables.layer import Layer

log = logging.getLogger(__name__)

ANNOUNCE_INTERVAL_S = 1.0
"""An announcement without cells is sent at most this often to a partition."""

COMBINER_EMIT_S = 1.0
"""A partition's combiners send cells of open windows at most this often: a cell that changes with
every chunk costs its merge stage one row a second for each source partition, however hot it is."""

RETRY_S_MIN = 0.2
RETRY_S_MAX = 10.0


Emit = Callable[[bool], Awaitable[float | None]]
"""Sends what is due, open cells too if told so; returns the seconds until more may be."""


class Log(Protocol):
    """Appends to any topic."""

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...],
    ) -> int:
        """Append a record; return its offset. Raises OutcomeUnknownError."""


@dataclasses.dataclass(slots=True)
class EmitCounts:
    """What was emitted since the worker started.

    ``archived`` counts rows acknowledged by the archive, by layer; ``failures`` attempts that
    failed, and are repeated, by the kind of sink: ``archive`` or ``layer_topic``.
    """

    archived: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)


class Emitter:
    """Sends what one owner's state has closed; ``wake`` it after every applied delta.

    ``counts`` are kept over all owners of the worker. ``early_emit_s`` is how long the partition's
    cells must not have changed before those of open windows are sent too; 0 for never. So a cell is
    sent early at most once in that time, and not at all under load.
    """

    def __init__(
        self,
        owner: Owner,
        archive: Archive,
        to: Log,
        counts: EmitCounts,
        failed: Callable[[BaseException], None],
        *,
        early_emit_s: float = 0.0,
    ) -> None:
        self._owner = owner
        self._archive = archive
        self._log = to
        self._counts = counts
        self._failed = failed
        self._early_emit_s = early_emit_s
        self._changed_at = -math.inf
        self._tasks: list[asyncio.Task[None]] = []
        self._events: list[asyncio.Event] = []
        self._announced: dict[tuple[str, str], Announcement] = {}
        self._announced_at = -ANNOUNCE_INTERVAL_S
        self._combined_at = -COMBINER_EMIT_S
        self.on_acknowledged: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the tasks."""
        self._spawn(self._emit_archive)
        if any(self._owner.plan.coarser.values()):
            self._spawn(self._emit_coarser)
        self.wake(changed=True)

    def wake(self, *, changed: bool = False) -> None:
        """Tell that the state has changed; ``changed`` says that cells have."""
        if changed:
            self._changed_at = asyncio.get_running_loop().time()
        for event in self._events:
            event.set()

    async def stop(self) -> None:
        """Cancel the tasks; what was not acknowledged is sent by the next owner."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _spawn(self, emit: Emit) -> None:
        event = asyncio.Event()
        self._events.append(event)
        self._tasks.append(asyncio.create_task(guarded(self._repeat(emit, event), self._failed)))

    async def _repeat(self, emit: Emit, event: asyncio.Event) -> None:
        """Emit whenever woken, or after the seconds that ``emit`` returned; back off on failure."""
        now = asyncio.get_running_loop().time
        retry_s = RETRY_S_MIN
        sent_early = -math.inf  # the change after which open cells were sent last
        while True:
            event.clear()
            news = event
            wait_s: float | None
            change = self._changed_at if self._early_emit_s else sent_early
            early = change != sent_early and now() >= change + self._early_emit_s
            try:
                wait_s = await emit(early)
                retry_s = RETRY_S_MIN
                if early:
                    sent_early = change
                elif change != sent_early:
                    wait_s = _least(wait_s, change + self._early_emit_s - now())
            except (ArchiveError, OutcomeUnknownError) as error:
                sink = "archive" if isinstance(error, ArchiveError) else "layer_topic"
                self._counts.failures[sink] += 1
                log.warning("emission failed, nothing is lost, sending again: %s", error)
                wait_s = retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries only
                retry_s = min(retry_s * 2, RETRY_S_MAX)
                # Every attempt takes all that waits in hand. News of more would repeat it with
                # every delta, and bring no sink back.
                news = asyncio.Event()
            # Not wait_for: before Python 3.12 it swallows a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await news.wait()

    async def _emit_archive(self, early: bool) -> None:
        owner = self._owner
        for layer in owner.plan.layers:
            emission = None if layer.is_combiner else owner.due(layer, ARCHIVE, early=early)
            if emission is None:
                continue
            rows, times = archive_rows(owner, emission)
            await self._archive.write(layer, rows, times)
            self._counts.archived[layer.name] += rows.height
            self._acknowledge(emission)

    async def _emit_coarser(self, early: bool) -> float | None:
        owner = self._owner
        now = asyncio.get_running_loop().time()
        combine = now >= self._combined_at + COMBINER_EMIT_S
        for layer in owner.plan.layers:
            takes_open = early or (combine and layer.is_combiner)
            for coarser in owner.plan.coarser[layer.name]:
                emission = owner.due(layer, coarser.name, early=takes_open)
                if emission is not None:
                    blocks = split_cells(layer, coarser, emission.cells)
                    await self._send(layer, coarser, emission.announced, blocks)
                    self._acknowledge(emission)
                    if takes_open and layer.is_combiner:
                        self._combined_at = now
        return _least(await self._announce(), self._combiner_wait_s())

    def _combiner_wait_s(self) -> float | None:
        """Return the seconds until combiners may send open cells, None where none has changed."""
        owner = self._owner
        changed = any(
            owner.has_changed(layer, coarser.name)
            for layer in owner.plan.layers
            if layer.is_combiner
            for coarser in owner.plan.coarser[layer.name]
        )
        if not changed:
            return None
        return max(0.0, self._combined_at + COMBINER_EMIT_S - asyncio.get_running_loop().time())

    async def _announce(self) -> float | None:
        """Tell coarser layers how far this partition is, where a floor has passed a window.

        Returns the seconds until an announcement that must wait may be sent, None where none waits.
        """
        now = asyncio.get_running_loop().time()
        news = list(self._news())
        if not news:
            return None
        due_s = self._announced_at + ANNOUNCE_INTERVAL_S - now
        if due_s > 0:
            return due_s
        self._announced_at = now
        for layer, coarser, announced in news:
            everywhere = [(target, b"") for target in range(coarser.partitions)]
            await self._send(layer, coarser, announced, everywhere)
            self._announced[layer.name, coarser.name] = announced
        return ANNOUNCE_INTERVAL_S if list(self._news()) else None

    def _news(self) -> list[tuple[Layer, Layer, Announcement]]:
        owner = self._owner
        found = []
        for layer in owner.plan.layers:
            for coarser in owner.plan.coarser[layer.name]:
                announced = owner.announcement(layer, coarser.name)
                known = self._announced.get((layer.name, coarser.name))
                if _passed(layer, announced) != (known and _passed(layer, known)):
                    found.append((layer, coarser, announced))
        return found

    async def _send(
        self,
        layer: Layer,
        coarser: Layer,
        announced: Announcement,
        blocks: Sequence[tuple[int, bytes]],
    ) -> None:
        owner = self._owner
        topic = owner.plan.themap.input_topic(coarser)
        revision = owner.plan.themap.revision
        sends = [
            self._log.append(
                topic,
                target,
                encode_contribution(
                    Contribution(layer.name, revision, owner.partition, announced, block)
                ),
                (),
            )
            for target, block in blocks
        ]
        await asyncio.gather(*sends)

    def _acknowledge(self, emission: Emission) -> None:
        self._owner.acknowledge(emission)
        self.on_acknowledged()


def _least(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two waits, None where there is none."""
    return min((wait for wait in (one, other) if wait is not None), default=None)


def _passed(layer: Layer, announced: Announcement) -> tuple[int, ...]:
    """Return the windows that an announcement has passed: news only when these change."""
    return tuple(layer.window.start(moment) for moment in announced)


def archive_rows(owner: Owner, emission: Emission) -> tuple[pl.DataFrame, pl.Series]:
    """Return the archive frame of an emission and the write time of each row.

    The write time is the window's end in microseconds plus the version since the partition's base:
    the same over all owners, equal on replay, smaller for a stale value (docs/formats/journal.md
    rule 13).
    """
    rows = emission.cells.with_columns(source_partition=pl.lit(owner.partition, pl.Int32))
    end = emission.layer.window.ends(pl.col("window_start"))
    times = rows.select(end * 1_000 + pl.col("version") - owner.state.meta.base).to_series()
    return rows, times
