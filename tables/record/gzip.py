"""Inflates gzip within a bound, whatever it claims; members may follow each other."""

from __future__ import annotations

import re
import zlib

GZIP_MAGIC = b"\x1f\x8b"
"""The first bytes of gzip (RFC 1952)."""

_PIECE_BYTES = 4 << 10
"""Packed bytes that are inflated at once: a member's end copies those behind it in its piece."""

_ZEROS = re.compile(rb"\x00+")


class GzipError(ValueError):
    """Bytes that are not whole gzip."""


def inflate_gzip(data: bytes, bytes_max: int, head: bytes = b"") -> tuple[memoryview, bool]:
    """Return ``head`` and the inflated bytes behind it, and whether that is all of them.

    If it is not, the first ``bytes_max`` inflated bytes are returned. Zeros may follow a member.

    Raises:
        GzipError: the bytes are broken, or end too early.
    """
    found = bytearray(head)
    at, end = 0, len(head) + bytes_max
    try:
        while at < len(data):
            inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            while not inflater.eof:
                if at >= len(data):
                    raise GzipError("gzip ends too early")
                piece = data[at : at + _PIECE_BYTES]
                # A byte too many says that there is more.
                found += inflater.decompress(piece, end + 1 - len(found))
                if len(found) > end:
                    return memoryview(found)[:end], False
                at += len(piece) - len(inflater.unused_data)
            if zeros := _ZEROS.match(data, at):
                at = zeros.end()
    except zlib.error as error:
        raise GzipError(str(error)) from error
    return memoryview(found), True
