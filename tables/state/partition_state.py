"""The state of one source partition: a pure function of a prefix of its journal.

State changes only in :meth:`PartitionState.apply`, for the owner, its successor and every other
reader alike (docs/formats/journal.md rule 2). The local store holds all of it, written in one
atomic batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import polars as pl

from tables.model import ledger
from tables.model.layer import Layer
from tables.model.shape import joined
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.state.block import TupleRows
from tables.state.block_table import BlockTable, BlockWrite
from tables.state.cell import later_of
from tables.state.id_table import IDS, IdTable
from tables.state.input_plan import InputPlan
from tables.state.journal import (
    Announcement,
    Claim,
    Delta,
    Entry,
    EntryFingerprint,
    Snapshot,
    SnapshotPart,
)
from tables.state.layer_table import FoldTable, LayerTable
from tables.state.partition_meta import Meta, may_stand
from tables.state.rollup_table import RollupTable


class PartitionState:
    """The state of one source partition: :class:`Meta` and one table per layer.

    ``ids`` are the remembered ids of a source whose events have some. ``all_tables`` are theirs and
    those of the layers.
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
        self.all_tables: dict[str, BlockTable] = {**self.tables}
        if self.ids is not None:
            self.all_tables[IDS] = self.ids
        self._whole: dict[str, dict[str, int]] = {}
        # Snapshots of formats 1 and 2 do not say since when.
        unknown = self.meta.announced.keys() - self.meta.since.keys()
        self.meta.since |= dict.fromkeys(unknown, NEVER_MS)
        self._share()

    def apply(
        self,
        offset: int,
        entry: Entry,
        fingerprint: EntryFingerprint,
        rows: Mapping[str, pl.DataFrame | TupleRows] | None = None,
    ) -> bool:
        """Apply the journal entry at ``offset``; return whether it stands.

        ``offset`` must be the next one: a journal is read without gaps. ``rows`` are the rows of a
        delta's blocks, by name, if they need not be decoded because they were just encoded.
        """
        meta = self.meta
        assert offset == meta.journal_offset, f"journal gap: {offset} after {meta.journal_offset}"
        self.skip(fingerprint)
        match entry:
            case Claim():
                return self._apply_claim(offset, entry)
            case Delta():
                return self._apply_delta(entry, fingerprint, rows or {})
            case Snapshot():
                self._note_snapshot(offset, entry)
            case SnapshotPart():
                pass
        return True

    @property
    def is_of_own_map(self) -> bool:
        """Whether the claim that stands is of the reader's own map.

        Only then has the state all cells of the journal, and may be stored: it has no cells of
        layers that its map does not have.
        """
        themap = self.plan.themap
        return (self.meta.revision, self.meta.digest) == (themap.revision, themap.digest)

    def skip(self, fingerprint: EntryFingerprint) -> None:
        """Take the next journal entry, known as a part of a snapshot: it changes nothing."""
        self.meta.journal_offset += 1
        self.meta.entry = fingerprint

    def closed_ms(self, layer: Layer) -> int:
        """Return C: windows of ``layer`` that end at or below it are closed.

        A sealed window is closed. A revision with a larger ``max_out_of_orderness`` takes stream
        time less slack below the floor, which never falls.
        """
        if self.plan.finer is None:
            watermark_ms = self.meta.stream_time_ms - layer.max_out_of_orderness_ms
        else:
            watermark_ms = self._least_closed_ms()
        return max(watermark_ms, self.floor_ms(layer))

    def floor_ms(self, layer: Layer) -> int:
        """Return F: windows of ``layer`` that end at or below it are sealed. It never falls."""
        if self.plan.finer is None:
            return self.meta.floors.get(layer.name, NEVER_MS)
        return self._least_final_ms()

    def complete_ms(self, layer: Layer) -> int:
        """Return the start from which windows have all events, ``NEVER_ENDS_MS`` if not known."""
        return self.whole(layer).get("events", NEVER_ENDS_MS)

    def is_known(self, layer: Layer) -> bool:
        """Return whether it is known which windows of a layer are whole."""
        return "events" in self.whole(layer)

    def whole(self, layer: Layer) -> dict[str, int]:
        """Return the start from which windows have all of each accumulator; others are not known.

        A time of ``events`` holds for all accumulators. A column of a coarser layer is known once
        all senders have sent its time.
        """
        found = self._whole.get(layer.name)
        if found is None:
            own = self.meta.columns_ms.get(layer.name, {})
            found = {}
            for column in (acc.column for acc in layer.accumulators):
                since_ms = self._began_ms(layer, column)
                if since_ms is not None:
                    found[column] = max(since_ms, own.get(column, NEVER_MS))
            self._whole[layer.name] = found
        return found

    def sends_whole(self, layer: Layer, coarser: Layer) -> dict[str, int]:
        """Return, by column, the start from which a coarser layer gets all of a layer's windows.

        Unknown columns are left out, and all while the layer's own times are not known.
        """
        whole = self.whole(layer)
        if "events" not in whole:
            return {}
        names = {acc.column for acc in coarser.accumulators}
        found = {column: ms for column, ms in whole.items() if column in names}
        found["events"] = max(found["events"], self.meta.sinks_ms.get(coarser.name, NEVER_MS))
        return found

    def _began_ms(self, layer: Layer, column: str) -> int | None:
        """Return the start of a column in a layer's input, None while some sender is silent."""
        meta = self.meta
        if self.plan.finer is None:
            return meta.began_ms.get(layer.name, NEVER_MS)
        if len(meta.since) < self.plan.senders:
            return None
        began_ms = NEVER_MS
        for sender, floor in meta.since.items():
            if column == "events":
                began_ms = max(began_ms, floor)
            # A sender that runs an older version sends no times: it has always had all of the
            # column.
            whole = meta.whole.get(sender, {column: NEVER_MS})
            if column not in whole:
                return None
            began_ms = max(began_ms, whole[column])
        return began_ms

    def take_writes(self) -> list[BlockWrite]:
        """Return the last write of each block that the local store lacks, and forget them all."""
        writes: dict[tuple[str, int], BlockWrite] = {}
        for table in self.all_tables.values():
            writes |= {(write.layer, write.sequence): write for write in table.writes}
            table.writes.clear()
        return list(writes.values())

    def all_writes(self) -> list[BlockWrite]:
        """Return the writes that fill an empty local store with all blocks; then none wait."""
        self.take_writes()
        return [write for table in self.all_tables.values() for write in table.all_writes()]

    def _note_snapshot(self, offset: int, snapshot: Snapshot) -> None:
        """Remember the latest snapshot, by the prefix it covers; a late one changes nothing."""
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
            meta.next_offset = meta.base = claim.base
            meta.first_ms = {}
        elif not may_stand(meta, claim):
            return False
        meta.epoch = offset
        meta.revision, meta.digest = claim.revision, claim.digest
        meta.partitions = claim.partitions
        self._keep_only(claim)
        self._begin(claim)
        meta.layers, meta.ids, meta.ids_gone = claim.layers, claim.ids, 0
        self._whole.clear()
        self._share()
        meta.archive = meta.archive or claim.archive
        meta.history = meta.history or claim.history
        meta.cluster, meta.group, meta.node = claim.cluster, claim.group, claim.node
        return True

    def _begin(self, claim: Claim) -> None:
        """Note the accumulators and sinks that layers did not have before: they begin here."""
        meta = self.meta
        for name, columns in (claim.layers or {}).items():
            before = (meta.layers or {}).get(name, columns)
            for column in set(columns).difference(before):
                self._begin_column(name, column)
        if claim.shapes is not None:
            self._begin_sinks(claim.shapes.keys())
            meta.shapes = joined(meta.shapes, claim.shapes)

    def _begin_sinks(self, named: Collection[str]) -> None:
        """Note the time from which coarser layers get all cells: older windows are evicted."""
        meta = self.meta
        for name in meta.sinks_ms.keys() - set(named):
            del meta.sinks_ms[name]
        for layer in self.plan.layers:
            for coarser in self.plan.coarser[layer.name]:
                if coarser.name in named and coarser.name not in meta.sinks_ms:
                    is_new = meta.named is not None and coarser.name not in meta.named
                    meta.sinks_ms[coarser.name] = self.floor_ms(layer) if is_new else NEVER_MS
        meta.named = sorted(named)

    def _begin_column(self, name: str, column: str) -> None:
        """Note the start from which no window has cells yet."""
        meta = self.meta
        if self.plan.finer is None:
            begins_ms = meta.stream_time_ms + 1
        else:
            (layer,) = self.plan.layers
            newest = max(self.tables[layer.name].versions, default=NEVER_MS)
            # Windows that are evicted end at or below the floor.
            ends = [self.floor_ms(layer)]
            if newest > NEVER_MS:
                ends.append(layer.window.end(newest))
            begins_ms = max(ends)
            for whole in meta.whole.values():
                whole.pop(column, None)
        if begins_ms > NEVER_MS + 1:
            meta.columns_ms.setdefault(name, {})[column] = begins_ms

    def _keep_only(self, claim: Claim) -> None:
        """Drop layers that a claim's map lacks, or a state would depend on its reader's map."""
        meta = self.meta
        if claim.layers is not None:
            self._keep_layers(claim.layers)
        if claim.ids is not None and self.ids is not None:
            if not claim.ids:
                self.ids.clear()
            elif meta.ids is not None and claim.ids > meta.ids:
                # Ids that were forgotten under the old number lie here still, but stay forgotten.
                self.ids.keep(meta.ids)

    def _keep_layers(self, layers: Mapping[str, list[str]]) -> None:
        meta = self.meta
        for layer in self.plan.layers:
            kept = layers.get(layer.name)
            if kept is None:
                self.tables[layer.name].clear()
            else:
                columns = {accumulator.column for accumulator in layer.accumulators}
                self.tables[layer.name].forget(columns.difference(kept))
        forgets: tuple[dict[str, Any], ...] = (meta.began_ms, meta.columns_ms, meta.first_ms or {})
        for known in forgets:
            for name in known.keys() - layers.keys():
                del known[name]
        for name, began in meta.columns_ms.items():
            for column in began.keys() - set(layers[name]):
                del began[column]
        self._begin_layers(layers)

    def _begin_layers(self, layers: Iterable[str]) -> None:
        """Note the time from which base layers new in this claim know all events."""
        meta = self.meta
        if self.plan.finer is not None or meta.stream_time_ms == NEVER_MS:
            return
        known = meta.floors if meta.layers is None else meta.layers
        for name in set(layers).difference(known):
            meta.began_ms[name] = meta.stream_time_ms + 1
            self._whole.clear()

    def _apply_delta(
        self,
        delta: Delta,
        fingerprint: EntryFingerprint,
        rows: Mapping[str, pl.DataFrame | TupleRows],
    ) -> bool:
        meta = self.meta
        follows = (meta.next_offset, meta.epoch, meta.revision)
        if (delta.start, delta.epoch, delta.revision) != follows:
            return False
        meta.tail_bytes += fingerprint[0]
        for name, windows in delta.evicted.items():
            if name in self.tables:
                self.tables[name].evict(windows)
        self._forget_ids(delta)
        for name, data in delta.blocks.items():
            if name in self.all_tables:
                self.all_tables[name].add(data, delta.stop, rows.get(name))
                self._note_first(name)
        if delta.stop > delta.start:
            meta.next_offset = delta.stop
            meta.tail = delta.tail
            self._take_floors(delta.floors)
            meta.stream_time_ms = max(meta.stream_time_ms, delta.stream_time_ms)
            self._hear(delta)
            ledger.add(meta.ledger, delta.ledger)
        return True

    def _note_first(self, name: str) -> None:
        """Note the first window that a layer's cells are in, after its table took some."""
        first = self.meta.first_ms
        if first is not None and name in self.tables and (seen := self.tables[name].touched):
            first[name] = min(first.get(name, NEVER_ENDS_MS), *seen)

    def _forget_ids(self, delta: Delta) -> None:
        """Drop the oldest ids up to a total since the claim, which may be repeated."""
        meta = self.meta
        gone = delta.ids_gone
        if IDS in delta.evicted:
            gone = meta.ids_gone + delta.evicted[IDS][0]
        if gone > meta.ids_gone:
            if self.ids is not None:
                self.ids.forget_oldest(gone - meta.ids_gone)
            meta.ids_gone = gone

    def _hear(self, delta: Delta) -> None:
        """Apply the announcements of a coarser layer's senders."""
        meta = self.meta
        meta.announced |= delta.announced
        new = delta.announced.keys() - meta.since.keys()
        for sender, whole in delta.whole.items():
            meta.whole[sender] = later_of(meta.whole.get(sender, {}), whole)
        for sender in new:
            # Under claims of formats 1 and 2 all layers are whole. Under later ones, windows that a
            # sender of an older version had evicted before ended at or below its floor.
            is_whole = sender in meta.whole or meta.layers is None
            meta.since[sender] = NEVER_MS if is_whole else delta.announced[sender].final_ms
        if new or delta.whole:
            self._whole.clear()
        self._share()

    def _take_floors(self, floors: Mapping[str, int]) -> None:
        """Take floors; those of layers that the map lost stay, as do their final windows."""
        meta = self.meta
        if not floors:
            return
        if meta.layers is None:
            # The claim did not name the layers.
            self._begin_layers(floors)
            meta.floors = {}
        meta.floors = {**meta.floors, **floors}

    def _least_closed_ms(self) -> int:
        return min((one.closed_ms for one in self._announcements()), default=NEVER_MS)

    def _least_final_ms(self) -> int:
        return min((one.final_ms for one in self._announcements()), default=NEVER_MS)

    def _announcements(self) -> Collection[Announcement]:
        """Return the announcements of all senders, empty while one of them has not announced."""
        announced = self.meta.announced
        return announced.values() if len(announced) >= self.plan.senders else ()

    def _share(self) -> None:
        """Give the tables the state's times of their rows."""
        for name, table in self.tables.items():
            table.began = self.meta.columns_ms.get(name, {})
            if isinstance(table, RollupTable):
                table.announced = self.meta.announced
