"""The owner of one source partition: it claims, advances by deltas, and emits.

The protocol is that of docs/formats/journal.md. Nothing here touches the network, the disk or a
clock but through ``PartitionIO``, so the same object runs under asyncio with Kafka and under a
simulator that stops, kills and resumes it at every ``await``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import polars as pl

from agents.fold.layers import Before, Content
from agents.partition.acks import Acks, oldest_taken
from agents.partition.claims import check_source, fenced, new_claim, why_refused
from agents.partition.deltas import fitted
from agents.partition.emission import ARCHIVE, FEED, Due, Emission
from agents.partition.partition_io import PartitionIO
from agents.partition.recognition import Recognition
from agents.partition.recovery import Recovery, take
from tables.model import ledger
from tables.model.errors import (
    FencedError,
    JournalUnreadError,
    OffsetGoneError,
    OutcomeUnknownError,
)
from tables.model.layer import Layer
from tables.model.limits import DELTA_BYTES_MAX, EVICTED_MAX
from tables.record.chunk import Run
from tables.state.block import FewRows, encode_block
from tables.state.cell import whole_only
from tables.state.contribution import added_up
from tables.state.input_plan import InputPlan
from tables.state.journal import (
    Announcement,
    Delta,
    Entry,
    Identity,
    PartPlace,
    Snapshot,
    SnapshotPart,
    encode_entry,
    identity_of,
)
from tables.state.layer_table import NEVER_ENDS_MS, NEVER_MS
from tables.state.partition_state import PartitionState
from tables.state.snapshot import capture

SNAPSHOT_TAIL_BYTES_MIN = 1 << 20
"""Deltas up to this size are read faster than they are worth a snapshot."""

SNAPSHOT_TAIL_RATIO = 2
"""A snapshot is due when the deltas since the last one have come to so many times its size: this
keeps what a recovery reads, and what the journal holds, to a few times the state."""

UNSAVED_DELTAS_MAX = 16
"""Deltas that the local store lacks at most: a write costs as much as folding a few events does.
What it lacks when the worker ends is read from the journal, in milliseconds."""

UNSAVED_BYTES_MAX = 256 << 10
"""Of deltas that the local store lacks; large ones are written at once."""


class Owner:
    """One owner of one source partition, from its claim until it is fenced or released."""

    def __init__(self, plan: InputPlan, partition: int, io: PartitionIO) -> None:
        self.plan = plan
        self.partition = partition
        self.state = PartitionState(plan)
        self._io = io
        self._epoch = -1
        self.archive = Recognition(plan, partition, io)
        self._unsaved_deltas = self._unsaved_bytes = 0
        self._acks = self._no_acks()
        self._told: dict[str, int] = {}
        # By layer, the greatest version of any window that was evicted.
        self.evicted_versions: dict[str, int] = {}

    @property
    def position(self) -> int:
        """The next source offset: ``state.to``, and nothing else, says where to go on."""
        return self.state.meta.to

    @property
    def has_events(self) -> bool:
        """Whether any event, and not heartbeats alone, has moved the partition's stream time."""
        return _has_events(self.state.meta.ledger)

    def before(self) -> Before:
        """Return what folding the next chunk must know."""
        meta = self.state.meta
        return Before(meta.stream_time_ms, meta.floors, self.state.ids)

    def sinks(self, layer: Layer) -> list[str]:
        """Return where the cells of ``layer`` go: those of a combiner to its merge stage only."""
        names = [coarser.name for coarser in self.plan.coarser[layer.name]]
        if layer.is_combiner:
            return names
        return [ARCHIVE, FEED, *names] if layer.publish else [ARCHIVE, *names]

    async def claim(self) -> None:
        """Claim the partition and restore its state from local store and journal.

        Raises:
            FencedError: another owner claimed meanwhile.
            OutcomeUnknownError: it may have landed; a JournalUnreadError: it has, unread.
            JournalRefusedError: this worker must not continue this history.
        """
        await self.archive.check_empty()
        claim = await new_claim(self.plan, self._io)
        epoch = await self._io.append(encode_entry(claim))
        try:
            self.state = await Recovery(self.plan, self.partition, self._io).run(epoch)
        except OutcomeUnknownError as error:
            raise JournalUnreadError(str(error)) from error
        if self.state.meta.epoch != epoch:
            raise why_refused(self.plan, self.partition, self.state.meta, claim)
        self._epoch = epoch
        self._acks = self._no_acks()
        # Whatever earlier owners have evicted changed before this claim.
        self.evicted_versions = {layer.name: self.position for layer in self.plan.layers}
        await check_source(self.plan, self.partition, self.state.meta, self._io)
        await self.archive.claimed(claim, self.state.meta)

    async def advance(self, content: Content, tail: Identity | None) -> None:
        """Append what a chunk adds, and apply it if it stands.

        Raises:
            FencedError: it does not stand: another owner took over.
            OutcomeUnknownError: it may or may not have landed; forget this owner and claim again.
            DeltaTooLargeError: nothing has happened; advance by less at once.
            TreasureMapError: nothing has happened, and no part of the content would fit.
        """
        where = f"{self.plan.topic}[{self.partition}]"
        delta, value = fitted(self._compose(content, tail), where, DELTA_BYTES_MAX)
        evicted = {
            layer.name: [
                self.state.tables[layer.name].versions[w] for w in delta.evicted[layer.name]
            ]
            for layer in self.plan.layers
            if layer.name in delta.evicted
        }
        await self._append(delta, value, content.blocks)
        for name, versions in evicted.items():
            self.evicted_versions[name] = max([self.evicted_versions[name], *versions])
        self._unsaved_deltas += 1
        self._unsaved_bytes += len(value)
        if self._unsaved_deltas >= UNSAVED_DELTAS_MAX or self._unsaved_bytes >= UNSAVED_BYTES_MAX:
            self._save()
        for (name, _), acks in self._acks.items():
            if name in delta.evicted:
                acks.forget(delta.evicted[name])
            if name in delta.blocks:
                acks.changed(self.state.tables[name].touched)

    def _no_acks(self) -> dict[tuple[str, str], Acks]:
        """Return acknowledgements by layer and sink: a new owner takes none as given (rule 10)."""
        return {
            (layer.name, sink): Acks(self.state.tables[layer.name].versions)
            for layer in self.plan.layers
            for sink in self.sinks(layer)
        }

    def wants_snapshot(self) -> bool:
        """Tell whether the journal has grown so much that a snapshot is due."""
        meta = self.state.meta
        tail_max = max(SNAPSHOT_TAIL_BYTES_MIN, SNAPSHOT_TAIL_RATIO * meta.snapshot_bytes)
        return meta.tail_bytes > tail_max

    def capture(self) -> tuple[int, Iterator[SnapshotPart]]:
        """Return which journal prefix the state comes from, and the state in parts.

        Deltas may go on between the parts: they stay those of this moment.
        """
        return self.state.meta.journal_offset, capture(self.state)

    async def append_part(self, part: SnapshotPart) -> PartPlace:
        """Append a part of a snapshot; return where it is.

        Raises:
            FencedError: another owner took over.
            OutcomeUnknownError: it may or may not have landed.
        """
        value = encode_entry(part)
        offset = await self._append(part, value)
        return offset, *identity_of(value)

    async def append_snapshot(self, covers: int, parts: list[PartPlace]) -> None:
        """Complete a snapshot of which all parts are acknowledged.

        Raises:
            FencedError: another owner took over.
            OutcomeUnknownError: it may or may not have landed.
        """
        snapshot = Snapshot(covers, parts)
        await self._append(snapshot, encode_entry(snapshot))
        self._save()

    def _save(self) -> None:
        self._io.save(self.state.take_writes(), self.state.meta)
        self._unsaved_deltas = self._unsaved_bytes = 0

    async def truncate(self) -> None:
        """Delete what the last but one snapshot covers; the last two stay (rule 7).

        Raises:
            OutcomeUnknownError: the broker did not answer; the next snapshot truncates again.
        """
        covered = self.state.meta.covered
        if len(covered) > 1:
            await self._io.truncate(covered[0])

    def housekeeping(self) -> Content | None:
        """Return an empty-range content where windows can be evicted, else None."""
        if not any(self._evictable().values()):
            return None
        position = self.position
        return Content(position, position, self.state.meta.stream_time_ms, {}, {})

    def due(self, layer: Layer, sink: str, *, early: bool = False) -> Due | None:
        """Return the closed cells that ``sink`` has not acknowledged at their version, if any.

        ``early`` takes the cells of open windows along: emission at any time is free (rule 8). Of
        windows that the layer does not have whole nothing is sent.
        """
        early = early and self.state.is_known(layer)
        versions = self._changed(layer, sink) if early else self._unacknowledged(layer, sink)
        if not versions:
            return None
        table = self.state.tables[layer.name]
        collect = table.collect(versions)
        announced = self.announcement(layer, sink)
        complete_ms = self.state.complete_ms(layer)
        whole = self.whole_for(layer, sink)
        acks = self._acks[layer.name, sink]
        sent = {window: acks.get(window, -1) for window in versions if acks.get(window, -1) >= 0}

        def emission() -> Emission:
            cells = whole_only(collect(), {"events": complete_ms})
            if sink not in (ARCHIVE, FEED):
                cells = added_up(layer, self._coarser(layer, sink), cells)
            if sent:
                start = pl.col("window_start")
                known = start.replace_strict(sent, default=-1, return_dtype=pl.Int64)
                cells = cells.filter(pl.col("version") > known)
            return Emission(layer, sink, cells, versions, announced, whole)

        return Due(table.rows_of(versions), emission)

    def whole_for(self, layer: Layer, sink: str) -> dict[str, int]:
        """Return what a coarser layer is told of what it gets whole; nothing for other sinks."""
        if sink in (ARCHIVE, FEED):
            return {}
        return self.state.sends_whole(layer, self._coarser(layer, sink))

    def _coarser(self, layer: Layer, name: str) -> Layer:
        return next(coarser for coarser in self.plan.coarser[layer.name] if coarser.name == name)

    def acknowledge(self, emission: Emission) -> None:
        """Take note that the sink has all cells of ``emission``."""
        self._acks[emission.layer.name, emission.sink].take(emission.versions)

    def announcement(self, layer: Layer, coarser: str) -> Announcement:
        """Return what may be announced to ``coarser``: times up to which its log has everything.

        All of it comes from one snapshot of the state (rule 11).
        """
        closed, floor = self.state.closed_ms(layer), self.state.floor_ms(layer)
        waiting = self._acks[layer.name, coarser].first()
        if waiting is None or waiting >= layer.window.start(closed):
            return closed, floor
        least = layer.window.end(waiting) - 1
        return min(closed, least), min(floor, least)

    def has_due(self, layer: Layer, sink: str) -> bool:
        """Tell whether :meth:`due` would return closed cells."""
        return bool(self._unacknowledged(layer, sink))

    def has_changed(self, layer: Layer, sink: str) -> bool:
        """Tell whether cells, of open windows too, have changed since ``sink`` got them."""
        return bool(self._changed(layer, sink))

    def waiting_open(self, layer: Layer) -> int:
        """Return the number of open windows that some sink lacks at their version.

        Feeds do not count: they get no open cells.
        """
        return sum(
            len(self._changed(layer, sink)) - len(self._unacknowledged(layer, sink))
            for sink in self.sinks(layer)
            if sink != FEED
        )

    def unacknowledged(self, layer: Layer) -> int:
        """Return the number of closed windows that some sink has not acknowledged."""
        return sum(len(self._unacknowledged(layer, sink)) for sink in self.sinks(layer))

    def pending_bytes(self) -> int:
        """Return about how much memory the closed cells take that some sink has not acknowledged.

        Open cells are not among them: they wait for events, and no pause would let them go.
        """
        return sum(
            self.state.tables[layer.name].bytes_of(
                {w for sink in self.sinks(layer) for w in self._unacknowledged(layer, sink)}
            )
            for layer in self.plan.layers
        )

    def _unacknowledged(self, layer: Layer, sink: str) -> dict[int, int]:
        # Windows end one after the other: closed are those before the one that holds this time.
        stop = layer.window.start(self.state.closed_ms(layer))
        changed = self._changed(layer, sink)
        return {window: version for window, version in changed.items() if window < stop}

    def _changed(self, layer: Layer, sink: str) -> dict[int, int]:
        """Return the windows, open ones too, that ``sink`` lacks at their version."""
        return self._acks[layer.name, sink].lacking()

    def _evictable(self) -> dict[str, list[int]]:
        """Return the sealed windows, by layer, that every sink has acknowledged (rule 9).

        They are sealed before the delta that evicts them, so it cannot change their cells. Older
        ones go first, so that all that were evicted end before all that are there; those that one
        delta has no room for wait for the next.
        """
        room = EVICTED_MAX
        found: dict[str, list[int]] = {}
        for layer in self.plan.layers:
            floor = min(self.state.floor_ms(layer), self._told_ms(layer))
            table = self.state.tables[layer.name]
            oldest = table.oldest
            if oldest is None or layer.window.end(oldest) > floor:
                continue
            acks = [self._acks[layer.name, sink] for sink in self.sinks(layer)]
            if any(one.get(oldest, -1) < table.versions[oldest] for one in acks):
                continue
            found[layer.name] = oldest_taken(layer.window, floor, table.versions, acks, room)
            room -= len(found[layer.name])
        return found

    def _told_ms(self, layer: Layer) -> int:
        """Return up to which floor cells may go as far as readers are concerned.

        Parts of cells are not archived: a combiner keeps them until its merge stage can know that
        it has them all.
        """
        if not layer.is_combiner:
            return NEVER_ENDS_MS
        (coarser,) = self.plan.coarser[layer.name]
        return self._told.get(coarser.name, NEVER_MS)

    def told(self, coarser: str, announced: Announcement) -> None:
        """Take note that every partition of a coarser layer's topic has this announcement."""
        self._told[coarser] = announced[1]

    def _compose(self, content: Content, tail: Identity | None) -> Delta:
        meta = self.state.meta
        assert content.start == meta.to, f"content from {content.start} after {meta.to}"
        names = [layer.name for layer in self.plan.layers]
        wrong = ledger.imbalances(content.ledger, content.stop - content.start, names)
        assert not wrong, f"the ledger of {content.start} to {content.stop} is off: {wrong}"
        stream_time = max(meta.stream_time_ms, content.stream_time_ms)
        floors = {}
        if self.plan.finer is None and stream_time > NEVER_MS:
            for layer in self.plan.layers:
                floor = stream_time - layer.max_out_of_orderness_ms - layer.allowed_lateness_ms
                floors[layer.name] = max(floor, meta.floors.get(layer.name, NEVER_MS))
        evicted = {name: windows for name, windows in self._evictable().items() if windows}
        ids = self.state.ids
        forgettable = ids.forgettable(stream_time) if ids is not None else 0
        return Delta(
            epoch=self._epoch,
            revision=self.plan.themap.revision,
            start=content.start,
            stop=content.stop,
            stream_time_ms=stream_time,
            floors=floors,
            announced=content.announced,
            ledger={name: count for name, count in content.ledger.items() if count},
            blocks={name: encode_block(block) for name, block in content.blocks.items()},
            evicted=evicted,
            tail=tail,
            snapshot=meta.snapshot,
            has_events=self.has_events or _has_events(content.ledger),
            ids_gone=meta.ids_gone + forgettable,
            whole=content.whole,
        )

    async def _append(
        self, entry: Entry, value: bytes, rows: Mapping[str, pl.DataFrame | FewRows] | None = None
    ) -> int:
        """Append an entry and read back up to it; return its offset.

        An acknowledged append may still not stand (rule 5). ``rows`` are what its blocks hold.
        """
        offset = await self._io.append(value)
        meta = self.state.meta
        if offset < meta.journal_offset:
            raise OutcomeUnknownError(
                f"cannot use append at offset {offset}: read up to {meta.journal_offset} already"
            )
        cannot = (
            f"cannot advance {self.plan.topic}[{self.partition}]: the journal has a newer owner"
        )
        while meta.journal_offset < offset:
            try:
                others = await self._io.read(meta.journal_offset, offset)
            except OffsetGoneError:
                # Only an owner truncates, and only what it has read.
                raise FencedError(cannot) from None
            for other in others:
                take(self.state, self.partition, other)
        if isinstance(entry, Delta):
            await self._merge_ahead(entry, rows or {})
        stands = self.state.apply(offset, entry, identity_of(value), rows)
        if not stands or meta.epoch != self._epoch:
            raise fenced(cannot, meta, self._io.claimant)
        return offset

    async def _merge_ahead(self, delta: Delta, rows: Mapping[str, pl.DataFrame | FewRows]) -> None:
        """Make the large merges that a delta of these rows will bring in a thread.

        Where windows are evicted first, other blocks will be merged than those there now.
        """
        for name, block in rows.items():
            if name not in delta.evicted:
                job = self.state.tables[name].merge_ahead(block, delta.stop)
                if job is not None:
                    job.commit(await self._io.run_in_thread(job.make))


def _has_events(counts: ledger.Ledger) -> bool:
    return any(counts.get(f"events.{column}") for column in ("classified", "unclassified"))


def tail_of(run: Run) -> Identity | None:
    """Return the identity of a run's last record: append time and CRC-32 of its value.

    None where there is none, or its value was not all read.
    """
    if not run.values or run.offsets[-1] != run.next_offset - 1:
        return None
    if len(run.values) - 1 in run.faults:
        return None
    return run.append_times_ms[-1], zlib.crc32(run.values[-1] or b"")
