"""Emit: closed cells to archive, coarser layers' topics and feeds, until they are acknowledged.

Emission never decides content: it may stop, repeat and reorder freely (docs/formats/journal.md
rules 8 and 11). Each owner has one task per destination, so that an archive that is away does not
hold back coarser layers.

    closed        -> at once, until acknowledged at its version
    open          -> once the partition's cells have not changed for early_emit_s
    combiner's    -> open cells too, at most once a second, so that the merged layer's live table is
                     at most about a second behind

A feed gets closed cells only: who reads it need not know what open means.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import polars as pl

from agents.outage import Outage
from agents.partition.emission import ARCHIVE, FEED, Due, Emission
from agents.partition.owner import Owner
from agents.supervised import supervised
from agents.tasks import end
from tables.archive.protocol import Archive
from tables.model.errors import ArchiveError, OutcomeUnknownError
from tables.model.layer import Layer
from tables.query.feed_records import FeedRecord, feed_records
from tables.state.contribution import Contribution, encode_contribution, split_cells
from tables.state.journal import Announcement

ANNOUNCE_INTERVAL_S = 1.0
"""An announcement without cells is sent at most this often to a partition."""

COMBINER_EMIT_S = 1.0
"""A partition's combiners send cells of open windows at most this often: a cell that changes with
every chunk costs its merge stage one row a second for each source partition, however hot it is."""

BESIDE_ROWS_MIN = 1_000
"""Emissions from so many rows are made in a thread. 1,000 rows take 1.3 ms, 20,000 take 6, and a
window closes in all partitions at once: that would hold up the input and queries."""

FEED_RECORDS_AT_ONCE = 200
"""Records of a feed that are appended together. Each takes 37 us of CPU, so 200 of them hold the
loop for about 8 ms; a window of many cells would hold it for seconds."""

RETRY_S_MIN = 0.2
RETRY_S_MAX = 10.0


SINKS = ("archive", "layer_topic", "feed")
"""The kinds of sinks, each with a task of its own."""

Made = TypeVar("Made")

Emit = Callable[[bool], Awaitable[None]]
"""Sends what is due, open cells too if told so."""

NEVER_S = math.inf
"""When nothing is due, in seconds of the event loop's clock like all times here."""


class Log(Protocol):
    """Appends to any topic."""

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...],
        *,
        key: bytes | None = None,
    ) -> int:
        """Append a record; return its offset. Raises OutcomeUnknownError."""


def _archive() -> Outage:
    return Outage("the archive", "closed cells wait in tables and journal")


def _kafka() -> Outage:
    return Outage("Kafka", "nothing is read or sent on, and what was read is answered for")


@dataclasses.dataclass(slots=True)
class EmitCounts:
    """What was emitted since the worker started.

    ``archived`` counts rows acknowledged by the archive, ``published`` those acknowledged by feeds,
    both by layer; ``failures`` attempts that failed, and are repeated, by the kind of sink, one of
    ``SINKS``. ``archive`` and ``kafka`` are what the sinks depend on; each attempt reports there.
    """

    archived: Counter[str] = dataclasses.field(default_factory=Counter)
    published: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    archive: Outage = dataclasses.field(default_factory=_archive)
    kafka: Outage = dataclasses.field(default_factory=_kafka)


