"""Contributions: a layer's closed cells on their way to a coarser layer's topic, and their bytes.

A record of a layer topic is one format byte, then a MessagePack array: who sends, what it
announces, and a block of absolute cell values with versions. A record without block only announces.
All cells of a record belong to the record's partition by the hash of the coarser key.
"""

from __future__ import annotations

from typing import cast

import msgspec
import polars as pl

from tables.block import decode_block, encode_block
from tables.cell import cell_schema
from tables.errors import JournalRefusedError
from tables.journal import Announcement
from tables.keyhash import key_hashes
from tables.layer import Layer
from tables.window import START_MS_MIN, TIME_MS_MAX

FORMAT = 1

BLOCK_BYTES_MAX = 4 * 1024 * 1024
"""Of the cells in one record, before compression; the topic takes 16 MiB, and so does the delta
that takes the cells in."""


class Contribution(msgspec.Struct, frozen=True, array_like=True):
    """One record of a layer topic.

    ``sender`` is the source partition of the finer layer. ``announced`` says that all its windows
    up to these times are closed, and final, and already in this log. ``block`` has the finer key
    columns, ``fine_start``, the coarser layer's accumulators and ``contributed``; it is empty in a
    heartbeat.
    """

    layer: str
    revision: int
    sender: int
    announced: Announcement
    block: bytes


_NO_FRAME = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for bytes that are no Arrow IPC stream; flipped bits can make it panic."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Contribution)


def encode_contribution(contribution: Contribution) -> bytes:
    """Return the record's value."""
    return bytes((FORMAT,)) + _encoder.encode(contribution)


def decode_contribution(value: bytes) -> Contribution:
    """Return the contribution of a layer topic's record.

    Raises:
        JournalRefusedError: it is of a newer format; dropping it would lose cells.
        msgspec.DecodeError: it is no contribution at all.
    """
    if not value:
        raise msgspec.DecodeError("the record is empty")
    if value[0] != FORMAT:
        raise JournalRefusedError(
            f"cannot read layer topic: got format {value[0]}; want {FORMAT}; "
            "run the version that wrote it"
        )
    try:
        return _decoder.decode(memoryview(value)[1:])
    except UnicodeDecodeError as error:  # msgspec lets it through as it is
        raise msgspec.DecodeError(str(error)) from error


def split_cells(finer: Layer, coarser: Layer, cells: pl.DataFrame) -> list[tuple[int, bytes]]:
    """Return blocks of these cells of ``finer``, each with its partition of the coarser topic.

    ``cells`` is a cell frame of ``finer``. A block is small enough for a record.
    """
    rows = cells.select(
        *finer.key_columns,
        pl.col("window_start").alias("fine_start"),
        *(acc.column for acc in coarser.accumulators),
        pl.col("version").alias("contributed"),
    )
    target = key_hashes(rows, coarser.key_columns).cast(pl.Int64) % coarser.partitions
    parts = rows.with_columns(target=target).partition_by("target", as_dict=True, include_key=False)
    found = []
    for (place, *_), part in parts.items():
        pieces = -(-int(part.estimated_size()) // BLOCK_BYTES_MAX)
        found += [
            (int(place), encode_block(piece))
            for piece in part.iter_slices(max(1, part.height // max(1, pieces)))
        ]
    return found


def decode_cells(contribution: Contribution, finer: Layer, coarser: Layer) -> pl.DataFrame:
    """Return the cells of a contribution; :func:`cause_against` tells whether they can be used.

    Raises:
        msgspec.DecodeError: its block is none of the finer layer's cells.
    """
    schema = _block_schema(finer, coarser)
    try:
        rows = decode_block(contribution.block, schema)
    except _NO_FRAME as error:
        raise msgspec.DecodeError(f"its block is unreadable: {error}") from error
    if rows.schema != schema:
        found = {name: str(kind) for name, kind in rows.schema.items()}
        want = {name: str(kind) for name, kind in schema.items()}
        raise msgspec.DecodeError(f"its block holds other cells: got {found}; want {want}")
    return rows


def cause_against(rows: pl.DataFrame, finer: Layer) -> str:
    """Return why cells of contributions cannot be used, an empty text where they can."""
    if any(rows[name].null_count() for name in (*finer.key_columns, "fine_start", "contributed")):
        return "its block holds other cells: got nulls; want keys, windows and versions, no nulls"
    # Beyond, no window of the calendar can be computed: polars would panic.
    first, last = rows["fine_start"].min(), rows["fine_start"].max()
    if first is None or (cast("int", first) >= START_MS_MIN and cast("int", last) <= TIME_MS_MAX):
        return ""
    return "its block holds windows that no event time can be in"


def _block_schema(finer: Layer, coarser: Layer) -> pl.Schema:
    fine, coarse = cell_schema(finer), cell_schema(coarser)
    schema: dict[str, pl.DataType] = {name: fine[name] for name in finer.key_columns}
    schema["fine_start"] = pl.Int64()
    schema |= {acc.column: coarse[acc.column] for acc in coarser.accumulators}
    return pl.Schema(schema | {"contributed": pl.Int64()})
