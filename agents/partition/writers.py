"""Writers: each sends the due cells of one owner to one kind of sink, and knows when some are due.

archive       closed cells at once, open ones early
layer topics  the same, and those of a combiner at most once a second, so that the merged
layer's live table is at most about a second behind; and announcements
feeds         closed cells at once: readers of a feed need not know of open windows
"""

from __future__ import annotations

import abc
import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeVar

import polars as pl

from agents.partition.emit_counts import EmitCounts
from agents.partition.owner import Owner
from agents.partition.schedule import NEVER, NOW, loop_time
from agents.partition.sinks import ARCHIVE, FEED, Due, Emission
from agents.ports import Log
from tables.archive.protocol import Archive
from tables.model.layer import Layer
from tables.query.feed_records import feed_records
from tables.state.contribution import Contribution, encode_contribution, split_cells
from tables.state.journal import Announcement

ANNOUNCE_INTERVAL_S = 1.0
"""Minimum seconds between two announcements without cells to a partition."""

COMBINER_EMIT_S = 1.0
"""Minimum seconds between two emissions of open cells by a partition's combiners. A cell that
changes with every chunk costs its merge stage one row a second for each source partition."""

THREAD_ROWS_MIN = 1_000
"""Rows from which on an emission is made in a thread. 1,000 rows take 1.3 ms, 20,000 take 6, and a
window closes in all partitions at once: that would hold up the input and queries."""

FEED_RECORDS_AT_ONCE = 200
"""Records of a feed that are appended together. Each takes 37 us of CPU, so 200 of them block the
loop for about 8 ms; a window of many cells would block it for seconds."""

Made = TypeVar("Made")


class Writer(abc.ABC):
    """Sends the cells of one owner to one kind of sink.

    Attributes:
        kind: the kind of the sink, one of ``agents.partition.emit_counts.SINKS``.
        takes_open: whether cells of open windows are sent to it early.
    """

    kind: ClassVar[str]
    takes_open: ClassVar[bool] = True

    def __init__(
        self, owner: Owner, counts: EmitCounts, sinks: Sequence[tuple[Layer, str]]
    ) -> None:
        self._owner = owner
        self._counts = counts
        self._sinks = sinks

    def due(self) -> float:
        """Return when cells or announcements are due, apart from early emissions."""
        has_due = self._owner.sinks.has_due
        return NOW if any(has_due(layer, sink) for layer, sink in self._sinks) else NEVER

    @abc.abstractmethod
    async def write(self, *, early: bool) -> None:
        """Send the due cells, and with ``early`` also those of open windows.

        Raises:
            ArchiveError, OutcomeUnknownError: the sink may lack some of them; send them again.
        """


class ArchiveWriter(Writer):
    """Writes rows to the archive."""

    kind = "archive"

    def __init__(self, owner: Owner, archive: Archive, counts: EmitCounts) -> None:
        layers = [layer for layer in owner.plan.layers if not layer.is_combiner]
        super().__init__(owner, counts, [(layer, ARCHIVE) for layer in layers])
        self._archive = archive
        self._recognition = f"recognize {owner.plan.topic} {owner.partition}"

    async def write(self, *, early: bool) -> None:
        """Write the due rows."""
        owner, outage = self._owner, self._counts.archive
        # Each partition and each table is a kind of its own: if one is refused, the success of
        # another one, or of an emission without rows, does not end that outage.
        with outage.attempt(self._recognition):
            await owner.archive.check()
        for layer, sink in self._sinks:
            due = owner.sinks.due(layer, sink, early=early)
            if due is None:
                continue
            emission, (rows, times) = await made(due, functools.partial(archive_rows, owner))
            with outage.attempt(f"write {layer.name}"):
                await self._archive.write(layer, rows, times)
            self._counts.archived[layer.name] += rows.height
            owner.sinks.acknowledge(emission)

    def abandon(self) -> None:
        """End the outage of this owner, for which nothing is written any more."""
        self._counts.archive.abandoned(self._recognition)


