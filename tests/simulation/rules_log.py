"""Rules 1 to 7, dropped: time and content, and the journal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
import polars as pl

import agents.fold.layers
import agents.partition.owners
import tables.state.partition_state
from agents.fold.content import Before, Content
from agents.partition.emitter import Emitter
from agents.partition.letters import send_letters
from agents.partition.owner import Owner
from agents.partition.partition_io import PartitionIO
from agents.partition.recovery import Recovery
from tables.model.errors import JournalRefusedError, OutcomeUnknownError
from tables.model.layer import Layer
from tables.model.window import NEVER_MS
from tables.state.journal import Delta, EntryFingerprint, decode_entry, encode_entry, fingerprint_of
from tables.state.partition_state import PartitionState
from tests.simulation.rules import Patch, rule
from tests.simulation.stores import SimulatedStore

_apply_delta = PartitionState._apply_delta
_append = PartitionIO.append
_snapshot_at = Recovery._snapshot_at
_from_snapshot = Recovery._from_snapshot
_begin = Recovery._begin
_claim = Owner.claim
_compose = Owner._compose
_emitter = Emitter.__init__


def _forced(*fields: str) -> Patch:
    """Take deltas whatever these fields say."""

    def apply_delta(
        self: PartitionState, delta: Delta, fingerprint: EntryFingerprint, rows: Mapping[str, Any]
    ) -> bool:
        meta = self.meta
        right = {
            "start": min(meta.next_offset, delta.stop),
            "epoch": meta.epoch,
            "revision": meta.revision,
        }
        if "start" in fields:
            meta.next_offset = right["start"]
        changes = {field: right[field] for field in fields}
        return _apply_delta(self, msgspec.structs.replace(delta, **changes), fingerprint, rows)

    return PartitionState, "_apply_delta", apply_delta


async def _append_whoever_owns(self: Owner, _: Any, value: bytes, __: Any = None) -> int:
    """Append and read back, without looking at the epoch that stands afterwards."""
    offset = await self._io.append(value)
    meta = self.state.meta
    if offset < meta.journal_offset:
        raise OutcomeUnknownError("read further already")
    stands = False
    for other in await self._io.read(meta.journal_offset, offset + 1):
        stands = self.state.apply(meta.journal_offset, decode_entry(other), fingerprint_of(other))
    if not stands:
        raise OutcomeUnknownError("it does not stand")
    return offset


@rule(1, "late or not is decided for each event, not for a chunk", quick="pure")
def stream_time_per_event() -> list[Patch]:
    """Decide by the greatest time of the whole chunk."""

    def stream_times(batch: Any) -> pl.Series:
        times = batch.frame["time"]
        return pl.concat(
            [
                pl.repeat(times[first:last].max(), last - first, dtype=pl.Int64, eager=True)
                for first, last in batch.bounds
                if last > first
            ]
        )

    return [(agents.fold.layers, "_times_before", stream_times)]


@rule(1, "the floor never falls", quick="impure", seed=2)
def floor_never_falls() -> list[Patch]:
    """Let the floor follow from stream time and the newest revision alone."""

    def before(self: Owner) -> Before:
        return Before(self.state.meta.stream_time_ms, {}, self.state.ids)

    def floor_ms(self: PartitionState, layer: Layer) -> int:
        if self.plan.finer is not None:
            return self._least_final_ms()
        slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
        return max(self.meta.stream_time_ms - slack, NEVER_MS)

    return [(Owner, "before", before), (PartitionState, "floor_ms", floor_ms)]


@rule(3, "a claim below the state's revision does not stand", quick="impure", seed=2)
def code_fence() -> list[Patch]:
    """Let any claim stand."""
    return [(tables.state.partition_state, "may_stand", lambda _meta, _claim: True)]


@rule(4, "a delta stands only if it starts at the state's position", quick="pure", seed=2)
def chain() -> list[Patch]:
    """Take deltas of the right epoch wherever they start."""
    return [_forced("start")]


@rule(4, "a delta stands only under its own claim")
def epoch() -> list[Patch]:
    """Take deltas of every owner, if they follow."""
    return [_forced("epoch"), (Owner, "_append", _append_whoever_owns)]


@rule(4, "a delta stands only at the state's revision", bears=False)
def entry_revision() -> list[Patch]:
    """Take deltas of every revision.

    No two claims have one epoch, and the deltas of a claim have its revision: the epoch tells both.
    """
    return [_forced("revision")]


@rule(4, "a delta stands only under its own claim and revision")
def epoch_and_entry_revision() -> list[Patch]:
    """Take deltas of every owner and revision, if they follow."""
    return [_forced("epoch", "revision"), (Owner, "_append", _append_whoever_owns)]


@rule(4, "a delta stands only if it follows, under its own claim", quick="pure")
def chain_and_epoch() -> list[Patch]:
    """Take every delta of the same revision."""
    return [_forced("start", "epoch"), (Owner, "_append", _append_whoever_owns)]


@rule(5, "letters are acknowledged before their offsets are passed")
def letters_first() -> list[Patch]:
    """Send letters once, whatever becomes of them."""

    async def send(*args: Any) -> None:
        with contextlib.suppress(OutcomeUnknownError):
            await send_letters(*args)

    return [(agents.partition.owners, "send_letters", send)]


async def _trusting(self: Owner, entry: Any, value: bytes, rows: Any = None) -> int:
    """Take an acknowledged append for one that stands."""
    offset = await self._io.append(value)
    meta = self.state.meta
    if isinstance(entry, Delta):
        follows = {"start": meta.next_offset, "epoch": meta.epoch, "revision": meta.revision}
        entry = msgspec.structs.replace(entry, **follows)
    meta.journal_offset = offset
    self.state.apply(offset, entry, fingerprint_of(value), rows)
    return offset


@rule(5, "an acknowledged append is read back", quick="pure", seed=2)
def read_back() -> list[Patch]:
    """Trust acknowledgements."""
    return [(Owner, "_append", _trusting)]


async def _again(self: PartitionIO, value: bytes) -> int:
    """Append until an answer comes."""
    while True:
        with contextlib.suppress(OutcomeUnknownError):
            return await _append(self, value)


@rule(5, "after an unknown outcome the partition is claimed again", bears=False)
def claim_again() -> list[Patch]:
    """Repeat an append whose outcome is unknown.

    If both landed, reading back finds the first, and the second does not follow it.
    """
    return [(PartitionIO, "append", _again)]


@rule(
    5,
    "after an unknown outcome the partition is claimed again, and appends are read back",
    quick="pure",
)
def claim_again_and_read_back() -> list[Patch]:
    """Repeat an append whose outcome is unknown, and trust its acknowledgement."""
    return [(PartitionIO, "append", _again), (Owner, "_append", _trusting)]


async def _advance_first(self: Owner, content: Content, tail: Any, *, store: bool) -> None:
    """Apply, and emit or store, before the journal has the delta."""
    delta = self._compose(content, tail)
    value = encode_entry(delta)
    meta = self.state.meta
    offset, entry = meta.journal_offset, meta.entry
    self.state.apply(offset, delta, fingerprint_of(value))
    self.sinks.applied(delta)
    if store:
        meta.journal_offset, meta.entry = offset, entry
        self._io.save(self.state.take_writes(), meta)
        meta.journal_offset, meta.entry = offset + 1, fingerprint_of(value)
    self.emitter.wake()  # type: ignore[attr-defined]
    for _ in range(3):
        await asyncio.sleep(0)
    if await self._io.append(value) != offset:
        raise OutcomeUnknownError("others were before it")
    self._io.save(self.state.take_writes(), meta)


def _known_emitter(self: Emitter, owner: Owner, *args: Any, **options: Any) -> None:
    _emitter(self, owner, *args, **options)
    owner.emitter = self  # type: ignore[attr-defined]


@rule(5, "cells are emitted only once the delta stands")
def emit_after_standing() -> list[Patch]:
    """Emit before the append."""

    async def advance(self: Owner, content: Content, tail: Any) -> None:
        await _advance_first(self, content, tail, store=False)

    return [(Owner, "advance", advance), (Emitter, "__init__", _known_emitter)]


@rule(5, "the journal has a delta before the local store has it", quick="pure")
def journal_before_store() -> list[Patch]:
    """Save before the append."""

    async def advance(self: Owner, content: Content, tail: Any) -> None:
        await _advance_first(self, content, tail, store=True)

    return [(Owner, "advance", advance), (Emitter, "__init__", _known_emitter)]


@rule(6, "one atomic batch takes all of the state", quick="pure")
def atomic_store_batch() -> list[Patch]:
    """Write blocks at once, and meta with the next save: a kill between leaves half."""
    save = SimulatedStore.save

    def save_in_two(self: Any, writes: Any, meta: Any) -> None:
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(meta), type=type(meta))
        save(self, writes, getattr(self, "waiting", copy))
        self.waiting = copy

    return [(SimulatedStore, "save", save_in_two)]


@rule(
    6,
    "a store is used only if the journal still holds the entry before its offset",
    tail_loss=True,
    quick="impure",
)
def tail_of_store() -> list[Patch]:
    """Use a store wherever its offset lies inside the journal."""

    async def is_usable(_: Recovery, state: PartitionState, start: int, epoch: int) -> bool:
        return start <= state.meta.journal_offset <= epoch

    return [(Recovery, "_is_usable", is_usable)]


@rule(6, "a store that the journal does not reach back to is emptied")
def truncated_store() -> list[Patch]:
    """Go on with an old store at the beginning of the journal."""

    async def is_usable(_: Recovery, state: PartitionState, start: int, epoch: int) -> bool:
        state.meta.journal_offset = max(state.meta.journal_offset, start)
        return state.meta.journal_offset <= epoch

    return [(Recovery, "_is_usable", is_usable)]


@rule(7, "a snapshot names the prefix that it covers", quick="impure", seed=2)
def snapshot_names_its_prefix() -> list[Patch]:
    """Let a snapshot count at its own offset in the journal."""

    async def snapshot_at(self: Any, offset: int, start: int) -> Any:
        found = await _snapshot_at(self, offset, start)
        if found is not None:
            self.place = offset
        return found

    async def from_snapshot(self: Any, start: int, epoch: int) -> PartitionState | None:
        state = await _from_snapshot(self, start, epoch)
        if state is not None:
            state.meta.journal_offset = self.place + 1
        return state

    return [(Recovery, "_snapshot_at", snapshot_at), (Recovery, "_from_snapshot", from_snapshot)]


async def _truncate_all(self: Owner) -> None:
    await self._io.truncate(self.state.meta.journal_offset)


@rule(7, "the journal is truncated only to the prefix of a snapshot", quick="impure", seed=2)
def truncate_behind_snapshots() -> list[Patch]:
    """Truncate to the end."""
    return [(Owner, "truncate", _truncate_all)]


@rule(
    7,
    "if the beginning is gone and there is no snapshot, a reader refuses",
    quick="impure",
    seed=2,
)
def refuse_to_start_empty() -> list[Patch]:
    """Truncate to the end, and start empty although a reader should refuse."""

    async def begin(self: Recovery, start: int, epoch: int) -> PartitionState:
        try:
            return await _begin(self, start, epoch)
        except JournalRefusedError:
            state = PartitionState(self._plan)
            state.meta.journal_offset = start
            return state

    return [(Owner, "truncate", _truncate_all), (Recovery, "_begin", begin)]


@rule(14, "the position is that of the state, and nothing else", quick="pure")
def position_is_of_the_state() -> list[Patch]:
    """Go on at the group's commits."""
    commits: dict[tuple[str, int], int] = {}

    def compose(self: Owner, content: Content, tail: Any) -> Delta:
        commits[self.plan.topic, self.partition] = content.stop
        return _compose(self, content, tail)

    async def claim(self: Owner) -> None:
        await _claim(self)
        meta = self.state.meta
        meta.next_offset = max(meta.next_offset, commits.get((self.plan.topic, self.partition), 0))

    return [(Owner, "_compose", compose), (Owner, "claim", claim)]
