"""Avro: the worker's decoder and verify's plain rules take the same events of any bytes."""

from __future__ import annotations

import asyncio
import io
import json
import random
import resource
from collections.abc import Callable
from typing import Any

import pytest

from agents.decode.avro_schema import AvroError, AvroSchema
from agents.decode.schemas import Schemas
from app.verify.avro import AvroRows
from tables.model.layer import Field, RecordForm, Source
from tests.support.avro import encoded, framed
from tests.support.common import dataclasses_replace, small_map
from tests.support.read_alike import check_alike

FIELDS = (
    Field("device", "string", ("payload", "device"), required=True),
    Field("delay", "int", ("payload", "delay")),
    Field("vip", "bool"),
    Field("size", "float", ("sizes", 1)),
    Field("price", "float", ("price",)),
    Field("stamp", "int", ("seen",)),
    Field("label", "string", ("labels", "a.b")),
)
SCALARS: tuple[Any, ...] = (
    "null", "boolean", "int", "long", "float", "double", "bytes", "string",
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "long", "logicalType": "local-timestamp-nanos"},
    {"type": "int", "logicalType": "date"},
    {"type": "string", "logicalType": "uuid"},
    {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 3},
    {"type": "long", "logicalType": "unheard-of"},
    {"type": "int", "logicalType": "time-millis"},
    {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": -1},
)  # fmt: skip


def source_of(form: RecordForm | None, unit_ms: int = 1) -> Source:
    """Return a source of Avro whose values lie deep."""
    return dataclasses_replace(
        small_map().sources[0], fields=FIELDS, keyed_by=("device",), time_unit_ms=unit_ms,
        format=form, time_field="meta.at", time_path=("meta", "at"),
        type_field="kind", id_field="uid",
    )  # fmt: skip


def schema_of(chance: random.Random) -> dict[str, Any]:
    """Return a schema of events, now and then with other types than the map has."""
    number = iter(range(100))

    def odd(*usual: Any) -> Any:
        found: Any = chance.choice([*usual] * 200 + [*SCALARS])
        if chance.random() < 0.05:
            logical: dict[str, Any] = chance.choice(
                [{}, {"logicalType": "uuid"}, {"logicalType": "decimal", "precision": 30}]
            )
            found = {"type": "fixed", "size": 16, "name": f"f{next(number)}", **logical}
        if chance.random() < 0.05:
            found = {"type": "enum", "symbols": ["flight_a", "d1"], "name": f"e{next(number)}"}
        optional = found == "null" or isinstance(found, list) or chance.random() < 0.7
        return found if optional else ["null", found]

    times = SCALARS[8:12]
    device = {"name": "device", "type": odd("string")}
    payload = {"type": "record", "name": f"P{next(number)}", "fields": [
        {"name": "skipped", "type": chance.choice(SCALARS)}, device,
        {"name": "delay", "type": odd("int", "long")}]}  # fmt: skip
    meta = {"type": "record", "name": "M", "fields": [{"name": "at", "type": odd("long", *times)}]}
    fields = [
        {"name": "meta", "type": chance.choice([meta, meta, meta, ["null", meta]])},
        {"name": "kind", "type": odd("string")},
        {"name": "uid", "type": odd("string", "long")},
        {"name": "payload", "type": chance.choice([payload, ["null", payload], payload])},
        {"name": "vip", "type": odd("boolean")},
        {"name": "sizes", "type": {"type": "array", "items": chance.choice(["double", "float"])}},
        {"name": "price", "type": odd("double", SCALARS[13], "long")},
        {"name": "seen", "type": odd("long", *times)},
        {"name": "labels", "type": {"type": "map", "values": odd("string")}},
        {"name": "more", "type": chance.choice(SCALARS)},
    ]
    if chance.random() < 0.3:
        del fields[chance.choice([4, 5, 6, 7, 8, 9])]
    return {"type": "record", "name": "Event", "namespace": "a.b", "fields": fields}


