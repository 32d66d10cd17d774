"""Record batches of a fetch: whatever bytes a producer wrote, each record keeps its offset.

aiokafka reads a batch as a whole, and inflates it without a bound: one record that it cannot read
would stop its partition for ever. ``Batches`` replaces its ``MemoryRecords``. A batch is inflated
within a bound, and read by aiokafka's C code; if that fails it is read record by record, and those
that cannot be read are in ``faults`` (docs/formats/records.md)::

    offset, length, CRC ... attributes, last offset, times, producer, count | records (compressed)
                            codec, control   next_offset                      varint length, fields
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterator
from typing import Any

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from app.kafka.inflate import INFLATED_BYTES_MAX, inflate
from tables.model.limits import INT64_MAX, INT64_MIN, LETTER_BYTES_MAX
from tables.record.chunk import RecordFault

# Kafka's NO_TIMESTAMP: the time of a record without one (formats before 2 may have none).
NO_TIME_MS = -1

UNREAD_RECORDS_MAX = 1 << 20
"""Unreadable records that one batch may claim. Brokers refuse a batch that claims more records
than it has, so further ones never existed."""

_OVERHEAD = 12
_LENGTH_AT, _MAGIC_AT = 8, 16
_HEADER = struct.Struct(">qiibIhiqqqhii")
_FORMAT = 2
_COUNT_AT, _CODEC_AT = 57, 22
_CODEC_MASK = 0x07
_LOG_APPEND_TIME = 1
_MORE = 0x80
_VARINT_BITS_MAX = 70
_BATCH_BYTES_MIN = 26


@dataclasses.dataclass(slots=True, frozen=True)
class Record:
    """A record as aiokafka's own classes have it; a name that is not UTF-8 has surrogates.

    ``fault`` is why it cannot be used, as in :attr:`Batch.faults`.
    """

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    fault: RecordFault | None = None
    checksum: None = None


class Batches:
    """The batches of one partition in an answer to a fetch; one that was cut off is left out.

    :meth:`next_batch` raises CorruptRecordException for one that no broker writes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = self._end = 0
        self._find_next()

    def size_in_bytes(self) -> int:
        """Return the size of the answer."""
        return len(self._data)

    def has_next(self) -> bool:
        """Return whether there is another whole batch."""
        return self._end > self._at

    def next_batch(self) -> Batch | None:
        """Return the next batch, None at the end."""
        if not self.has_next():
            return None
        data = self._data[self._at : self._end]
        if len(data) < _BATCH_BYTES_MIN:
            raise CorruptRecordException(f"cannot read a batch: got a length of {len(data)} bytes")
        self._at = self._end
        self._find_next()
        return Batch(data)

    def _find_next(self) -> None:
        data, at = self._data, self._at
        if len(data) - at < _OVERHEAD:
            return
        (length,) = struct.unpack_from(">i", data, at + _LENGTH_AT)
        # A wrong length is reported when the batch is read, not in aiokafka's own task.
        end = at + _OVERHEAD + max(length, 0)
        if end <= len(data):
            self._end = end


