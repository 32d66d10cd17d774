"""Deltas: composed of a chunk's content and the state before it, and fitted into one record."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agents.fold.content import Content
from tables.model import ledger
from tables.model.errors import DeltaTooLargeError, TreasureMapError
from tables.model.window import NEVER_MS
from tables.state.block import encode_block
from tables.state.journal import Delta, RecordFingerprint, encode_entry
from tables.state.partition_state import PartitionState


def delta_of(
    content: Content,
    state: PartitionState,
    epoch: int,
    evictable: Mapping[str, list[int]],
    tail: RecordFingerprint | None,
) -> Delta:
    """Return the delta that adds a chunk's content to a state, which stays as it is.

    The claim of ``epoch`` appends it. The ``evictable`` windows, by layer, are evicted with it.
    ``tail`` is the fingerprint of the last record that it covers.
    """
    meta, plan = state.meta, state.plan
    assert content.start == meta.next_offset, (
        f"content from {content.start} after {meta.next_offset}"
    )
    names = [layer.name for layer in plan.layers]
    wrong = ledger.imbalances(content.ledger, content.stop - content.start, names)
    assert not wrong, f"the ledger of {content.start} to {content.stop} is off: {wrong}"
    stream_time = max(meta.stream_time_ms, content.stream_time_ms)
    floors = {}
    if plan.finer is None and stream_time > NEVER_MS:
        for layer in plan.layers:
            floor = stream_time - layer.max_out_of_orderness_ms - layer.allowed_lateness_ms
            floors[layer.name] = max(floor, meta.floors.get(layer.name, NEVER_MS))
    forgettable = state.ids.forgettable(stream_time) if state.ids is not None else 0
    return Delta(
        epoch=epoch,
        revision=plan.themap.revision,
        start=content.start,
        stop=content.stop,
        stream_time_ms=stream_time,
        floors=floors,
        announced=content.announced,
        ledger={name: count for name, count in content.ledger.items() if count},
        blocks={name: encode_block(block) for name, block in content.blocks.items()},
        evicted={name: windows for name, windows in evictable.items() if windows},
        tail=tail,
        snapshot=meta.snapshot,
        has_events=ledger.has_events(meta.ledger) or ledger.has_events(content.ledger),
        ids_gone=meta.ids_gone + forgettable,
        whole=content.whole,
    )


def fitted(delta: Delta, where: str, bytes_max: int) -> tuple[Delta, bytes]:
    """Return a delta of at most ``bytes_max`` bytes, and its bytes.

    Its evictions may wait for a delta of their own; its content may not.

    Raises:
        DeltaTooLargeError: its cells are too large; use fewer records for one delta.
        TreasureMapError: it is too large without its cells, so no record is at fault.
    """
    value = encode_entry(delta)
    if len(value) > bytes_max and delta.evicted:
        delta = msgspec.structs.replace(delta, evicted={})
        value = encode_entry(delta)
    if len(value) <= bytes_max:
        return delta, value
    cannot = f"cannot append delta of {where}: "
    got = f"got {len(value)} bytes; want at most {bytes_max}"
    if len(value) - sum(map(len, delta.blocks.values())) <= bytes_max:
        raise DeltaTooLargeError(f"{cannot}one record holds too little; {got}")
    raise TreasureMapError(
        f"{cannot}its content beside its cells is too large; {got}; use fewer layers, or fewer "
        "partitions of the finer layer"
    )
