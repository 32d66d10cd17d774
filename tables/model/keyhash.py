"""The stable hash of a key: which slot of the archive and which topic partition a key belongs to.

The hash is part of stored data and of topics, so it must never change: CRC-32 (IEEE, as in zlib) of
the canonical bytes of the key's fields in the map's order. See docs/formats/archive.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

import polars as pl

from tables.model.layer import Scalar

_LENGTH = struct.Struct(">I")
_INT = struct.Struct(">q")


def key_bytes(values: Iterable[Scalar]) -> bytes:
    """Return the canonical bytes of a key's values; no key's bytes are a prefix of another's.

    A string is its UTF-8 length (4 bytes, big-endian) and its UTF-8 bytes, an int 8 bytes,
    big-endian in two's complement, a bool one byte, 0 or 1.
    """
    parts = []
    for value in values:
        if isinstance(value, bool):
            parts.append(b"\x01" if value else b"\x00")
        elif isinstance(value, int):
            parts.append(_INT.pack(value))
        else:
            assert isinstance(value, str), f"a key field is a string, int or bool; got {value!r}"
            text = value.encode()
            parts.append(_LENGTH.pack(len(text)) + text)
    return b"".join(parts)


def key_hash(values: Iterable[Scalar]) -> int:
    """Return the hash of one key, 0 to 2**32 - 1."""
    return zlib.crc32(key_bytes(values))


def key_hashes(frame: pl.DataFrame, key_columns: Sequence[str]) -> pl.Series:
    """Return the hash of every row's key (Int64), computed once for each different key."""
    rows = list(zip(*(frame[name].to_list() for name in key_columns), strict=True))
    rows = rows if key_columns else [()] * frame.height
    hashes = {row: key_hash(row) for row in set(rows)}
    return pl.Series("key_hash", [hashes[row] for row in rows], dtype=pl.Int64)
