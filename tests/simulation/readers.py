"""Readers: everyone who reads a journal comes to the same state, whatever it started from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from agents.partition.owner import Owner
from agents.partition.partition_io import PartitionIO
from agents.partition.recovery import Recovery
from tables.model import ledger
from tables.model.errors import OffsetGoneError
from tables.model.window import NEVER_ENDS_MS
from tables.state.block_table import BlockWrite
from tables.state.input_plan import InputPlan
from tables.state.journal import decode_entry, fingerprint_of
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState
from tests.simulation.log import PartitionLog
from tests.simulation.worker import Worker
from tests.simulation.world import World

T = TypeVar("T")


class Reading(PartitionIO):
    """The journal of somebody who only reads, and the state of the store that this one has."""

    def __init__(
        self, plan: InputPlan, journal: PartitionLog, stored: PartitionState | None
    ) -> None:
        # What these are for is overridden below, or never asked for.
        super().__init__(plan, 0, NotImplemented, NotImplemented, archive=NotImplemented)
        self._journal = journal
        self._stored = stored

    async def read(self, start: int, stop: int) -> list[bytes]:
        """Return all entries of a range."""
        if start < self._journal.start:
            raise OffsetGoneError(str(start))
        return [record.value or b"" for record in self._journal.slice(start, stop)]

    async def journal_bounds(self) -> tuple[int, int]:
        """Return the journal's bounds."""
        return self._journal.start, self._journal.end

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Do it at once."""
        return work()

    def load(self) -> PartitionState | None:
        """Return the state of the store that this reader starts from."""
        return self._stored

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Keep nothing."""

    def discard(self) -> None:
        """There is nothing to be emptied."""


async def check_readers(world: World, worker: Worker) -> Iterator[str]:
    """Return the differences between the owner at rest and other readers of each partition.

    One of them reads the whole journal, truncated entries included; another one starts from the
    newest snapshot, or from a local store that some worker left behind.
    """
    found: list[str] = []
    chosen = world.rng.choice(world.keys)
    for key in world.keys:
        owner = worker.owners.get(*key)
        if owner is None:
            found.append(f"{key} is not restored")
            continue
        journal = world.log.of(owner.plan.journal, key[1])
        where = f"{key[0]}[{key[1]}]"
        found += [f"{where}: {text}" for text in _unfinished(world, owner)]
        want = contents(owner.state)
        if contents(read_all(owner.plan, journal)) != want:
            found.append(f"{where}: a reader of the whole journal comes to another state")
        if key == chosen:
            for store in [None, *_left_behind(world, worker, key)]:
                stored = _load(world, store, owner.plan) if store else None
                io = Reading(owner.plan, journal, stored)
                other = await Recovery(owner.plan, key[1], io).run(journal.end - 1)
                if contents(other) != want:
                    start = f"{store}" if store else "the snapshot"
                    found.append(f"{where}: a reader from {start} comes to another state")
    return iter(found)


def complete_of(worker: Worker) -> dict[str, int]:
    """Return by layer, combiners too, from which start on its owners say that windows are whole.

    Under the layer's name with ``.max``, from when on they say so of the greatest value.
    """
    found: dict[str, int] = {}
    for owner in worker.owners.each():
        for layer in owner.plan.layers:
            complete_ms = owner.state.complete_ms(layer)
            found[layer.name] = max(complete_ms, found.get(layer.name, complete_ms))
            if any(acc.kind == "max" for acc in layer.accumulators):
                name = f"{layer.name}.max"
                max_ms = owner.state.whole(layer).get("max_v", NEVER_ENDS_MS)
                found[name] = max(max_ms, found.get(name, max_ms))
    return found


def check_ledgers(worker: Worker, expected: dict[tuple[str, int], Counter[str]]) -> Iterator[str]:
    """Yield the ledgers that are not the oracle's, or do not add up."""
    for key, want in expected.items():
        owner = worker.owners.get(*key)
        if owner is None:
            continue
        meta = owner.state.meta
        names = [layer.name for layer in owner.plan.layers]
        yield from ledger.imbalances(meta.ledger, meta.next_offset - meta.base, names)
        got = {name: meta.ledger.get(name, 0) for name in want}
        if got != dict(want):
            yield f"{key}: its ledger is {got}; its log came to {dict(want)}"


def read_all(plan: InputPlan, journal: PartitionLog) -> PartitionState:
    """Return the state that all of a journal comes to."""
    state = PartitionState(plan)
    for record in journal.records:
        value = record.value or b""
        state.apply(record.offset, decode_entry(value), fingerprint_of(value))
    return state


def contents(state: PartitionState) -> dict[str, Any]:
    """Return all of a state in a form that compares, to the last bit and the order of blocks.

    Blocks are numbered anew by a reader that began without any.
    """
    found: dict[str, Any] = {"meta": state.meta}
    found |= {f"versions of {name}": table.versions for name, table in state.tables.items()}
    for name, table in state.all_tables.items():
        found[f"blocks of {name}"] = [Counter(block.rows()) for block in table.blocks.values()]
    return found


def _unfinished(world: World, owner: Owner) -> Iterator[str]:
    log = world.log.of(owner.plan.topic, owner.partition)
    if owner.position != log.end:
        yield f"it came to rest at {owner.position}; its log ends at {log.end}"
    waiting = {layer.name: owner.sinks.unacknowledged(layer) for layer in owner.plan.layers}
    if any(waiting.values()):
        yield f"closed windows came to rest unacknowledged: {waiting}"
    for layer in owner.plan.layers:
        open_windows = [
            window
            for window in owner.state.tables[layer.name].versions
            if layer.window.end(window) > owner.state.closed_ms(layer)
        ]
        if open_windows:
            yield f"windows of {layer.name} came to rest open: {open_windows}"


def _left_behind(world: World, worker: Worker, key: tuple[str, int]) -> list[Path]:
    """Return the places of stores of a partition that the worker has not taken over."""
    inside = f"{key[0]}/{key[1]}"
    return [
        place
        for place in world.stores.places()
        if str(place).endswith(inside) and not place.is_relative_to(worker.folder)
    ]


def _load(world: World, place: Path, plan: InputPlan) -> PartitionState | None:
    store = world.stores.open(place)
    try:
        return store.load(plan)
    finally:
        store.close()
