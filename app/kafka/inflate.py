"""Inflates the compressed records of a batch, within a bound whatever they claim.

A batch of some KiB can inflate to gigabytes. No header that states its size can be trusted. So a
buffer of a guessed size is filled, and a larger one if that is too small.
"""

from __future__ import annotations

import struct

import cramjam

from tables.record.gzip import GzipError, inflate_gzip

INFLATED_BYTES_MAX = 64 << 20
"""The inflated size of one batch. Producers fill a batch up to some MiB, and the largest record of
a source may have 12 MiB. It is a constant, so that every reader of a log sees the same records."""

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
_GUESS_FACTOR = 8
_GUESS_BYTES_MIN = 64 << 10
_FULL = "failed to write whole buffer"
"""The words of cramjam when its output is full; a test fails when an upgrade changes them."""

_XERIAL_START = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16


class InflateError(ValueError):
    """Bytes that are not compressed as their batch says."""


def inflate(codec: int, data: memoryview, head: bytes) -> tuple[memoryview, bool]:
    """Return ``head`` and the inflated bytes behind it, and whether that is all of them.

    If it is not, the first ``INFLATED_BYTES_MAX`` are returned.

    Raises:
        InflateError: the bytes are broken, or the codec is unknown.
    """
    try:
        if codec == GZIP:
            return inflate_gzip(bytes(data), INFLATED_BYTES_MAX, head)
        if codec == SNAPPY:
            return _snappy(data, head)
        if codec in (LZ4, ZSTD):
            return _guessed(cramjam.lz4 if codec == LZ4 else cramjam.zstd, data, head)
    except (cramjam.DecompressionError, GzipError, struct.error) as error:
        raise InflateError(f"its batch cannot be inflated: {error}") from error
    raise InflateError(f"its batch has an unknown compression; got {codec}")


def _guessed(module: object, data: memoryview, head: bytes) -> tuple[memoryview, bool]:
    """Inflate into a buffer that is guessed; memory that is not written to costs nothing."""
    size = _GUESS_BYTES_MIN
    compressed = bytes(data)
    while True:
        size = min(max(size, len(data)) * _GUESS_FACTOR, INFLATED_BYTES_MAX)
        found = bytearray(len(head) + size)
        found[: len(head)] = head
        whole = memoryview(found)
        try:
            taken = module.decompress_into(compressed, whole[len(head) :])  # type: ignore[attr-defined]
        except cramjam.DecompressionError as error:
            if str(error) != _FULL:
                raise
            if size == INFLATED_BYTES_MAX:
                return whole, False
        else:
            return whole[: len(head) + taken], True


def _snappy(data: memoryview, head: bytes) -> tuple[memoryview, bool]:
    """Inflate blocks in Xerial's frame, as Java writes them, or one block without any."""
    found = bytearray(head)
    blocks = [bytes(data)]
    if data[: len(_XERIAL_START)] == _XERIAL_START:
        blocks, at = [], _XERIAL_HEADER_BYTES
        while at < len(data):
            (size,) = struct.unpack_from(">i", data, at)
            if size < 0:
                raise InflateError("its batch cannot be inflated: a block of snappy has no length")
            blocks.append(bytes(data[at + 4 : at + 4 + size]))
            at += 4 + size
    for block in blocks:
        room = len(head) + INFLATED_BYTES_MAX - len(found)
        claim = cramjam.snappy.decompress_raw_len(block)
        if claim > room:
            return memoryview(found), False
        found += bytes(cramjam.snappy.decompress_raw(block))
    return memoryview(found), True
