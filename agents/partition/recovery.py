"""Recovery: a partition's state from its local store, the latest snapshot, or the journal's start.

    local store --+
    snapshot    --+--> state at some journal offset --> apply entry by entry --> after the claim
    nothing     --+

The rules are 6 and 7 of docs/formats/journal.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from agents.partition.claims import START_OVER
from agents.partition.partition_io import PartitionIO
from tables.model.errors import FencedError, JournalRefusedError, OffsetGoneError
from tables.state.input_plan import InputPlan
from tables.state.journal import (
    Claim,
    Delta,
    Entry,
    EntryFingerprint,
    Snapshot,
    SnapshotPart,
    decode_entry,
    fingerprint_of,
)
from tables.state.partition_state import PartitionState
from tables.state.snapshot import restored

LOOK_BACK_ENTRIES = 16
"""Entries before a claim that are searched for a hint of the latest snapshot, then 8 times more."""


_ODD = (
    ValueError, TypeError, LookupError, ArithmeticError,
    pl.exceptions.PolarsError, pl.exceptions.PanicException,
)  # fmt: skip
"""Errors of applying an entry whose fields have the right types but make no sense."""


def apply_value(state: PartitionState, partition: int, value: bytes) -> bool:
    """Apply the next entry of a journal, as it was read; return whether it stands.

    Raises:
        JournalRefusedError: it is of a newer format or damaged, or a state cannot apply it.
    """
    offset = state.meta.journal_offset
    where = f"cannot apply entry {offset} of {state.plan.journal}[{partition}]"
    try:
        return state.apply(offset, decode_entry(value), fingerprint_of(value))
    except JournalRefusedError as error:
        raise JournalRefusedError(f"{where}: {error}") from error
    except _ODD as error:
        raise JournalRefusedError(
            f"{where}: {error!r}; the entry makes no sense; restore the journal topic from a copy, "
            f"or {START_OVER}"
        ) from error


class Recovery:
    """Brings the state of one partition up to a claim.

    Nobody else has that state yet, so long steps run in a thread: a state may have millions of
    cells and ids.
    """

    def __init__(self, plan: InputPlan, partition: int, io: PartitionIO) -> None:
        self._plan = plan
        self._partition = partition
        self._io = io
        # Parts of the snapshot that was loaded: they are not read a second time.
        self._parts: dict[int, EntryFingerprint] = {}
        # Whether the store is empty or holds the state of another map: then it is filled anew.
        self._is_foreign = True

    async def run(self, epoch: int) -> PartitionState:
        """Return the state after the journal entry at offset ``epoch``.

        The store has it too if that entry is a claim of the plan's map: see
        ``PartitionState.is_of_own_map``.

        Raises:
            FencedError: another owner has claimed the partition and truncated the journal since.
            JournalRefusedError: the journal lost its beginning and no snapshot covers it, or an
                entry is of another program.
        """
        while True:
            start, _ = await self._io.journal_bounds()
            try:
                state = await self._begin(start, epoch)
                await self._read_on(state, epoch)
            except OffsetGoneError:
                # Another owner took a snapshot and truncated meanwhile.
                if (await self._io.journal_bounds())[0] == start:
                    raise
            else:
                if state.ids is not None:
                    await self._io.run_in_thread(state.ids.prepare)
                return state

    async def _begin(self, start: int, epoch: int) -> PartitionState:
        state = await self._io.run_in_thread(self._io.load)
        if state is not None and await self._is_usable(state, start, epoch):
            self._is_foreign = not state.is_of_own_map
            return state
        await self._io.run_in_thread(self._io.discard)
        self._is_foreign = True
        state = await self._from_snapshot(start, epoch)
        if state is not None:
            await self._io.run_in_thread(self._save, state)
            return state
        if start == 0:
            return PartitionState(self._plan)
        cannot = f"cannot restore {self._plan.topic}[{self._partition}]"
        if await self._is_overtaken(start, epoch):
            raise FencedError(
                f"{cannot}: a newer owner has claimed it, and has truncated its journal since"
            )
        raise JournalRefusedError(
            f"{cannot}: its journal begins at offset {start} and no snapshot covers the entries "
            f"before it; restore the journal topic, or {START_OVER}"
        )

    async def _is_overtaken(self, start: int, epoch: int) -> bool:
        """Return whether somebody has claimed the partition after the claim at ``epoch``."""
        at = epoch + 1
        _, end = await self._io.journal_bounds()
        if start >= at:
            # Only an owner whose claim stands truncates, and only entries that it has read.
            return True
        while at < end:
            for value in await self._io.read(at, end):
                if isinstance(_entry_of(value), Claim):
                    return True
                at += 1
        return False

    async def _read_on(self, state: PartitionState, epoch: int) -> None:
        meta = state.meta
        while meta.journal_offset <= epoch:
            part = self._parts.get(meta.journal_offset)
            if part is not None:
                state.skip(part)
                continue
            ahead = [offset for offset in self._parts if offset > meta.journal_offset]
            stop = min([epoch + 1, *ahead])
            values = await self._io.read(meta.journal_offset, stop)
            await self._io.run_in_thread(self._apply_all, state, values)

    def _apply_all(self, state: PartitionState, values: Sequence[bytes]) -> None:
        for value in values:
            apply_value(state, self._partition, value)
        self._save(state)

    def _save(self, state: PartitionState) -> None:
        if not state.is_of_own_map:
            return
        if self._is_foreign:
            self._io.discard()
            self._io.save(state.all_writes(), state.meta)
            self._is_foreign = False
        else:
            self._io.save(state.take_writes(), state.meta)

    async def _is_usable(self, state: PartitionState, start: int, epoch: int) -> bool:
        """Return whether the journal still holds the entry that a stored state names (rule 6)."""
        offset = state.meta.journal_offset
        if not start <= offset <= epoch:
            return False
        if offset == start:
            return True
        (before,) = await self._io.read(offset - 1, offset)
        return fingerprint_of(before) == state.meta.entry

    async def _from_snapshot(self, start: int, epoch: int) -> PartitionState | None:
        """Return the state of the latest usable snapshot before ``epoch``, None without one."""
        stop, span = epoch, LOOK_BACK_ENTRIES
        tried = {-1}
        while stop > start:
            first = max(start, stop - span)
            hints = await self._hints(first, stop)
            # Not the latest alone: one that landed late may cover entries that are gone by now.
            for offset in sorted(hints - tried, reverse=True):
                parts = await self._parts_of(offset, start)
                if parts is not None:
                    return await self._io.run_in_thread(restored, self._plan, parts)
            # If no entry was deleted, any hint ends the search: the whole journal can be read.
            if hints and start == 0:
                return None
            tried |= hints
            stop, span = first, span * 8
        return None

    async def _hints(self, first: int, stop: int) -> set[int]:
        """Return the snapshot offsets that entries of ``[first, stop)`` name; -1 means none."""
        hints: set[int] = set()
        at = first
        while at < stop:
            for value in await self._io.read(at, stop):
                entry = _entry_of(value)
                if isinstance(entry, Snapshot):
                    hints.add(at)
                elif isinstance(entry, Delta):
                    hints.add(entry.snapshot)
                at += 1
        return hints

    async def _parts_of(self, offset: int, start: int) -> list[SnapshotPart] | None:
        """Return the parts of the snapshot at ``offset``, None if it is not usable."""
        snapshot = await self._snapshot_at(offset, start)
        if snapshot is None:
            return None
        parts = []
        for at, length, crc32 in snapshot.parts:
            (value,) = await self._io.read(at, at + 1)
            part = _entry_of(value)
            if fingerprint_of(value) != (length, crc32) or not isinstance(part, SnapshotPart):
                return None
            parts.append(part)
        self._parts = {at: EntryFingerprint(length, crc32) for at, length, crc32 in snapshot.parts}
        return parts

    async def _snapshot_at(self, offset: int, start: int) -> Snapshot | None:
        if offset < start:
            return None
        (value,) = await self._io.read(offset, offset + 1)
        entry = _entry_of(value)
        if isinstance(entry, Snapshot) and start <= entry.covers <= offset:
            return entry
        return None


def _entry_of(value: bytes) -> Entry | None:
    """Return an entry without applying it, None if damaged; :func:`apply_value` refuses those."""
    try:
        return decode_entry(value)
    except JournalRefusedError:
        return None
