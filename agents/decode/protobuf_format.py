"""Protobuf as a format of records: one message, alone or behind the frame of a schema registry.

    00 | four bytes of an id | indexes of the message in its file | message

The id is not asked for: a registry has the text of the file, and the map has its descriptor. The
indexes are a count and as many numbers, all as zigzag varints; one ``00`` stands for ``02 00``.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from agents.decode.event_batch import DETAIL_CHARS_MAX
from agents.decode.json_events import JsonEvents
from agents.decode.protobuf_message import ProtobufError, ProtobufMessage, tree_of
from agents.decode.record_format import RecordFormat, RunResults
from agents.decode.struct_events import add_structs, plain_value, varint
from tables.model.layer import Source

_PROTOBUF_TYPE = "application/protobuf"
_REASON = "protobuf"
_ID_BYTES = 5


class ProtobufDecoder:
    """Decodes the Protobuf records of one source, which declares their message."""

    def __init__(self, source: Source) -> None:
        assert source.format is not None, "formats_of makes it for such sources alone"
        self._events = JsonEvents(source)
        self._message = ProtobufMessage(source.format.descriptor, source.format.message)
        self._tree = tree_of(source.paths)
        self._is_framed = source.format.framed
        places = [place for place in sorted(self._message.places) if min(place) >= 0]
        self._places = [b"".join(map(varint, [len(place), *place])) for place in places]
        if (0,) in places:
            self._places.append(b"\0")

    def decode(self, run: RunResults, first: int, values: list[bytes]) -> None:
        """Decode records, one by one."""
        indexes: list[int] = []
        for index, value in enumerate(values, first):
            try:
                found = self._message.values(self._body(value), self._tree)
            except ProtobufError as error:
                detail = str(error)[:DETAIL_CHARS_MAX]
                run.refuse_record(index, "unreadable", _REASON, detail)
                continue
            indexes += add_structs(run, index, [self._events.take(found, self._plain)])
        run.events.add_indexes(pl.Series(indexes, dtype=pl.UInt64))

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return the value, which is one event."""
        assert events == (0,)
        return value, _PROTOBUF_TYPE

    def _body(self, value: bytes) -> bytes:
        """Return the message of a value.

        Raises:
            ProtobufError: it has no frame, or that of another message.
        """
        if not self._is_framed:
            return value
        place = next((one for one in self._places if value.startswith(one, _ID_BYTES)), None)
        if value[:1] != b"\0" or place is None:
            raise ProtobufError(
                f"cannot read Protobuf: got first bytes {value[:8].hex(' ')}; want 00, the four"
                f" bytes of an id, and {' or '.join(one.hex(' ') for one in self._places)}"
            )
        return value[_ID_BYTES + len(place) :]

    def _plain(self, kind: str, value: Any) -> Any:
        return plain_value(self._events, kind, value)


PROTOBUF = RecordFormat("protobuf", _PROTOBUF_TYPE, ProtobufDecoder, (), (_REASON,))