@dataclasses.dataclass(slots=True)
class _Route:
    """One destination: ``emit`` sends to it, ``due_at`` tells when there will be something to send.

    ``sink`` is its kind. ``takes_open`` says whether open cells are sent to it early. ``looks_at``
    is when its task looks again by itself, ``-NEVER_S`` while no news is wanted. ``sent_early`` is
    the change after which open cells were sent last.
    """

    sink: str
    emit: Emit
    due_at: Callable[[], float]
    takes_open: bool = True
    news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    looks_at: float = NEVER_S
    sent_early: float = -NEVER_S


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
        self._recognition = f"recognize {owner.plan.topic} {owner.partition}"
        self._changed_at = -NEVER_S
        self._tasks: list[asyncio.Task[None]] = []
        self._routes: list[_Route] = []
        self._announced: dict[tuple[str, str], tuple[Announcement, dict[str, int]]] = {}
        self._announced_at = -ANNOUNCE_INTERVAL_S
        self._combined_at = -COMBINER_EMIT_S
        self.on_acknowledged: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the tasks."""
        self._spawn(_Route("archive", self._emit_archive, self._archive_due_at))
        if any(self._owner.plan.coarser.values()):
            self._spawn(_Route("layer_topic", self._emit_coarser, self._coarser_due_at))
        if any(layer.publish for layer in self._owner.plan.layers):
            self._spawn(_Route("feed", self._emit_feed, self._feed_due_at, takes_open=False))
        self.wake(changed=True)

    def wake(self, *, changed: bool = False) -> None:
        """Tell that the state has changed; ``changed`` says that cells have.

        Most deltas make nothing due: then no task is woken.
        """
        if changed:
            self._changed_at = _now()
        for route in self._routes:
            # While an archive is away, what waits grows; it is not looked through for every delta.
            if route.looks_at > -NEVER_S and self._due_at(route) < route.looks_at:
                route.news.set()

    async def stop(self) -> None:
        """Cancel the tasks; what was not acknowledged is sent by the next owner."""
        await asyncio.gather(*(end(task) for task in self._tasks))
        self._counts.archive.abandoned(self._recognition)

    def _spawn(self, route: _Route) -> None:
        self._routes.append(route)
        self._tasks.append(asyncio.create_task(supervised(self._serve(route), self._failed)))

    async def _serve(self, route: _Route) -> None:
        """Emit whenever something is due; back off on failure."""
        retry_s = RETRY_S_MIN
        while True:
            route.news.clear()
            due_at = self._due_at(route)
            if due_at > _now():
                route.looks_at = due_at
                await _pause(route, None if due_at == NEVER_S else due_at - _now())
                continue
            # What becomes due meanwhile is seen afterwards.
            route.looks_at = -NEVER_S
            change, early = self._changed_at, self._early_at(route) <= _now()
            try:
                await route.emit(early)
                retry_s = RETRY_S_MIN
                if early:
                    route.sent_early = change
            except (ArchiveError, OutcomeUnknownError):
                self._counts.failures[route.sink] += 1
                # Every attempt takes all that waits in hand. News of more would repeat it with
                # every delta, and bring no sink back.
                await _pause(route, retry_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads only
                retry_s = min(retry_s * 2, RETRY_S_MAX)

    def _due_at(self, route: _Route) -> float:
        """Return when something is due; in the past where it is due now."""
        return min(route.due_at(), self._early_at(route))

    def _early_at(self, route: _Route) -> float:
        """Return when open cells are due, because nothing has changed for a while."""
        off = not self._early_emit_s or not route.takes_open
        if off or self._changed_at == route.sent_early:
            return NEVER_S
        if not all(map(self._owner.state.is_known, self._owner.plan.layers)):
            return NEVER_S
        return self._changed_at + self._early_emit_s

    def _archive_due_at(self) -> float:
        owner = self._owner
        layers = [layer for layer in owner.plan.layers if not layer.is_combiner]
        return -NEVER_S if any(owner.has_due(layer, ARCHIVE) for layer in layers) else NEVER_S

    def _coarser_due_at(self) -> float:
        owner = self._owner
        pairs = [
            (layer, c.name) for layer in owner.plan.layers for c in owner.plan.coarser[layer.name]
        ]
        if any(owner.has_due(*pair) for pair in pairs):
            return -NEVER_S
        combined = any(layer.is_combiner and owner.has_changed(layer, c) for layer, c in pairs)
        combine_at = self._combined_at + COMBINER_EMIT_S if combined else NEVER_S
        announce_at = self._announced_at + ANNOUNCE_INTERVAL_S if any(self._news()) else NEVER_S
        return min(combine_at, announce_at)

    def _feed_due_at(self) -> float:
        owner = self._owner
        published = [layer for layer in owner.plan.layers if layer.publish]
        return -NEVER_S if any(owner.has_due(layer, FEED) for layer in published) else NEVER_S

    async def _emit_archive(self, early: bool) -> None:
        owner = self._owner
        archive = self._counts.archive
        # Each partition and each table is a kind of its own: where one is refused, others that
        # are taken, or an emission that had nothing to write, say nothing of it.
        with archive.attempt(self._recognition):
            await owner.archive.check()
        for layer in owner.plan.layers:
            due = None if layer.is_combiner else owner.due(layer, ARCHIVE, early=early)
            if due is None:
                continue
            emission, (rows, times) = await beside(due, functools.partial(archive_rows, owner))
            with archive.attempt(f"write {layer.name}"):
                await self._archive.write(layer, rows, times)
            self._counts.archived[layer.name] += rows.height
            self._acknowledge(emission)

    async def _emit_coarser(self, early: bool) -> None:
        with self._counts.kafka.attempt("layer_topic"):
            await self._send_coarser(early)

    async def _emit_feed(self, early: bool) -> None:
        assert not early, "open cells are not published"
        with self._counts.kafka.attempt("feed"):
            await self._publish()

    async def _send_coarser(self, early: bool) -> None:
        owner = self._owner
        now = _now()
        combine = now >= self._combined_at + COMBINER_EMIT_S
        for layer in owner.plan.layers:
            takes_open = early or (combine and layer.is_combiner)
            for coarser in owner.plan.coarser[layer.name]:
                due = owner.due(layer, coarser.name, early=takes_open)
                if due is not None:
                    emission, blocks = await beside(due, functools.partial(_blocks, coarser))
                    await self._send(layer, coarser, emission.announced, emission.whole, blocks)
                    self._acknowledge(emission)
                    if takes_open and layer.is_combiner:
                        self._combined_at = now
        await self._announce()

    async def _publish(self) -> None:
        owner = self._owner
        for layer in owner.plan.layers:
            due = owner.due(layer, FEED) if layer.publish else None
            if due is None:
                continue
            emission, records = await beside(due, functools.partial(_feed_records, owner))
            topic = owner.plan.themap.feed_topic(layer)
            for at in range(0, len(records), FEED_RECORDS_AT_ONCE):
                sends = [
                    self._log.append(topic, target, value, (), key=key)
                    for target, key, value in records[at : at + FEED_RECORDS_AT_ONCE]
                ]
                await asyncio.gather(*sends)
            self._counts.published[layer.name] += emission.cells.height
            self._acknowledge(emission)

    async def _announce(self) -> None:
        """Tell coarser layers how far this partition is, where a floor has passed a window."""
        now = _now()
        news = list(self._news())
        if not news or now < self._announced_at + ANNOUNCE_INTERVAL_S:
            return
        self._announced_at = now
        for layer, coarser, announced, whole in news:
            everywhere = [(target, b"") for target in range(coarser.partitions)]
            await self._send(layer, coarser, announced, whole, everywhere)
            self._announced[layer.name, coarser.name] = announced, whole
            self._owner.told(coarser.name, announced)
            self.on_acknowledged()

    def _news(self) -> Iterator[tuple[Layer, Layer, Announcement, dict[str, int]]]:
        """Yield what coarser layers have not been told."""
        owner = self._owner
        for layer in owner.plan.layers:
            for coarser in owner.plan.coarser[layer.name]:
                announced = owner.announcement(layer, coarser.name)
                whole = owner.whole_for(layer, coarser.name)
                known = self._announced.get((layer.name, coarser.name))
                if known is None or (_passed(layer, announced), whole) != (
                    _passed(layer, known[0]), known[1],
                ):  # fmt: skip
                    yield layer, coarser, announced, whole

    async def _send(
        self,
        layer: Layer,
        coarser: Layer,
        announced: Announcement,
        whole: dict[str, int],
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
                    Contribution(layer.name, revision, owner.partition, announced, block, whole)
                ),
                (),
            )
            for target, block in blocks
        ]
        await asyncio.gather(*sends)

    def _acknowledge(self, emission: Emission) -> None:
        self._owner.acknowledge(emission)
        self.on_acknowledged()


async def beside(due: Due, then: Callable[[Emission], Made]) -> tuple[Emission, Made]:
    """Make an emission, and of it what ``then`` says; a large one beside the event loop."""

    def made() -> tuple[Emission, Made]:
        emission = due.emission()
        return emission, then(emission)

    return made() if due.rows < BESIDE_ROWS_MIN else await asyncio.to_thread(made)


def _blocks(coarser: Layer, emission: Emission) -> list[tuple[int, bytes]]:
    return split_cells(coarser, emission.cells)


def _feed_records(owner: Owner, emission: Emission) -> list[FeedRecord]:
    revision = owner.plan.themap.revision
    return feed_records(emission.layer, revision, owner.partition, emission.cells)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _pause(route: _Route, wait_s: float | None) -> None:
    """Wait for news, at most so long."""
    # Not wait_for: before Python 3.12 it swallows a cancellation that meets the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await route.news.wait()


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
