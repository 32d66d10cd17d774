"""Protobuf messages: those of a descriptor set, read into values as JSON would have them.

Fields have the names of the ``.proto`` file. A field that is absent is null if its declaration can
say so (messages, members of a ``oneof``, ``optional``, proto2), else it has its type's default.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from agents.decode.struct_events import Instant
from tables.model.errors import TreasureMapError
from tables.model.path import Path
from treasure_map.extras import install

_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_TIMESTAMP = "google.protobuf.Timestamp"


class ProtobufError(TreasureMapError):
    """A descriptor set, or a value, that is not one that events can be read from."""


class NoProtobufError(ProtobufError):
    """The package that reads Protobuf is not installed."""


class ProtobufMessage:
    """A message of a descriptor set.

    Args:
        descriptor: a ``FileDescriptorSet``, as ``protoc --include_imports`` writes it, in base 64.
        name: the full name of the message.

    Attributes:
        places: the indexes of the message in its file, from the outermost message inwards: clients
            count the messages that stand for entries of maps, or do not.

    Raises:
        ProtobufError: the set is broken, lacks a file that is imported, or lacks the message.
    """

    def __init__(self, descriptor: str, name: str) -> None:
        try:
            from google.protobuf import (  # noqa: PLC0415 - only some workers need it
                descriptor_pb2,
                descriptor_pool,
                message,
                message_factory,
            )
        except ImportError as error:
            raise NoProtobufError(
                f"cannot use Protobuf: {error}; want the packages of the extra protobuf;"
                f" {install('protobuf')}"
            ) from error
        self._broken = (message.DecodeError, UnicodeDecodeError)
        pool = descriptor_pool.DescriptorPool()
        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(descriptor))
            for file in files.file:
                pool.Add(file)
            found = pool.FindMessageTypeByName(name)
        except KeyError as error:
            names = sorted(f"{f.package}.{m.name}" for f in files.file for m in f.message_type)
            raise ProtobufError(
                f"cannot use descriptor: it has no message {name!r}; got"
                f" {', '.join(one.lstrip('.') for one in names[:20]) or 'none'}"
            ) from error
        except (message.DecodeError, TypeError, ValueError) as error:
            raise ProtobufError(
                f"cannot use descriptor: {error}; want a file of protoc --include_imports"
                " --descriptor_set_out=FILE"
            ) from error
        self._class = message_factory.GetMessageClass(found)
        self.places = {_place(found, with_entries=True), _place(found, with_entries=False)}

    def values(self, data: bytes, tree: Mapping[str | int, Any]) -> dict[str, Any]:
        """Return the values of a message that a tree of paths wants.

        Raises:
            ProtobufError: the bytes are not of the message.
        """
        try:
            return dict(_fields(self._class.FromString(data), tree))
        except self._broken as error:
            raise ProtobufError(f"cannot read Protobuf: {error}") from error


def _place(message: Any, *, with_entries: bool) -> tuple[int, ...]:
    outer = message.containing_type
    beside = message.file.message_types_by_name.values() if outer is None else outer.nested_types
    names = [
        one.full_name for one in beside if with_entries or not one.GetOptions().map_entry
    ]  # fmt: skip
    own = names.index(message.full_name) if message.full_name in names else -1
    return (own,) if outer is None else (*_place(outer, with_entries=with_entries), own)


def tree_of(paths: list[Path]) -> dict[str | int, Any]:
    """Return paths as a tree of steps; a value that is wanted itself has no steps."""
    tree: dict[str | int, Any] = {}
    for path in paths:
        inner = tree
        for step in path:
            inner = inner.setdefault(step, {})
    return tree


def _fields(message: Any, tree: Mapping[str | int, Any]) -> dict[str, Any]:
    names = message.DESCRIPTOR.fields_by_name
    return {
        str(step): _field(message, names[step], inner)
        for step, inner in tree.items()
        if step in names
    }


def _field(message: Any, field: Any, tree: Mapping[str | int, Any]) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, inner = kind.fields_by_name["key"], kind.fields_by_name["value"]
        if not tree or key.cpp_type != key.CPPTYPE_STRING:
            return {}
        return {step: _value(value[step], inner, tree[step]) for step in tree if step in value}
    if field.is_repeated:
        wanted = max((step for step in tree if isinstance(step, int)), default=-1)
        return [_value(one, field, tree.get(at, {})) for at, one in enumerate(value[: wanted + 1])]
    return _value(value, field, tree)


def _value(value: Any, field: Any, tree: Mapping[str | int, Any]) -> Any:
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if field.message_type is None:
        return value
    name = field.message_type.full_name
    if not tree and name in _WRAPPERS:
        return value.value
    if not tree and name == _TIMESTAMP:
        return Instant({}, value.seconds * 1_000 + value.nanos // 1_000_000)
    return _fields(value, tree)
