"""Blocks: frames as bytes. One block is what a delta adds to a layer, in journal and store alike.

A block is an Arrow IPC stream, compressed with LZ4 from ``COMPRESS_ROWS_MIN`` rows on. The version
of its rows is a constant kept beside it, so a delta's bytes go to the store unchanged.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import polars as pl

COMPRESS_ROWS_MIN = 16
"""Measured on cells of 12 columns: 4 rows 2,056 bytes with LZ4 and 2,040 without; 16 rows 2,632 and
3,384; 512 rows 16,328 and 66,872."""

_FILLED_WITH_NULL = ("min_", "max_", "key_", "fine_start", "contributed")


def encode_block(frame: pl.DataFrame) -> bytes:
    """Return the bytes of a frame."""
    out = io.BytesIO()
    compress = frame.height >= COMPRESS_ROWS_MIN
    frame.write_ipc_stream(out, compression="lz4" if compress else "uncompressed")
    return out.getvalue()


def decode_block(data: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return the frame of ``data`` with exactly the columns of ``schema``.

    A column that the block does not know (a measure added by a later revision of the map) is filled
    as if no event had carried the field: zero for counts and sums, null for minimum and maximum,
    and for all that tells cells apart. A column that the schema does not know is dropped.
    """
    return conform(pl.read_ipc_stream(io.BytesIO(data)), schema)


def conform(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return ``frame`` with the columns of ``schema``, filled as in :func:`decode_block`."""
    if frame.columns == list(schema):
        return frame
    filled = [
        pl.lit(None if name.startswith(_FILLED_WITH_NULL) else 0, dtype=kind).alias(name)
        for name, kind in schema.items()
        if name not in frame.columns
    ]
    return frame.with_columns(filled).select(list(schema))


def repeated(value: int, rows: int, kind: type[pl.DataType]) -> pl.Series:
    """Return a column of one value; ``pl.repeat`` and ``pl.lit`` cost a query each."""
    return pl.Series([value], dtype=kind).new_from_index(0, rows)