def value_of(chance: random.Random, schema: Any) -> Any:
    """Return a value of a schema, most often a usual one."""
    if isinstance(schema, list):
        return value_of(chance, chance.choice(schema))
    if isinstance(schema, dict) and isinstance(schema["type"], dict | list):
        return value_of(chance, schema["type"])
    kind = schema if isinstance(schema, str) else schema["type"]
    edges = chance.random() < 0.1
    whole = [1_700_000_000, 5, -1, *([253_402_300_799, -(2**31)] if edges else [])]
    choices: dict[str, Callable[[], list[Any]]] = {
        "null": lambda: [None],
        "boolean": lambda: [True, False],
        "int": lambda: [one for one in whole if abs(one) < 2**31],
        "long": lambda: [*whole, 1_700_000_000_123, *([2**63 - 1, -(2**63)] if edges else [])],
        "float": lambda: [1.5, 0.0, -2.25, *([float("nan")] if edges else [])],
        "double": lambda: [0.1, 1e300, -5.0, *([float("inf")] if edges else [])],
        "bytes": lambda: [b"\x01\x00", b"", b"\xff" * 3, b"\x7f" * 7, b"\x7f" * 200],
        "string": lambda: ["d1", "flight.a", "2024-01-02T03:04:05.6Z", "é"],
        "enum": lambda: schema["symbols"],
        "fixed": lambda: [chance.randbytes(schema["size"])],
        "record": lambda: [{f["name"]: value_of(chance, f["type"]) for f in schema["fields"]}],
        "array": lambda: [
            [value_of(chance, schema["items"]) for _ in range(chance.choice([0, 1, 2, 2, 2, 3]))]
        ],
        "map": lambda: [
            {key: value_of(chance, schema["values"]) for key in keys}
            for keys in (["a.b"], ["a.b", "c"], [], ["c"])
        ],
    }
    return chance.choice(choices[kind]())


def container(chance: random.Random, schema: Any, bodies: list[bytes]) -> bytes:
    """Return an object container of values, in blocks."""
    head = encoded({"type": "map", "values": "bytes"}, {"avro.schema": json.dumps(schema).encode()})
    mark = chance.randbytes(16)
    data = b"Obj\x01" + head + mark
    while bodies:
        some, bodies = bodies[:7], bodies[7:]
        block = b"".join(some)
        data += encoded("long", len(some)) + encoded("long", len(block)) + block + mark
    return data


def broken(chance: random.Random, data: bytes) -> bytes:
    """Return bytes with some of them cut off, changed, or added."""
    at = chance.randrange(len(data) + 1)
    some = (b"", b"\xff", b"\x00", b"\xfe\xff\xff\xff\x7f", b"\xff" * 12, chance.randbytes(2))
    return chance.choice(
        [
            data[:at],
            data + b"\0",
            data[:at] + chance.choice(some) + data[at + chance.choice([0, 1]) :],
        ]
    )


