"""Contributions: sums of a layer's cells for a coarser layer, and their way there as bytes.

Finer cells that fall into one coarser key are added up before they are sent, each finer window for
itself: a contribution is the absolute value of a coarser key in a finer window of one partition,
with its version. A record of a layer topic is a sealed MessagePack array: its sender, the times it
announces, and a block of contributions. A record without block only announces. All
contributions of a record belong to the record's partition by the hash of their key.
"""

from __future__ import annotations

import functools
from typing import cast

import msgspec
import polars as pl

from tables.model.errors import JournalRefusedError
from tables.model.keyhash import key_hashes
from tables.model.layer import Layer
from tables.model.window import START_MS_MIN, TIME_MS_MAX
from tables.record.sealed import seal, unpacked, unsealed
from tables.state.block import check_block, decode_frame, encoded_pieces
from tables.state.cell import cell_schema, merge_rows
from tables.state.journal import Announcement

FORMAT = 2
"""The format: since 2, records are sealed. Those of 1 are read once their blocks are checked."""

_UNSEALED = 1

BLOCK_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of the cells in one record, before compression; the topic accepts 16 MiB, and so does the
journal for the delta with the cells."""


class Contribution(msgspec.Struct, frozen=True, array_like=True):
    """One record of a layer topic.

    ``sender`` is the source partition of the finer layer. ``announced`` says that all its windows
    up to these times are closed, and final, and already in this log. ``block`` has the coarser
    layer's key columns and accumulators, ``fine_start`` and ``contributed``; it is empty in a
    heartbeat. ``whole`` says, by accumulator, from when on the sender's windows are whole and went
    to this layer; it is unknown for those left out. Versions before it give None.
    """

    layer: str
    revision: int
    sender: int
    announced: Announcement
    block: bytes
    whole: dict[str, int] | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Contribution)


def encode_contribution(contribution: Contribution) -> bytes:
    """Return the record's value."""
    return seal(FORMAT, _encoder.encode(contribution))


def decode_contribution(value: bytes) -> Contribution:
    """Return the contribution of a layer topic's record.

    Raises:
        JournalRefusedError: it is of a newer format; dropping it would lose cells.
        DamagedError: it is not a contribution.
    """
    if value[:1] == bytes((_UNSEALED,)):
        found = unpacked(_decoder, memoryview(value)[1:])
        if found.block:
            check_block(found.block)
        return found
    content = unsealed(value)
    if value[0] != FORMAT:
        raise JournalRefusedError(
            f"cannot read layer topic: got format {value[0]}; want {FORMAT}; "
            "run the version that wrote it"
        )
    return unpacked(_decoder, content)


def added_up(finer: Layer, coarser: Layer, cells: pl.DataFrame) -> pl.DataFrame:
    """Return all cells of some windows of ``finer`` as contributions to ``coarser``.

    The result is like a cell frame with the coarser key: ``window_start`` is still the finer
    window's, ``version`` the largest among the cells, so it grows whenever one of them changes.
    """
    if coarser.key == finer.key:
        return cells
    return merge_rows(cells, [*coarser.key_columns, "window_start"], coarser.accumulators)


def split_cells(coarser: Layer, cells: pl.DataFrame) -> list[tuple[int, bytes]]:
    """Return blocks of contributions, each with its partition of the coarser layer's topic.

    ``cells`` is of :func:`added_up`. A block is small enough for a record.
    """
    # From columns: a query costs more than the few rows that most windows have.
    rows = pl.DataFrame(
        [
            *(cells[name] for name in coarser.key_columns),
            cells["window_start"].alias("fine_start"),
            *(cells[acc.column] for acc in coarser.accumulators),
            cells["version"].alias("contributed"),
        ]
    )
    targets = (key_hashes(rows, coarser.key_columns) % coarser.partitions).alias("target")
    parts = rows.hstack([targets]).partition_by("target", as_dict=True, include_key=False)
    found = []
    for (target, *_), part in parts.items():
        pieces = -(-int(part.estimated_size()) // BLOCK_BYTES_MAX)
        rows_max = max(1, part.height // max(1, pieces))
        found += [(int(target), data) for data in encoded_pieces(part, rows_max, BLOCK_BYTES_MAX)]
    return found


def decode_cells(contribution: Contribution, coarser: Layer) -> pl.DataFrame:
    """Return the rows of a contribution; :func:`cause_against` checks whether they can be used.

    Raises:
        DamagedError: its block does not hold contributions to this layer.
    """
    return decode_frame(contribution.block, _block_schema(coarser))


def cause_against(rows: pl.DataFrame, coarser: Layer) -> str:
    """Return why contributions cannot be used, an empty text if they can."""
    needed = (*coarser.key_columns, "fine_start", "contributed", "events")
    if any(rows[name].null_count() for name in needed):
        return "its block holds other cells: got nulls; want keys, windows and versions, no nulls"
    # Beyond, no window of the calendar can be computed: polars would panic.
    first, last = rows["fine_start"].min(), rows["fine_start"].max()
    if first is None or (cast("int", first) >= START_MS_MIN and cast("int", last) <= TIME_MS_MAX):
        return ""
    return "its block holds windows that no event time can be in"


@functools.lru_cache(256)
def _block_schema(coarser: Layer) -> pl.Schema:
    cell = cell_schema(coarser)
    schema: dict[str, pl.DataType] = {name: cell[name] for name in coarser.key_columns}
    schema["fine_start"] = pl.Int64()
    schema |= {acc.column: cell[acc.column] for acc in coarser.accumulators}
    return pl.Schema(schema | {"contributed": pl.Int64()})
