"""Inflates gzip within a bound, whatever it claims; members may follow each other."""

from __future__ import annotations

import zlib

GZIP_MAGIC = b"\x1f\x8b"
"""The first bytes of gzip (RFC 1952)."""

_PIECE_BYTES = 4 << 20


class GzipError(ValueError):
    """Bytes that are not whole gzip."""


def inflate_gzip(data: bytes, bytes_max: int, head: bytes = b"") -> tuple[memoryview, bool]:
    """Return ``head`` and the inflated bytes behind it, and whether that is all of them.

    If it is not, the first ``bytes_max`` inflated bytes are returned. Zeros may follow a member.

    Raises:
        GzipError: the bytes are broken, or end too early.
    """
    found = bytearray(head)
    rest, end = data, len(head) + bytes_max
    try:
        while rest:
            inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            while not inflater.eof:
                # A byte too many says that there is more.
                piece = inflater.decompress(rest, min(_PIECE_BYTES, end + 1 - len(found)))
                if not piece and not inflater.eof:
                    raise GzipError("gzip ends too early")
                found += piece
                if len(found) > end:
                    return memoryview(found)[:end], False
                rest = inflater.unconsumed_tail
            rest = inflater.unused_data.lstrip(b"\x00")
    except zlib.error as error:
        raise GzipError(str(error)) from error
    return memoryview(found), True