class LayerTopicWriter(Writer):
    """Appends contributions and announcements to the topics of coarser layers."""

    kind = "layer_topic"

    def __init__(
        self, owner: Owner, to: Log, counts: EmitCounts, clock: Callable[[], float] = loop_time
    ) -> None:
        self._pairs = [
            (layer, coarser)
            for layer in owner.plan.layers
            for coarser in owner.plan.coarser[layer.name]
        ]
        super().__init__(owner, counts, [(layer, coarser.name) for layer, coarser in self._pairs])
        self._log = to
        self._clock = clock
        self._announced: dict[tuple[str, str], tuple[Announcement, dict[str, int]]] = {}
        self._announced_at = NOW
        self._combined_at = NOW

    def due(self) -> float:
        """Return now if a coarser layer lacks closed cells; combiners and news have intervals."""
        if (due := super().due()) == NOW:
            return due
        combined = any(
            layer.is_combiner and self._owner.sinks.has_changed(layer, sink)
            for layer, sink in self._sinks
        )
        return min(
            self._combined_at + COMBINER_EMIT_S if combined else NEVER,
            self._announced_at + ANNOUNCE_INTERVAL_S if any(self._news()) else NEVER,
        )

    async def write(self, *, early: bool) -> None:
        """Append the due contributions and announcements."""
        with self._counts.kafka.attempt(self.kind):
            await self._contribute(early)
            await self._announce()

    async def _contribute(self, early: bool) -> None:
        owner = self._owner
        now = self._clock()
        combine = now >= self._combined_at + COMBINER_EMIT_S
        for layer, coarser in self._pairs:
            takes_open = early or (combine and layer.is_combiner)
            due = owner.sinks.due(layer, coarser.name, early=takes_open)
            if due is None:
                continue
            emission, blocks = await made(due, functools.partial(_blocks, coarser))
            await self._send(layer, coarser, emission.announced, emission.whole, blocks)
            owner.sinks.acknowledge(emission)
            if takes_open and layer.is_combiner:
                self._combined_at = now

    async def _announce(self) -> None:
        """Announce to coarser layers how far this partition is, if a floor has passed a window."""
        now = self._clock()
        news = list(self._news())
        if not news or now < self._announced_at + ANNOUNCE_INTERVAL_S:
            return
        self._announced_at = now
        for layer, coarser, announced, whole in news:
            everywhere = [(target, b"") for target in range(coarser.partitions)]
            await self._send(layer, coarser, announced, whole, everywhere)
            self._announced[layer.name, coarser.name] = announced, whole
            self._owner.sinks.announced(coarser.name, announced)

    def _news(self) -> Iterator[tuple[Layer, Layer, Announcement, dict[str, int]]]:
        """Yield the announcements that coarser layers lack."""
        sinks = self._owner.sinks
        for layer, coarser in self._pairs:
            announced = sinks.announcement(layer, coarser.name)
            whole = sinks.whole_for(layer, coarser.name)
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
        sends = []
        for target, block in blocks:
            sent = Contribution(layer.name, revision, owner.partition, announced, block, whole)
            sends.append(self._log.append(topic, target, encode_contribution(sent), ()))
        await asyncio.gather(*sends)


class FeedWriter(Writer):
    """Appends closed cells to the feeds of published layers."""

    kind = "feed"
    takes_open = False

    def __init__(self, owner: Owner, to: Log, counts: EmitCounts) -> None:
        layers = [layer for layer in owner.plan.layers if layer.publish]
        super().__init__(owner, counts, [(layer, FEED) for layer in layers])
        self._log = to

    async def write(self, *, early: bool) -> None:
        """Append the due closed cells."""
        assert not early, "open cells are not published"
        with self._counts.kafka.attempt(self.kind):
            for layer, sink in self._sinks:
                due = self._owner.sinks.due(layer, sink)
                if due is not None:
                    await self._publish(layer, due)

    async def _publish(self, layer: Layer, due: Due) -> None:
        owner = self._owner
        revision, partition = owner.plan.themap.revision, owner.partition
        emission, records = await made(
            due, lambda emission: feed_records(layer, revision, partition, emission.cells)
        )
        topic = owner.plan.themap.feed_topic(layer)
        for first in range(0, len(records), FEED_RECORDS_AT_ONCE):
            sends = [
                self._log.append(topic, target, value, (), key=key)
                for target, key, value in records[first : first + FEED_RECORDS_AT_ONCE]
            ]
            await asyncio.gather(*sends)
        self._counts.published[layer.name] += emission.cells.height
        owner.sinks.acknowledge(emission)


async def made(due: Due, then: Callable[[Emission], Made]) -> tuple[Emission, Made]:
    """Return an emission, and the result of ``then`` for it; a large one is made in a thread."""

    def make() -> tuple[Emission, Made]:
        emission = due.emission()
        return emission, then(emission)

    return make() if due.rows < THREAD_ROWS_MIN else await asyncio.to_thread(make)


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


def _blocks(coarser: Layer, emission: Emission) -> list[tuple[int, bytes]]:
    return split_cells(coarser, emission.cells)


def _passed(layer: Layer, announced: Announcement) -> tuple[int, ...]:
    """Return the windows that an announcement has passed; it is news only if these change."""
    return tuple(layer.window.start(moment) for moment in announced)
