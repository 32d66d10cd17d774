"""Snapshots: a partition's whole state as journal entries, so that its past can be deleted.

A snapshot keeps the blocks as they lie, with their sequence numbers. Later merges then take the
same rows in the same order for every reader, whatever it started from, and float sums stay equal
to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import polars as pl

from tables.state.block import encoded_pieces
from tables.state.input_plan import InputPlan
from tables.state.journal import SnapshotPart
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState

PIECE_ROWS = 25_000
"""Rows of a block that are encoded at once: this bounds a part, and how long the event loop waits
for it. With 12 columns such a piece has about 2 MB, and a million cells have 40 parts."""

PART_BYTES = 2 << 20
"""Bytes of a part's blocks, which are cut to fit; a row may be larger (``tables.model.limits``)."""

_META = msgspec.msgpack.Decoder(Meta)


def capture(state: PartitionState) -> Iterator[SnapshotPart]:
    """Return the parts of ``state`` as it is now; they may be read while it changes."""
    meta = msgspec.msgpack.encode(state.meta)
    blocks = [
        (name, sequence, block)
        for name, table in state.all_tables.items()
        for sequence, block in table.blocks.items()
    ]
    return _parts(meta, blocks)


def restored(plan: InputPlan, parts: Iterable[SnapshotPart]) -> PartitionState:
    """Return the state that ``parts``, all of one snapshot and in order, were captured from."""
    first, *others = parts
    state = PartitionState(plan, _META.decode(first.meta))
    for part in (first, *others):
        for name, sequence, data in part.blocks:
            if name in state.all_tables:
                state.all_tables[name].load(sequence, -1, data)
    return state


def _parts(meta: bytes, blocks: list[tuple[str, int, pl.DataFrame]]) -> Iterator[SnapshotPart]:
    held: list[tuple[str, int, bytes]] = []
    size = len(meta)
    for name, sequence, block in blocks:
        for data in encoded_pieces(block, PIECE_ROWS, PART_BYTES):
            if size and size + len(data) > PART_BYTES:
                yield SnapshotPart(meta, held)
                meta, held, size = b"", [], 0
            held.append((name, sequence, data))
            size += len(data)
    if meta or held:
        yield SnapshotPart(meta, held)