class Batch:
    """One batch, with the names that aiokafka's fetcher asks for.

    Attributes:
        faults: by offset, the records that cannot be used; complete once :meth:`records` returned.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._magic = data[_MAGIC_AT]
        if self._magic > _FORMAT:
            raise CorruptRecordException(f"cannot read a batch: got format {self._magic}; want 0-2")
        self._inner: Any = (
            LegacyRecordBatch(data, self._magic)
            if self._magic < _FORMAT
            else DefaultRecordBatch(data)
        )
        self.faults: dict[int, RecordFault] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records())

    def __next__(self) -> Any:
        """Return the record of a control batch."""
        return next(self._inner)

    def records(self) -> list[Any]:
        """Return all records in order of their offsets, those with a fault among them."""
        data, is_whole, cause = self._data, True, ""
        try:
            plain = self._inner
            if codec := self._codec():
                data, is_whole = self._inflated(codec)
                plain = DefaultRecordBatch(data) if self._magic == _FORMAT else plain
            if is_whole:
                records = list(plain)
                if self._are_in_order(records):
                    return records
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - C code, which declares no exceptions
            cause = str(error) or type(error).__name__
        if self._magic == _FORMAT:
            return self._read_each(data, cause, is_whole=is_whole)
        at = self._inner.next_offset - 1
        return self._unread(range(at, at + 1), bytes(self._data), cause)

    def _codec(self) -> int:
        at = _CODEC_AT if self._magic == _FORMAT else _MAGIC_AT + 1
        return self._data[at] & _CODEC_MASK

    def _inflated(self, codec: int) -> tuple[memoryview, bool]:
        """Return the batch without compression, and whether that is all of it."""
        if self._magic == _FORMAT:
            head = bytearray(self._data[: _HEADER.size])
            head[_CODEC_AT] &= ~_CODEC_MASK
            return inflate(codec, self._data[_HEADER.size :], bytes(head))
        # A message of messages: its value begins behind key and value length.
        at = _MAGIC_AT + 2 + 8 * self._magic
        (key,) = struct.unpack_from(">i", self._data, at)
        found, is_whole = inflate(codec, self._data[at + 8 + max(key, 0) :], b"")
        if not is_whole:
            raise CorruptRecordException(_too_large())
        return found, is_whole

    def _are_in_order(self, records: list[Any]) -> bool:
        """Return whether offsets rise and lie in the batch, as brokers see to.

        If first and last fit the number of records, they count as consecutive.
        """
        if not records or self._magic < _FORMAT:
            return True
        first, last = records[0].offset, records[-1].offset
        if first < self._inner.base_offset or last >= self._inner.next_offset:
            return False
        if last - first + 1 == len(records):
            return True
        offsets = [record.offset for record in records]
        return all(a < b for a, b in itertools.pairwise(offsets))

    def _read_each(self, data: memoryview, cause: str, *, is_whole: bool) -> list[Record]:
        """Return the records that can be read one by one, and a fault for each other one."""
        base, (count,) = self._inner.base_offset, struct.unpack_from(">i", self._data, _COUNT_AT)
        last, expected = self._inner.next_offset - 1, base
        records: list[Record] = []
        reader = _Reader(data, _HEADER.size)
        is_readable = self._codec() == 0 or data is not self._data
        while is_readable and len(records) < count and expected <= last:
            found = reader.next_record(is_whole=is_whole)
            if found is None:
                break
            offset = base + found.offset_delta
            if found.fault is None and not expected <= offset <= last:
                detail = f"its offset {offset} is not one from {expected} to {last}"
                found.fault = RecordFault("record", detail)
            if found.fault is not None:
                offset = offset if expected <= offset <= last else expected
                self.faults[offset] = found.fault
            records.append(self._record(offset, found))
            expected = offset + 1
        unread = min(count - len(records), last + 1 - expected, UNREAD_RECORDS_MAX)
        rest = bytes(data[reader.at :][:LETTER_BYTES_MAX]) if is_whole else b""
        cause = (cause or "its batch ends before it") if is_whole else _too_large()
        return records + self._unread(range(expected, expected + max(unread, 0)), rest, cause)

    def _record(self, offset: int, found: _Fields) -> Record:
        batch, by_broker = self._inner, self._inner.timestamp_type == _LOG_APPEND_TIME
        time_ms = batch.max_timestamp if by_broker else batch.first_timestamp + found.time_delta
        if not INT64_MIN <= time_ms <= INT64_MAX:
            time_ms = NO_TIME_MS
        kind = batch.timestamp_type
        return Record(
            offset, time_ms, kind, found.key, found.value, found.headers, found.fault
        )  # fmt: skip

    def _unread(self, offsets: range, rest: bytes, cause: str) -> list[Record]:
        """Return records without known bounds; the first has all the bytes as its value."""
        fault = RecordFault("batch", cause)
        self.faults |= dict.fromkeys(offsets, fault)
        time_ms, log_append_time = NO_TIME_MS, 0
        if self._magic == _FORMAT:
            time_ms = self._inner.max_timestamp
            log_append_time = self._inner.timestamp_type
        return [
            Record(at, time_ms, log_append_time, None, b"" if number else rest, [], fault)
            for number, at in enumerate(offsets)
        ]


class _BrokenError(Exception):
    """Bytes that break the format."""


@dataclasses.dataclass(slots=True)
class _Fields:
    """The fields of one record as they are in a batch."""

    time_delta: int = 0
    offset_delta: int = 0
    key: bytes | None = None
    value: bytes | None = None
    headers: list[tuple[str, bytes | None]] = dataclasses.field(default_factory=list)
    fault: RecordFault | None = None


class _Reader:
    """Reads records of a batch, the next one at the index ``at``."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self.at = at

    def _varint(self) -> int:
        """Return a number in ZigZag form of at most ten bytes."""
        value = shift = 0
        while shift < _VARINT_BITS_MAX:
            if self.at >= len(self._data):
                raise _BrokenError("it ends within a number")
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & ~_MORE) << shift
            if byte < _MORE:
                return (value >> 1) ^ -(value & 1)
            shift += 7
        raise _BrokenError("a number has more than ten bytes")

    def next_record(self, *, is_whole: bool) -> _Fields | None:
        """Return the fields of the next record, broken or not; None if it cannot be found.

        The data may end within it if that is not the whole batch. Then ``at`` is the index of the
        record after it, which cannot be found.
        """
        begin, held = self.at, len(self._data)
        try:
            length = self._varint()
        except _BrokenError:
            length = -1
        end = self.at + length
        if length < 0 or (is_whole and end > held):
            self.at = begin
            return None
        try:
            found = self._record(end)
        except _BrokenError as error:
            if end > held:
                self.at = begin
                return None
            found = _Fields(value=bytes(self._data[begin:end][:LETTER_BYTES_MAX]))
            found.fault = RecordFault("record", str(error))
        self.at = end
        return found

    def _record(self, end: int) -> _Fields:
        self.at += 1
        found = _Fields(self._varint(), self._varint(), self._bytes(end))
        size = self._varint()
        if self.at + max(size, 0) > end:
            raise _BrokenError(f"its value of {size} bytes is longer than the record")
        kept = size if self.at + size <= len(self._data) else LETTER_BYTES_MAX
        found.value = None if size < 0 else bytes(self._data[self.at : self.at + kept])
        self.at += max(size, 0)
        if self.at > len(self._data):
            found.fault = RecordFault("cut", _too_large(), size)
            return found
        count = self._varint()
        if not 0 <= count <= end - self.at:
            raise _BrokenError(f"it has {count} headers")
        for _ in range(count):
            self._header(end, found)
        if self.at != end:
            raise _BrokenError(f"it has {end - self.at} bytes that belong to no field")
        return found

    def _header(self, end: int, found: _Fields) -> None:
        name = self._bytes(end)
        if name is None:
            raise _BrokenError("a header has no name")
        try:
            text = name.decode()
        except UnicodeDecodeError:
            text = name.decode(errors="surrogateescape")
            found.fault = RecordFault("header", f"the name of a header is not UTF-8; got {name!r}")
        found.headers.append((text, self._bytes(end)))

    def _bytes(self, end: int) -> bytes | None:
        size = self._varint()
        if size < 0:
            return None
        if self.at + size > min(end, len(self._data)):
            raise _BrokenError(f"a field of {size} bytes is longer than the record")
        self.at += size
        return bytes(self._data[self.at - size : self.at])


def _too_large() -> str:
    return f"its batch inflates to more than {INFLATED_BYTES_MAX} bytes"
