"""The state of one source partition: a pure function of a prefix of its journal.

State changes only in :meth:`PartitionState.apply`, for the owner, its successor and every other
reader alike (docs/formats/journal.md rule 2). The local store holds all of it, written in one
atomic batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import polars as pl

from tables import ledger
from tables.block import FewRows
from tables.ids import IDS, IdTable
from tables.journal import Announcement, Claim, Delta, Entry, Identity, Snapshot, SnapshotPart
from tables.layer import Layer
from tables.plan import InputPlan
from tables.rollup_table import RollupTable
from tables.table import NEVER_ENDS_MS, NEVER_MS, BlockWrite, FoldTable, LayerTable


class Meta(msgspec.Struct):
    """All of a partition's state but its cells.

    ``to`` is the source offset up to which everything is folded, the only position there is.
    ``base`` is the offset it began at. ``since`` is, by sender, the floor it announced first: what
    it had evicted before ended at or below it and never came here. ``began_ms`` is, by base layer
    that the map got later, from when on it knows all events. ``journal_offset`` is the next
    entry to read; ``entry`` the identity of the one before it; ``tail`` the identity of source
    record ``to - 1``. ``snapshot`` is the journal offset of the latest snapshot, -1 before the
    first, and ``snapshot_bytes`` its size; ``covered`` what the last two cover; ``tail_bytes`` the
    size of the deltas since. ``layers`` and ``ids`` are those of the claim that stands, None where
    it does not tell; ``ids_gone`` is how many of the oldest ids have gone since.
    """

    to: int = 0
    base: int = 0
    stream_time_ms: int = NEVER_MS
    floors: dict[str, int] = {}
    announced: dict[int, Announcement] = {}
    since: dict[int, int] = {}
    began_ms: dict[str, int] = {}
    ledger: dict[str, int] = {}
    revision: int = 0
    digest: str = ""
    partitions: int = 0
    epoch: int = -1
    journal_offset: int = 0
    entry: Identity | None = None
    tail: Identity | None = None
    snapshot: int = -1
    snapshot_bytes: int = 0
    covered: list[int] = []
    tail_bytes: int = 0
    layers: dict[str, list[str]] | None = None
    ids: int | None = None
    ids_gone: int = 0


class PartitionState:
    """What is known of one source partition: :class:`Meta` and one table per layer.

    ``ids`` are the remembered ids of a source whose events have some; they are one of the tables.
    """

    def __init__(self, plan: InputPlan, meta: Meta | None = None) -> None:
        self.plan = plan
        self.meta = meta or Meta()
        self.tables: dict[str, LayerTable] = {
            layer.name: RollupTable(layer, plan.finer) if plan.finer else FoldTable(layer)
            for layer in plan.layers
        }
        source = plan.source
        self.ids = IdTable(source.ids_max) if source is not None and source.id_field else None
        if self.ids is not None:
            self.tables[IDS] = self.ids
        self._share_announcements()

    def apply(
        self,
        offset: int,
        entry: Entry,
        identity: Identity,
        rows: Mapping[str, pl.DataFrame | FewRows] | None = None,
    ) -> bool:
        """Take the journal entry at ``offset``; tell whether it stands.

        ``offset`` must be the next one: a journal is read without gaps. ``rows`` are what a
        delta's blocks hold, by name, where they need not be decoded because they were just encoded.
        """
        meta = self.meta
        assert offset == meta.journal_offset, f"journal gap: {offset} after {meta.journal_offset}"
        self.skip(identity)
        match entry:
            case Claim():
                return self._apply_claim(offset, entry)
            case Delta():
                return self._apply_delta(entry, identity, rows or {})
            case Snapshot():
                self._note_snapshot(offset, entry)
            case SnapshotPart():
                pass
        return True

    @property
    def is_of_own_map(self) -> bool:
        """Whether the claim that stands is of the reader's own map.

        Only then has the state all that the journal says, and may be stored: of what its map does
        not have it knows nothing.
        """
        themap = self.plan.themap
        return (self.meta.revision, self.meta.digest) == (themap.revision, themap.digest)

    def skip(self, identity: Identity) -> None:
        """Take the next journal entry, which is known to be a snapshot's part: it changes nothing.

        ``identity`` is what it is recognised by.
        """
        self.meta.journal_offset += 1
        self.meta.entry = identity

    def closed_ms(self, layer: Layer) -> int:
        """Return C: windows of ``layer`` that end at or below it are closed.

        What is sealed is closed. A revision with a larger ``max_out_of_orderness`` takes stream
        time less slack below the floor, which never falls.
        """
        if self.plan.finer is None:
            watermark_ms = self.meta.stream_time_ms - layer.max_out_of_orderness_ms
        else:
            watermark_ms = self._announced_least(0)
        return max(watermark_ms, self.floor_ms(layer))

    def floor_ms(self, layer: Layer) -> int:
        """Return F: windows of ``layer`` that end at or below it are sealed. It never falls."""
        if self.plan.finer is None:
            return self.meta.floors.get(layer.name, NEVER_MS)
        return self._announced_least(1)

    def complete_ms(self, layer: Layer) -> int:
        """Return from which start on windows have all events, or all that the finer layer had.

        A map may get a layer later. A base layer knows nothing of earlier events then. Of a coarser
        one, what its senders had evicted by then never comes here: they evict older windows first,
        so all of those end at or below the floor they announce first.
        """
        if self.plan.finer is None:
            return self.meta.began_ms.get(layer.name, NEVER_MS)
        since = self.meta.since
        return max(since.values()) if len(since) >= self.plan.senders else NEVER_ENDS_MS

    def take_writes(self) -> list[BlockWrite]:
        """Return the block writes that the local store has not got yet, and forget them.

        There is one for each block: what was merged away meanwhile is only deleted.
        """
        writes = {
            (write.layer, write.sequence): write
            for table in self.tables.values()
            for write in table.writes
        }
        for table in self.tables.values():
            table.writes.clear()
        return list(writes.values())

    def all_writes(self) -> list[BlockWrite]:
        """Return the writes that fill an empty local store with all blocks; then none wait."""
        self.take_writes()
        return [write for table in self.tables.values() for write in table.all_writes()]

    def _note_snapshot(self, offset: int, snapshot: Snapshot) -> None:
        """Remember the latest snapshot, by what it covers; one that lands late is no news."""
        meta = self.meta
        if meta.covered and snapshot.covers <= meta.covered[-1]:
            return
        meta.snapshot = offset
        meta.snapshot_bytes = sum(length for _, length, _ in snapshot.parts)
        meta.covered = [*meta.covered, snapshot.covers][-2:]
        meta.tail_bytes = 0

    def _apply_claim(self, offset: int, claim: Claim) -> bool:
        meta = self.meta
        if meta.epoch < 0:
            meta.to = meta.base = claim.base
        elif not self._may_stand(claim):
            return False
        meta.epoch = offset
        meta.revision, meta.digest = claim.revision, claim.digest
        meta.partitions = claim.partitions
        self._keep_only(claim)
        meta.layers, meta.ids, meta.ids_gone = claim.layers, claim.ids, 0
        return True

    def _keep_only(self, claim: Claim) -> None:
        """Forget what a claim's map does not have; what a later one has again begins anew there.

        Else a state would depend on who reads: some have skipped what others hold.
        """
        meta = self.meta
        if claim.layers is not None:
            for layer in self.plan.layers:
                kept = claim.layers.get(layer.name)
                if kept is None:
                    self.tables[layer.name].clear()
                else:
                    columns = {accumulator.column for accumulator in layer.accumulators}
                    self.tables[layer.name].forget(columns.difference(kept))
            for name in meta.began_ms.keys() - claim.layers.keys():
                del meta.began_ms[name]
            self._begin(claim.layers)
        if claim.ids is not None and self.ids is not None:
            if not claim.ids:
                self.ids.clear()
            elif meta.ids is not None and claim.ids > meta.ids:
                # What was forgotten under the old number lies here still, but stays forgotten.
                self.ids.keep(meta.ids)

    def _begin(self, layers: Iterable[str]) -> None:
        """Note from when on base layers know all events that the claim before did not have."""
        meta = self.meta
        if self.plan.finer is not None or meta.stream_time_ms == NEVER_MS:
            return
        known = meta.floors if meta.layers is None else meta.layers
        for name in set(layers).difference(known):
            meta.began_ms[name] = meta.stream_time_ms + 1

    def _apply_delta(
        self, delta: Delta, identity: Identity, rows: Mapping[str, pl.DataFrame | FewRows]
    ) -> bool:
        meta = self.meta
        stands = (delta.start, delta.epoch, delta.revision) == (meta.to, meta.epoch, meta.revision)
        if not stands:
            return False
        meta.tail_bytes += identity[0]
        for name, windows in delta.evicted.items():
            if name in self.tables and name != IDS:
                self.tables[name].evict(windows)
        self._forget_ids(delta)
        for name, data in delta.blocks.items():
            if name in self.tables:
                self.tables[name].add(data, delta.stop, rows.get(name))
        if delta.stop > delta.start:
            meta.to = delta.stop
            meta.tail = delta.tail
            self._take_floors(delta.floors)
            meta.stream_time_ms = max(meta.stream_time_ms, delta.stream_time_ms)
            meta.announced |= delta.announced
            for sender, (_, floor) in delta.announced.items():
                meta.since.setdefault(sender, floor)
            self._share_announcements()
            ledger.add(meta.ledger, delta.ledger)
        return True

    def _forget_ids(self, delta: Delta) -> None:
        """Forget the oldest ids up to what has gone since the claim, which may be repeated."""
        meta = self.meta
        gone = delta.ids_gone
        if IDS in delta.evicted:
            gone = meta.ids_gone + delta.evicted[IDS][0]
        if gone > meta.ids_gone:
            if self.ids is not None:
                self.ids.forget_oldest(gone - meta.ids_gone)
            meta.ids_gone = gone

    def _take_floors(self, floors: Mapping[str, int]) -> None:
        """Take the floors of the layers that the map has now.

        Those of layers that it lost stay: what was announced as final stays so if they come back.
        """
        meta = self.meta
        if not floors:
            return
        if meta.layers is None:
            # The claim did not tell which layers there are.
            self._begin(floors)
            meta.floors = {}
        meta.floors = {**meta.floors, **floors}

    def _may_stand(self, claim: Claim) -> bool:
        """Tell whether a later claim stands (docs/formats/journal.md rule 3)."""
        meta = self.meta
        if claim.partitions != meta.partitions or claim.revision < meta.revision:
            return False
        return claim.revision > meta.revision or claim.digest == meta.digest

    def _announced_least(self, which: int) -> int:
        announced = self.meta.announced
        if len(announced) < self.plan.senders:
            return NEVER_MS
        return min(announcement[which] for announcement in announced.values())

    def _share_announcements(self) -> None:
        for table in self.tables.values():
            if isinstance(table, RollupTable):
                table.announced = self.meta.announced
