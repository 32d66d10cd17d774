"""Deltas that one journal record holds, or why there is none."""

from __future__ import annotations

import msgspec

from tables.model.errors import DeltaTooLargeError, TreasureMapError
from tables.state.journal import Delta, encode_entry


def fitted(delta: Delta, where: str, bytes_max: int) -> tuple[Delta, bytes]:
    """Return a delta of at most so many bytes, and those.

    What it evicts may wait for a delta of its own; what it adds may not.

    Raises:
        DeltaTooLargeError: its cells are too large; take fewer records at once.
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
        f"{cannot}what it says beside its cells is too large; {got}; use fewer layers, or fewer "
        "partitions of the finer layer"
    )
