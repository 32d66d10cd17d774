"""A descriptor set of Protobuf without a compiler, and messages of it."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)

_KINDS = descriptor_pb2.FieldDescriptorProto
MESSAGE = "shop.Outer.Event"


def _add(message: Any, name: str, number: int, kind: str, **more: Any) -> Any:
    is_named = "." in kind
    field = message.field.add(name=name, number=number, label=more.pop("label", 1))
    if is_named:
        field.type_name = kind
        field.type = more.pop("type", _KINDS.TYPE_MESSAGE)
    else:
        field.type = getattr(_KINDS, f"TYPE_{kind.upper()}")
    for option, value in more.items():
        setattr(field, option, value)
    return field


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """Return the files of ``shop.Outer.Event``, with those that it imports.

    It has values of every kind: plain, optional, in maps, lists, a oneof and other messages.
    """
    files = descriptor_pb2.FileDescriptorSet()
    for module in (timestamp_pb2, wrappers_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    file = files.file.add(name="shop.proto", package="shop", syntax="proto3")
    file.dependency.extend(one.name for one in files.file[:2])
    kinds = file.enum_type.add(name="Kind")
    for number, name in enumerate(("UNKNOWN", "PAID", "SENT")):
        kinds.value.add(name=name, number=number)
    file.message_type.add(name="First")
    outer = file.message_type.add(name="Outer")
    outer.nested_type.add(name="Before")
    event = outer.nested_type.add(name="Event")
    meta = event.nested_type.add(name="Meta")
    _add(meta, "at", 1, ".google.protobuf.Timestamp")
    _add(meta, "at_ms", 2, "sint64")
    labels = event.nested_type.add(name="LabelsEntry")
    labels.options.map_entry = True
    _add(labels, "key", 1, "string")
    _add(labels, "value", 2, "string")
    _add(event, "meta", 1, ".shop.Outer.Event.Meta")
    _add(event, "kind", 2, ".shop.Kind", type=_KINDS.TYPE_ENUM)
    _add(event, "uid", 3, "string")
    _add(event, "delay", 4, "int64", proto3_optional=True, oneof_index=1)
    _add(event, "vip", 5, "bool")
    _add(event, "sizes", 6, "double", label=3)
    _add(event, "price", 7, ".google.protobuf.DoubleValue")
    _add(event, "labels", 8, ".shop.Outer.Event.LabelsEntry", label=3)
    _add(event, "big", 9, "uint64", oneof_index=0)
    _add(event, "raw", 10, "bytes", oneof_index=0)
    _add(event, "more", 11, ".shop.Outer.Event.Meta", label=3)
    event.oneof_decl.add(name="choice")
    event.oneof_decl.add(name="_delay")
    return files


def encoded_set() -> str:
    """Return the descriptor set in base 64, as a map's source has it."""
    return base64.b64encode(descriptor_set().SerializeToString()).decode()


def message_class() -> Any:
    """Return the class of messages."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_set().file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(MESSAGE))
