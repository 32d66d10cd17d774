"""Arrow streams: whether an IPC stream is sound enough to be given to the reader of Arrow.

The reader allocates the declared size of a stream before it reads the bytes, and ends the
process if that cannot be had. So everything that it sizes memory or recursion by is compared
first with the bytes that are there and with the limits of the source. Layout: the Arrow columnar
format, "IPC Streaming Format", and its flatbuffers Message.fbs and Schema.fbs, version V5::

    FF FF FF FF | metadata size, int32 | metadata, a flatbuffer | body, 8-byte aligned | next ...
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator

from tables.record.remembered import Remembered

CONTINUATION = b"\xff\xff\xff\xff"
FIELDS_MAX = 1_000
DEPTH_MAX = 8
"""The depth of nested columns, by which the reader recurses."""

VALUE_BYTES_MAX = 65_536
"""The largest size of a value of fixed size."""

ROW_BYTES_MIN = 4
"""The least bytes of a row: events have a time. Columns of nulls could claim any number of rows."""

_ITEMS_PER_BYTE_MAX = 8

_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_FIXED_SIZE_BINARY, _FIXED_SIZE_LIST, _UNION, _RUN_END_ENCODED = 15, 16, 14, 22
_LIST_VIEW = 25
_FORMS_KNOWN = 256
# The two sizes before the fields of a vtable; a root offset and a table.
_VTABLE_BYTES_MIN, _METADATA_BYTES_MIN = 4, 8


class ArrowError(ValueError):
    """A stream that is not Arrow, lies about itself, or inflates too far."""


class _Table:
    """A flatbuffer table whose every access is checked against the buffer's end."""

    __slots__ = ("_data", "_fields", "_position")

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        vtable = position - _unpack(_INT32, data, position)
        size = _unpack(_UINT16, data, vtable)
        if size < _VTABLE_BYTES_MIN or vtable + size > len(data):
            raise ArrowError("a table of its metadata is cut off")
        self._fields = _offsets(size // 2 - 2).unpack_from(data, vtable + 4)

    def number(self, field: int, form: struct.Struct, default: int = 0) -> int:
        """Return a scalar field."""
        at = self._at(field)
        return _unpack(form, self._data, at) if at else default

    def table(self, field: int) -> _Table | None:
        """Return a table field, None if it is absent."""
        at = self._at(field)
        return _Table(self._data, at + _unpack(_UINT32, self._data, at)) if at else None

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """Return the position of the first item of a vector, and how many there are."""
        at = self._at(field)
        if not at:
            return 0, 0
        start = at + _unpack(_UINT32, self._data, at)
        count = _unpack(_UINT32, self._data, start)
        if start + 4 + count * item_bytes > len(self._data):
            raise ArrowError("a list of its metadata is cut off")
        return start + 4, count

    def tables(self, field: int) -> Iterator[_Table]:
        """Return the tables of a vector of tables."""
        start, count = self.vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            yield _Table(self._data, at + _unpack(_UINT32, self._data, at))

    def numbers(self, field: int, per_item: int) -> tuple[int, ...]:
        """Return all 64-bit numbers of a vector of structs."""
        start, count = self.vector(field, 8 * per_item)
        return struct.unpack_from(f"<{count * per_item}q", self._data, start)

    def text(self, field: int) -> str:
        """Return a text field."""
        start, count = self.vector(field, 1)
        try:
            return self._data[start : start + count].decode()
        except UnicodeDecodeError as error:
            raise ArrowError("a column's name is not UTF-8") from error

    def _at(self, field: int) -> int:
        offset = self._fields[field] if field < len(self._fields) else 0
        return self._position + offset if offset else 0


_UINT8, _INT16, _UINT16 = struct.Struct("<B"), struct.Struct("<h"), struct.Struct("<H")
_INT32, _UINT32, _INT64 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<q")


def check_stream(data: bytes, inflated_bytes_max: int) -> tuple[frozenset[str], int]:
    """Check a stream's structure; return its columns and how many rows it declares.

    Args:
        data: a record's value.
        inflated_bytes_max: bytes up to which all its buffers may inflate.

    Raises:
        ArrowError: it must not be read.
    """
    inflated = rows = position = 0
    columns: frozenset[str] | None = None
    while position < len(data):
        size, position = _metadata_size(data, position)
        if size == 0:
            break
        metadata = data[position : position + size]
        message = _message(metadata, size)
        position += size
        body_bytes = message.number(3, _INT64)
        if not 0 <= body_bytes <= len(data) - position:
            raise ArrowError(f"a body of {body_bytes} bytes, but {len(data) - position} are left")
        kind, header = message.number(1, _UINT8), message.table(2)
        if header is None or (kind == _SCHEMA) is (columns is not None):
            raise ArrowError("its schema is not its first and only one")
        if kind == _SCHEMA:
            columns = _columns(metadata)
        elif kind in (_DICTIONARY_BATCH, _RECORD_BATCH):
            batch = header if kind == _RECORD_BATCH else header.table(1)
            if batch is None:
                raise ArrowError("a dictionary without values")
            body = memoryview(data)[position : position + body_bytes]
            inflated += _inflated(batch, body, inflated_bytes_max - inflated)
            rows += batch.number(0, _INT64) if kind == _RECORD_BATCH else 0
            if rows * ROW_BYTES_MIN > inflated:
                raise ArrowError(f"{rows} rows in {inflated} bytes")
        else:
            raise ArrowError(f"a message of kind {kind}")
        position += body_bytes
    if columns is None:
        raise ArrowError("no schema")
    return columns, rows


def _metadata_size(data: bytes, position: int) -> tuple[int, int]:
    """Return the size of the next message's metadata, and its first byte."""
    if data[position : position + 4] != CONTINUATION:
        raise ArrowError(f"no message begins at byte {position}")
    size = _unpack(_INT32, data, position + 4)
    if not 0 <= size <= len(data) - position - 8:
        raise ArrowError(f"metadata of {size} bytes, but {len(data) - position - 8} are left")
    return size, position + 8


def _message(metadata: bytes, size: int) -> _Table:
    if size < _METADATA_BYTES_MIN:
        raise ArrowError("metadata of a message is cut off")
    return _Table(metadata, _unpack(_UINT32, metadata, 0))


def _check_schema(metadata: bytes) -> frozenset[str]:
    """Check a schema message and return the names of its columns."""
    schema = _message(metadata, len(metadata)).table(2)
    assert schema is not None, "the caller has seen it"
    if schema.number(0, _INT16) != 0:
        raise ArrowError("it is big-endian")
    tops = list(schema.tables(1))
    names = [field.text(0) for field in tops]
    if len(set(names)) < len(names):
        raise ArrowError("two columns of one name")
    fields = 0
    waiting = [(field, 1) for field in tops]
    while waiting:
        field, depth = waiting.pop()
        fields += 1
        if fields > FIELDS_MAX or depth > DEPTH_MAX:
            raise ArrowError(f"more than {FIELDS_MAX} columns, or nested deeper than {DEPTH_MAX}")
        kind, detail = field.number(2, _UINT8), field.table(3)
        if kind in (_UNION, _RUN_END_ENCODED) or kind >= _LIST_VIEW:
            raise ArrowError(f"a column of type {kind}, which is not read")
        if kind in (_FIXED_SIZE_BINARY, _FIXED_SIZE_LIST):
            width = detail.number(0, _INT32) if detail else 0
            if not 0 < width <= VALUE_BYTES_MAX:
                raise ArrowError(f"a column whose values have the fixed size {width}")
        waiting += [(child, depth + 1) for child in field.tables(5)]
    return frozenset(names)


_columns: Remembered[bytes, frozenset[str]] = Remembered(_check_schema)
"""Producers repeat their schema in every record."""


def _inflated(batch: _Table, body: memoryview, inflated_bytes_max: int) -> int:
    """Check a batch's lengths and buffers; return the bytes of its buffers once inflated."""
    length = batch.number(0, _INT64)
    nodes = batch.numbers(1, 2)
    most = _ITEMS_PER_BYTE_MAX * max(inflated_bytes_max, 0)
    numbers = (length, *nodes)
    if min(numbers) < 0 or max(numbers) > most:
        raise ArrowError(f"a batch of {length} rows, or columns of impossible lengths")
    buffers = batch.numbers(2, 2)
    compressed = batch.table(3) is not None
    inflated = 0
    for start, size in zip(buffers[::2], buffers[1::2], strict=True):
        if start < 0 or size < 0 or start + size > len(body):
            raise ArrowError(f"a buffer at [{start}, {start + size}) of {len(body)} bytes")
        declared = size
        if compressed and size:
            declared = _unpack(_INT64, body, start) if size >= _INT64.size else -2
            if declared < -1:
                raise ArrowError(f"a compressed buffer of {declared} bytes")
            declared = size if declared == -1 else declared
        inflated += declared
    if inflated > inflated_bytes_max:
        raise ArrowError(f"it inflates to more than {inflated_bytes_max} bytes")
    if not all(0 <= count <= len(buffers) for count in batch.numbers(4, 1)):
        raise ArrowError("a column of impossibly many buffers")
    return inflated


def _unpack(form: struct.Struct, data: bytes | memoryview, position: int) -> int:
    try:
        number: int = form.unpack_from(data, position)[0]
    except struct.error as error:
        raise ArrowError("its metadata is cut off") from error
    if position < 0:
        raise ArrowError("its metadata points before itself")
    return number


@functools.lru_cache(_FORMS_KNOWN)
def _offsets(count: int) -> struct.Struct:
    """Return the form of a vtable's fields."""
    return struct.Struct(f"<{count}H")
