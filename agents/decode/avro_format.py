"""Avro as a format of records: one event behind the id of its schema, or alone, or a container.

| value | schema |
|---|---|
| ``00``, four bytes of an id, an event | of the registry, of a source that declares ``avro`` |
| an event | of the map, of a source that declares ``avro`` with a schema |
| an object container file, uncompressed | its own |
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from agents.decode.avro_schema import AvroError, AvroSchema, Scaled
from agents.decode.event_batch import DETAIL_CHARS_MAX
from agents.decode.json_events import JsonEvents
from agents.decode.record_format import RecordFormat, RunResults
from agents.decode.schemas import Schemas
from agents.decode.struct_events import add_structs, plain_value, varint
from tables.model.layer import Source
from tables.record.remembered import Remembered

_AVRO_TYPE = "application/avro"
_REASON = "avro"
_CONTAINER = b"Obj\x01"
_ID_BYTES = 5
_SYNC_BYTES = 16
_EVENT_BYTES_MIN = 2
"""The least bytes of an event: it has a time and a type. Others could claim any number."""

_HEADER = '{"type": "map", "values": "bytes"}'


def frame_id(value: bytes | None) -> int | None:
    """Return the id of the schema in the registry's frame, None without such a frame."""
    if value is None or len(value) < _ID_BYTES or value[0] != 0:
        return None
    return int.from_bytes(value[1:_ID_BYTES], "big")


class AvroDecoder:
    """Decodes the Avro records of one source.

    Args:
        source: the source.
        schemas: the schemas of the registry; None if this process has none.
    """

    def __init__(self, source: Source, schemas: Schemas | None = None) -> None:
        self._events = JsonEvents(source)
        self._schemas = schemas
        form = source.format
        self._is_declared = form is not None and form.name == "avro"
        self._schema = AvroSchema(form.schema) if form is not None and form.schema else None
        self._own: Remembered[bytes, AvroSchema] = Remembered(AvroSchema)

    def decode(self, run: RunResults, first: int, values: list[bytes]) -> None:
        """Decode records, one by one."""
        indexes: list[int] = []
        for index, value in enumerate(values, first):
            if not value.strip() and self._schema is None:
                run.refuse_blank(index)
                continue
            try:
                found = self._read(value)
            except AvroError as error:
                detail = str(error)[:DETAIL_CHARS_MAX]
                run.refuse_record(index, "unreadable", _REASON, detail)
                continue
            if found:
                indexes += add_structs(run, index, found)
            else:
                run.refuse_record(index, "empty", "empty", "no events")
        run.events.add_indexes(pl.Series(indexes, dtype=pl.UInt64))

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return the event, or a container with these of the events."""
        if self._schema is not None or not value.startswith(_CONTAINER):
            return value, _AVRO_TYPE
        container = _Container(value, self._own)
        spans = [span for span, _ in container.events()]
        data = b"".join(value[slice(*spans[event])] for event in events)
        block = varint(len(events)) + varint(len(data)) + data + container.sync
        return container.head + block, _AVRO_TYPE

    def _read(self, value: bytes) -> list[Any]:
        """Return the events of a value, of which some may be an :class:`EventFault`.

        Raises:
            AvroError: the value cannot be read.
        """
        if self._schema is not None:
            return [self._event(_whole(self._schema, value))]
        if value.startswith(_CONTAINER):
            return [self._event(found) for _, found in _Container(value, self._own).events()]
        number = frame_id(value)
        if number is None:
            raise AvroError(
                f"cannot read Avro: got first bytes {value[:_ID_BYTES].hex(' ')}; want 00 and the"
                " four bytes of a schema's id, or a container"
            )
        if not self._is_declared or self._schemas is None:
            raise AvroError(
                f"cannot read Avro of schema {number} of a registry: the source does not declare"
                ' it; write format = "avro" in the map'
            )
        return [self._event(_whole(self._schemas.get(number), value[_ID_BYTES:]))]

    def _event(self, values: Any) -> Any:
        return self._events.take(values if isinstance(values, dict) else {}, self._plain)

    def _plain(self, kind: str, value: Any) -> Any:
        """Return the value of a declared type, ``time`` among them, as JSON would have it."""
        if kind in ("float", "number") and isinstance(value, Scaled):
            value = float(value)
        return plain_value(self._events, kind, value)


class _Container:
    """An object container file in memory.

    Args:
        value: its bytes.
        schema_of: returns the schema of its text.

    Attributes:
        head: the bytes before the first block.
        sync: the mark that ends the head and every block.

    Raises:
        AvroError: its head is broken, or it is compressed.
    """

    def __init__(self, value: bytes, schema_of: Callable[[bytes], AvroSchema]) -> None:
        self._file = io.BytesIO(value)
        self._size = len(value)
        self._file.seek(len(_CONTAINER))
        meta = schema_of(_HEADER.encode()).read(self._file)
        codec = meta.get("avro.codec", b"null")
        if codec != b"null":
            raise AvroError(f"cannot read container: got codec {codec!r}; want it uncompressed")
        self._schema = schema_of(meta.get("avro.schema", b""))
        self._long = schema_of(b'"long"')
        self.sync = self._file.read(_SYNC_BYTES)
        self.head = value[: self._file.tell()]

    def events(self) -> Iterator[tuple[tuple[int, int], Any]]:
        """Yield the span of bytes and the value of each event.

        Raises:
            AvroError: a block is broken.
        """
        file = self._file
        while file.tell() < self._size:
            count, size = self._long.read(file), self._long.read(file)
            begin = file.tell()
            end = begin + size
            if size < 0 or end > self._size or not 0 <= count <= size // _EVENT_BYTES_MIN:
                raise AvroError(f"cannot read container: {count} events in {size} bytes")
            for _ in range(count):
                start = file.tell()
                found = self._schema.read(file)
                yield (start, file.tell()), found
            if file.tell() != end or file.read(_SYNC_BYTES) != self.sync:
                raise AvroError("cannot read container: a block does not end where it says")


def _whole(schema: AvroSchema, data: bytes) -> Any:
    """Return the value that all of some bytes are."""
    file = io.BytesIO(data)
    found = schema.read(file)
    if file.tell() != len(data):
        raise AvroError(f"cannot read Avro: {len(data) - file.tell()} bytes behind the event")
    return found


AVRO = RecordFormat("avro", _AVRO_TYPE, AvroDecoder, (_CONTAINER,), (_REASON,))
