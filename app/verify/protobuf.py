"""Protobuf recomputed: the values of an event at the map's paths, read from a message one by one.

The official package parses the bytes, as it does for the worker; frames, presence, maps and times
are read by rules of this module.
"""

from __future__ import annotations

import base64
import math
from typing import Any

from app.verify.avro import Millis, kinds_of
from app.verify.checks import NOT_FINITE
from app.verify.errors import VerifyError
from tables.model.layer import Source
from tables.model.path import Path
from treasure_map.extras import install

_TIMESTAMP = "google.protobuf.Timestamp"


class ProtobufValues:
    """Reads the Protobuf records of one source that declares them."""

    def __init__(self, source: Source) -> None:
        assert source.format is not None
        try:
            from google.protobuf import (  # noqa: PLC0415 - only records of Protobuf need it
                descriptor_pb2,
                descriptor_pool,
                message,
                message_factory,
            )
        except ImportError as error:
            raise VerifyError(f"cannot read Protobuf: {error}; {install('protobuf')}") from error
        pool = descriptor_pool.DescriptorPool()
        data = base64.b64decode(source.format.descriptor)
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            pool.Add(file)
        kind = pool.FindMessageTypeByName(source.format.message)
        self._class = message_factory.GetMessageClass(kind)
        self._broken = (message.DecodeError, UnicodeDecodeError)
        self._is_framed = source.format.framed
        self._places = [_place(kind), _place(kind, entries=False)]
        kinds = kinds_of(source)
        self._paths = {path: kinds.get(path, "") for path in source.paths}
        self._paths[source.time_at] = "time"

    def __call__(self, value: bytes) -> dict[Path, Any] | None:
        """Return the value at each path, None for one that is null; None if it cannot be read."""
        if self._is_framed:
            if value[:1] != b"\0" or len(value) < 6:  # noqa: PLR2004 - an id and an index
                return None
            place, begin = _indexes(value, 5)
            if place not in self._places:
                return None
            value = value[begin:]
        try:
            found = self._class.FromString(value)
            return {path: _at(found, path, kind) for path, kind in self._paths.items()}
        except self._broken:
            return None


def _place(kind: Any, *, entries: bool = True) -> list[int]:
    """Return the indexes of a message in its file, with or without entries of maps counted."""
    proto: Any = descriptor_of(kind.file)
    names = kind.full_name.removeprefix(f"{kind.file.package}.").split(".")
    found, beside = [], proto.message_type
    for name in names:
        counted = [one for one in beside if entries or not one.options.map_entry]
        at = next((at for at, one in enumerate(counted) if one.name == name), -1)
        found.append(at)
        beside = counted[at].nested_type
    return found


def descriptor_of(file: Any) -> Any:
    """Return the declaration of a file."""
    from google.protobuf import descriptor_pb2  # noqa: PLC0415 - only records of Protobuf need it

    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    return proto


def _indexes(value: bytes, at: int) -> tuple[list[int] | None, int]:
    """Return the indexes of a frame, and the offset of the message; no indexes are the first."""
    count, at = _number(value, at)
    if count == 0:
        return [0], at
    found = []
    for _ in range(min(count, 100)):
        number, at = _number(value, at)
        found.append(number)
    return (found if len(found) == count else None), at


def _number(value: bytes, at: int) -> tuple[int, int]:
    """Return a zigzag varint that is written in as few bytes as it needs, else -1."""
    found = shift = 0
    while at < len(value):
        byte = value[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last
            is_short = byte or not shift
            return (-1 if found & 1 or not is_short else found // 2), at
        shift += 7
    return -1, at


def _at(message: Any, path: Path, kind: str) -> Any:
    """Return the value at a path of a message."""
    value: Any = message
    field: Any = None
    for step in path:
        if _is_map(field):
            key = field.message_type.fields_by_name["key"]
            if key.type != key.TYPE_STRING or step not in value:
                return None
            value, field = value[step], field.message_type.fields_by_name["value"]
        elif field is not None and field.is_repeated:
            if not isinstance(step, int) or step >= len(value):
                return None
            value = value[step]
            field = _Single(field)
        elif field is not None and field.message_type is None:
            return None
        else:
            field = value.DESCRIPTOR.fields_by_name.get(step)
            if field is None or (field.has_presence and not value.HasField(step)):
                return None
            value = getattr(value, field.name)
    return _leaf(value, field, kind)


class _Single:
    """The field of one item of a repeated field."""

    is_repeated = False

    def __init__(self, field: Any) -> None:
        self.message_type = field.message_type
        self.enum_type = field.enum_type


def _is_map(field: Any) -> bool:
    return (
        field is not None
        and field.is_repeated
        and field.message_type is not None
        and field.message_type.GetOptions().map_entry
    )


def _leaf(value: Any, field: Any, kind: str) -> Any:
    """Return a value as JSON has it; a list or an object of another kind has no type."""
    if field.is_repeated:
        return [] if not _is_map(field) else {}
    if field.message_type is not None:
        name = field.message_type.full_name
        if name == _TIMESTAMP and kind == "time":
            return Millis(value.seconds * 1_000 + math.floor(value.nanos / 1_000_000), 0)
        if not (name.startswith("google.protobuf.") and name.endswith("Value")) or name in (
            "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.NullValue",
        ):  # fmt: skip
            return {}
        value = value.value
    elif field.enum_type is not None:
        names = {one.number: one.name for one in field.enum_type.values}
        return names.get(value, value)
    if kind == "float" and type(value) is float and not math.isfinite(value):
        return NOT_FINITE
    return value
