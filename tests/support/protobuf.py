"""A descriptor set of Protobuf without a compiler, and messages of it."""

from __future__ import annotations

import base64
import random
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


_EVENT = message_class()


def message_of(chance: random.Random) -> Any:
    """Return an event; fields are absent now and then, or have values that the map refuses."""
    one = _EVENT()
    if chance.random() < 0.95:
        one.meta.at_ms = chance.choice([5, 1_700_000_000_123, -1, 2**60])
        if chance.random() < 0.95:
            one.meta.at.seconds = chance.choice([1_700_000_000, 0, -5, 253_402_300_800])
            one.meta.at.nanos = chance.choice([0, 123_456_789, 999_999_999, -1])
    one.kind = chance.choice([0, 1, 2, 2, 9])
    one.uid = chance.choice(["", "a", "é"])
    if chance.random() < 0.7:
        one.delay = chance.choice([0, 7, -(2**63)])
    one.vip = chance.random() < 0.5
    one.sizes.extend(chance.choice([[], [1.5], [1.5, 2.5], [0.0, float("nan")]]))
    if chance.random() < 0.7:
        one.price.value = chance.choice([0.0, 1.25, 1e300, float("inf")])
    one.labels.update(chance.choice([{}, {"a.b": "x"}, {"a.b": "", "c": "y"}]))
    if chance.random() < 0.6:
        one.big = chance.choice([0, 2**63 - 1, 2**64 - 1])
    elif chance.random() < 0.5:
        one.raw = b"\xff"
    for number in range(chance.choice([0, 1, 2, 3])):
        one.more.add(at_ms=number).at.seconds = number
    return one


def broken(chance: random.Random, data: bytes) -> bytes:
    """Return bytes with some of them cut off, changed, or added."""
    at = chance.randrange(len(data) + 1)
    some = (b"", b"\xff", b"\x00", b"\x0a\xff\xff\xff\x7f", b"\xff" * 12, chance.randbytes(2))
    cut = chance.choice([0, 1])
    return chance.choice(
        [data[:at], data + b"\x0a", data[:at] + chance.choice(some) + data[at + cut :]]
    )