class Texts:
    """A registry in memory."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts = texts

    async def schema(self, number: int) -> str:
        """Return the text of an id."""
        if number not in self.texts:
            raise AvroError(f"no schema {number}")
        return self.texts[number]


@pytest.mark.parametrize("unit_ms", [1, 1_000])
@pytest.mark.parametrize("seed", range(6))
def test_avro_is_read_alike(seed: int, unit_ms: int) -> None:
    """In frames, alone and in containers; of other types, cut off, changed, of unknown ids."""
    chance = random.Random(seed)
    made = {number: schema_of(chance) for number in range(8)}
    texts = {number: json.dumps(schema) for number, schema in made.items()}
    texts |= {100: "{", 101: '{"type": "array", "items": "null"}', 102: '"string"'}
    schemas = Schemas(Texts(texts))
    asyncio.run(schemas.learn({*texts, 77}))
    frames, events = [], 0
    for _ in range(300):
        number = chance.choice([*made])
        body = encoded(made[number], value_of(chance, made[number]))
        body = broken(chance, body) if chance.random() < 0.2 else body
        number = chance.choice([77, 100, 101, 102]) if chance.random() < 0.05 else number
        frame = framed(number, body)
        frames.append(broken(chance, frame) if chance.random() < 0.1 else frame)
    frames = [one for one in frames if one.strip()]
    found, reasons = check_alike(source_of(RecordForm("avro"), unit_ms), frames, schemas, texts.get)
    events += found
    assert "avro" in reasons
    for schema in made.values():
        written = [value_of(chance, schema) for _ in range(40)]
        values = [encoded(schema, one) for one in written]
        values = [one for one in values if one]
        values += [broken(chance, chance.choice(values)) for _ in range(10)]
        form = RecordForm("avro", schema=json.dumps(schema))
        found, more = check_alike(source_of(form, unit_ms), [one for one in values if one])
        events += found
        reasons |= more
        head = container(chance, schema, values[:40])
        containers = [head, *(broken(chance, head) for _ in range(10))]
        found, more = check_alike(source_of(None, unit_ms), containers)
        events += found
        reasons |= more
    assert events
    assert reasons >= {"avro", "wrong_type", "missing"}


HUGE = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"
"""The length 2**63 - 1."""


@pytest.mark.parametrize(
    "kind",
    [
        "string", "bytes", {"type": "array", "items": "long"}, {"type": "map", "values": "null"},
        {"type": "array", "items": {"type": "array", "items": "string"}},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("behind", [b"", b"abc", b"\2" * 3_000])
def test_a_length_that_is_a_lie_allocates_nothing(kind: Any, behind: bytes) -> None:
    """It would be some exabytes; memory that a process has had at most does not grow by one MiB."""
    schema = {"type": "record", "name": "E", "fields": [{"name": "a", "type": kind}]}
    decoder = AvroSchema(json.dumps(schema))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (HUGE, b"\x80\x80\x80\x80\x80\x20", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(AvroError):
            decoder.read(io.BytesIO(length + behind))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 1_024


EMPTY: dict[str, Any] = {"type": "record", "name": "Empty", "fields": []}
NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "items": "null"}, "an array has items without bytes"),
        ({"type": "array", "items": EMPTY}, "an array has items without bytes"),
        ({"type": "array", "items": {"type": "fixed", "size": 0, "name": "F"}}, "without bytes"),
        ({"type": "map", "values": {"type": "array", "items": EMPTY}}, "without bytes"),
        (NODE, "Node holds itself"),
        ({"type": "array", "items": NODE}, "Node holds itself"),
        ({"type": "record", "name": "E", "fields": [
            {"name": "a", "type": EMPTY}, {"name": "b", "type": {"type": "array", "items": "Empty"}}
        ]}, "without bytes"),
        ("unheard", "UnknownType"),
        ({"type": "record"}, "cannot use schema"),
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_without_bounds_is_refused(schema: Any, said: str) -> None:
    """Three bytes of it would be a list of any length, or a depth that ends the process."""
    with pytest.raises(AvroError, match=said):
        AvroSchema(json.dumps(schema))
    form = RecordForm("avro", schema=json.dumps(schema))
    assert AvroRows(source_of(form))(b"\2\2\0") is None


def test_types_that_are_used_twice_are_not_types_that_hold_themselves() -> None:
    """Maps of nulls have the bytes of their keys."""
    leaf = {"type": "record", "name": "L", "fields": [{"name": "n", "type": "int"}]}
    schema = {"type": "record", "name": "E", "fields": [
        {"name": "a", "type": leaf}, {"name": "b", "type": {"type": "array", "items": "L"}},
        {"name": "c", "type": ["null", "L"]},
        {"name": "d", "type": {"type": "map", "values": "null"}},
    ]}  # fmt: skip
    value = {"a": {"n": 1}, "b": [{"n": 2}], "c": {"n": 3}, "d": {"k": None}}
    assert AvroSchema(json.dumps(schema)).read(io.BytesIO(encoded(schema, value))) == value
