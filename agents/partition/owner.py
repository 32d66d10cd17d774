"""The owner of one source partition: it claims, advances by deltas, and emits.

The protocol is that of docs/formats/journal.md. Nothing here touches the network, the disk or a
clock but through ``PartitionIO``, so the same object runs under asyncio with Kafka and under a
simulator that stops, kills and resumes it at every ``await``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import polars as pl

from agents.fold.content import Before, Content
from agents.partition.claims import check_source, fenced, new_claim, why_refused
from agents.partition.deltas import delta_of, fitted
from agents.partition.partition_io import PartitionIO
from agents.partition.recognition import Recognition
from agents.partition.recovery import Recovery, apply_value
from agents.partition.sinks import Sinks
from tables.model import ledger
from tables.model.errors import (
    FencedError,
    JournalUnreadError,
    OffsetGoneError,
    OutcomeUnknownError,
)
from tables.model.limits import DELTA_BYTES_MAX
from tables.record.chunk import Run
from tables.state.block import TupleRows
from tables.state.input_plan import InputPlan
from tables.state.journal import (
    Delta,
    Entry,
    PartReference,
    RecordFingerprint,
    Snapshot,
    SnapshotPart,
    encode_entry,
    fingerprint_of,
)
from tables.state.partition_state import PartitionState
from tables.state.snapshot import capture

SNAPSHOT_TAIL_BYTES_MIN = 1 << 20
"""Bytes of deltas that a recovery reads so fast that they need no snapshot."""

SNAPSHOT_TAIL_RATIO = 2
"""Size of the deltas since the last snapshot, as a multiple of its size, at which the next one is
due. So the journal, and the bytes that a recovery reads, stay a few times the state."""

UNSAVED_DELTAS_MAX = 16
"""Deltas that the local store may lack: a write costs as much as folding a few events.
A recovery reads the missing ones from the journal, in milliseconds."""

UNSAVED_BYTES_MAX = 256 << 10
"""Bytes of deltas that the local store may lack, so that large ones are written at once."""


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
        self.sinks = Sinks(plan, self.state)
        # By layer, the greatest version of any window that was evicted.
        self.evicted_versions: dict[str, int] = {}

    @property
    def position(self) -> int:
        """The next source offset, which is that of the state and of nothing else."""
        return self.state.meta.next_offset

    @property
    def has_events(self) -> bool:
        """Whether any event, and not heartbeats alone, has moved the partition's stream time."""
        return ledger.has_events(self.state.meta.ledger)

    def before(self) -> Before:
        """Return the part of the state that folding the next chunk needs."""
        meta = self.state.meta
        return Before(meta.stream_time_ms, meta.floors, self.state.ids)

    async def claim(self) -> None:
        """Claim the partition and restore its state from local store and journal.

        Raises:
            FencedError: another owner has claimed the partition meanwhile.
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
        self.sinks = Sinks(self.plan, self.state)
        # All cells that earlier owners have evicted changed before this claim.
        self.evicted_versions = {layer.name: self.position for layer in self.plan.layers}
        await check_source(self.plan, self.partition, self.state.meta, self._io)
        await self.archive.claimed(claim, self.state.meta)

    async def advance(self, content: Content, tail: RecordFingerprint | None) -> None:
        """Append a chunk's content as a delta, and apply it if it stands.

        Raises:
            FencedError: it does not stand, because another owner took over.
            OutcomeUnknownError: it may or may not have landed; forget this owner and claim again.
            DeltaTooLargeError: nothing has happened; advance by less at once.
            TreasureMapError: nothing has happened, and no part of the content would fit.
        """
        where = f"{self.plan.topic}[{self.partition}]"
        delta, value = fitted(self._compose(content, tail), where, DELTA_BYTES_MAX)
        newest = {
            name: max(map(self.state.tables[name].versions.__getitem__, windows))
            for name, windows in delta.evicted.items()
        }
        await self._append(delta, value, content.blocks)
        for name, version in newest.items():
            self.evicted_versions[name] = max(self.evicted_versions[name], version)
        self._unsaved_deltas += 1
        self._unsaved_bytes += len(value)
        if self._unsaved_deltas >= UNSAVED_DELTAS_MAX or self._unsaved_bytes >= UNSAVED_BYTES_MAX:
            self._save()
        self.sinks.applied(delta)

    def wants_snapshot(self) -> bool:
        """Return whether the journal has grown enough for a snapshot."""
        meta = self.state.meta
        tail_max = max(SNAPSHOT_TAIL_BYTES_MIN, SNAPSHOT_TAIL_RATIO * meta.snapshot_bytes)
        return meta.tail_bytes > tail_max

    def capture(self) -> tuple[int, Iterator[SnapshotPart]]:
        """Return the end of the journal prefix that the state comes from, and the state in parts.

        Deltas may be applied between the parts, which stay those of this moment.
        """
        return self.state.meta.journal_offset, capture(self.state)

    async def append_snapshot(self, entry: SnapshotPart | Snapshot) -> PartReference:
        """Append a part of a snapshot, or the snapshot once all parts are acknowledged.

        Returns a reference to the entry.

        Raises FencedError or OutcomeUnknownError, as :meth:`advance` does.
        """
        value = encode_entry(entry)
        offset = await self._append(entry, value)
        if isinstance(entry, Snapshot):
            self._save()
        return offset, *fingerprint_of(value)

    def _save(self) -> None:
        self._io.save(self.state.take_writes(), self.state.meta)
        self._unsaved_deltas = self._unsaved_bytes = 0

    async def truncate(self) -> None:
        """Delete the entries that the last but one snapshot covers; the last two stay (rule 7).

        Raises OutcomeUnknownError: the next snapshot truncates again.
        """
        covered = self.state.meta.covered
        if len(covered) > 1:
            await self._io.truncate(covered[0])

    def housekeeping(self) -> Content | None:
        """Return an empty-range content if windows can be evicted, else None."""
        if not any(self.sinks.evictable().values()):
            return None
        position = self.position
        return Content(position, position, self.state.meta.stream_time_ms, {}, {})

    def _compose(self, content: Content, tail: RecordFingerprint | None) -> Delta:
        return delta_of(content, self.state, self._epoch, self.sinks.evictable(), tail)

    async def _append(
        self, entry: Entry, value: bytes, rows: Mapping[str, pl.DataFrame | TupleRows] | None = None
    ) -> int:
        """Append an entry and read back up to it; return its offset.

        An acknowledged append may still not stand (rule 5). ``rows`` are the rows of its blocks.
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
                # Only an owner truncates, and only entries that it has read.
                raise FencedError(cannot) from None
            for other in others:
                apply_value(self.state, self.partition, other)
        if isinstance(entry, Delta):
            await self._merge_ahead(entry, rows or {})
        stands = self.state.apply(offset, entry, fingerprint_of(value), rows)
        if not stands or meta.epoch != self._epoch:
            raise fenced(cannot, meta, self._io.claimant)
        return offset

    async def _merge_ahead(
        self, delta: Delta, rows: Mapping[str, pl.DataFrame | TupleRows]
    ) -> None:
        """Make the large merges that a delta of these rows will bring in a thread.

        If windows are evicted first, the delta will merge other blocks than those there now.
        """
        for name, block in rows.items():
            if name not in delta.evicted:
                table = self.state.all_tables[name]
                if (make := table.merge_ahead(block, delta.stop)) is not None:
                    table.commit_ahead(await self._io.run_in_thread(make))


def tail_of(run: Run) -> RecordFingerprint | None:
    """Return the fingerprint of a run's last record.

    None if the run does not have that record, or not all of its value.
    """
    if not run.values or run.offsets[-1] != run.next_offset - 1:
        return None
    if len(run.values) - 1 in run.faults:
        return None
    return RecordFingerprint(run.append_times_ms[-1], zlib.crc32(run.values[-1] or b""))
