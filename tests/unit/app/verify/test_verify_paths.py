"""Events whose values lie deep: the worker's decoder and both of verify's take the same ones."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import polars as pl
import pytest

from agents.decode.event_batch import ID_COLUMN, INDEX_COLUMN, RECORD_SPAN
from agents.decode.records import Decoder
from app.verify.arrow import ArrowRows
from app.verify.batches import Decoder as BatchDecoder
from app.verify.checks import Faults
from app.verify.database import Database
from app.verify.records import Event, Record, RecordReader
from tables.model.layer import Field, Source
from tests.support.common import dataclasses_replace, run_of, small_map

NESTED = (
    Field("device", "string", ("payload", "device.id"), required=True),
    Field("delay", "int", ("payload", "delay")),
    Field("vip", "bool", ("payload", "who", "vip")),
    Field("size", "float", ("größe",)),
    Field("stamp", "int", ("meta", "ts")),
)
INDEXED = (
    *NESTED[:4],
    Field("weight", "float", ("readings", 1, "w")),
    Field("first", "int", ("list", 0)),
)
ODD = (
    *NESTED[:3],
    Field("odd", "int", ('we"ird\\', "a\tb")),
    Field("dotted", "int", ("[0]", ".x")),
)
OTHER: tuple[Any, ...] = (None, 5, 1.5, "x", True, [], {}, [{"w": 2}], {"delay": 3}, 2**70, "7")
NOW_MS = 2 * 10**12


def source_of(fields: tuple[Field, ...]) -> Source:
    """Return a source whose time, type and id lie deep too."""
    return dataclasses_replace(
        small_map().sources[0],
        fields=fields,
        time_field="meta.ts", time_path=("meta", "ts"),
        type_field="meta.kind", type_path=("meta", "kind"),
        id_field="ids.event", id_path=("ids", "event"),
    )  # fmt: skip


def event(chance: random.Random) -> dict[str, Any]:
    """Return an event that is sound, or has values of other types and shapes at any depth."""
    one: dict[str, Any] = {
        "meta": {"ts": 5 + chance.randrange(1_000), "kind": "flight.departed", "more": 1},
        "payload": {"device.id": "d1", "delay": chance.choice([None, 4]), "who": {"vip": True}},
        "größe": 1.5,
        "readings": [{"w": 1.0}, {"w": chance.choice([2, 3.5])}],
        "list": [chance.randrange(9)],
        "ids": {"event": chance.choice(["a", 7])},
        'we"ird\\': {"a\tb": chance.randrange(9), "other": 1},
        "[0]": {".x": 7},
        "skipped": {"ts": [1], "größe": None},
    }
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        inner: Any = one
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(inner[key], dict | list) and chance.random() < 0.6:
                inner = inner[key]
                continue
            if chance.random() < 0.3:
                del inner[key]
            else:
                inner[key] = chance.choice(OTHER)
            break
    return one


def text_of(chance: random.Random, one: dict[str, Any]) -> bytes:
    """Return an event as JSON, now and then with a name twice, an escape or a broken end."""
    text = json.dumps(one, ensure_ascii=chance.random() < 0.5)
    change = chance.random()
    if change < 0.05:
        return text.replace('"delay": ', '"delay": "x", "delay": ').encode()
    if change < 0.1:
        return text.replace('"payload": ', '"payload": {"delay": 1}, "payload": ').encode()
    if change < 0.15:
        large = chance.choice(["1e999", "7" * 5_000, f'"\\\\{"7" * 5_000}"'])
        return text.replace('"skipped": ', f'"skipped": {large}, "s": ').encode()
    if change < 0.2:
        return text.replace('"delay": 4', '"delay": "x"')[:-1].encode()
    return text.encode()


def worker_reads(source: Source, values: list[bytes]) -> tuple[dict[int, Any], dict[int, str]]:
    """Return what the worker takes: rows by record, and reasons by record."""
    decoder = Decoder(source)
    batch = decoder.decode([run_of(values, topic=source.topic, append_time_ms=NOW_MS)])
    names = [field.name for field in source.fields]
    frame = batch.frame.with_columns(
        pl.col(ID_COLUMN).fill_null(""), pl.col(INDEX_COLUMN) // RECORD_SPAN
    )
    rows = {
        row[0]: row[1:]
        for row in frame[INDEX_COLUMN, "time", "type", ID_COLUMN, *names].iter_rows()
    }
    return rows, {item.record: item.reason for item in batch.aside}


@pytest.mark.parametrize("fields", [NESTED, INDEXED, ODD], ids=["objects", "arrays", "odd"])
@pytest.mark.parametrize("seed", range(6))
def test_json_is_read_alike(fields: tuple[Field, ...], seed: int) -> None:
    """By the worker, by plain rules, and by the columns of the engine."""
    chance = random.Random(seed)
    source = source_of(fields)
    values = [text_of(chance, event(chance)) for _ in range(300)]
    rows, reasons = worker_reads(source, values)
    reader = RecordReader(source, ArrowRows(source))
    taken = [Record(offset, NOW_MS, value) for offset, value in enumerate(values)]
    names = [field.name for field in fields]
    plain: dict[int, Any] = {}
    refused: dict[int, Faults] = {}
    for record in taken:
        (found,) = reader.read(record, many=lambda: False).events
        if isinstance(found, Event):
            own = (found.fields.get(name) for name in names)
            plain[record.offset] = (found.time_ms, found.type, found.id, *own)
        else:
            refused[record.offset] = found
    assert rows == plain
    assert reasons.keys() == refused.keys()
    assert [offset for offset, reason in reasons.items() if reason not in refused[offset]] == []
    assert 20 < len(refused) < 200
    faulty: dict[int, Faults] = {}
    with Database() as database:
        decoder = BatchDecoder(
            database, source, small_map().base_layers("flights"), {f.name: f.type for f in fields},
            reader, arrow=ArrowRows(source),
            faulty=lambda _part, offset, _index, faults: faulty.update({offset: faults}),
        )  # fmt: skip
        assert decoder.values(0, taken) == []
        assert decoder.load()
        columns = ", ".join(decoder.columns.values())
        got = database.all(f'SELECT "offset", time, id, {columns} FROM {decoder.table}')  # noqa: S608
    assert {row[0]: (row[1], row[2] or "", *row[3:]) for row in got} == {
        offset: (row[0], *row[2:]) for offset, row in plain.items()
    }
    assert faulty == refused


def arrow_of(chance: random.Random, events: list[dict[str, Any]]) -> bytes:
    """Return events as an Arrow stream with structs and lists, some of other types or absent."""
    one = {
        "meta": [{"ts": e["meta"]["ts"], "kind": e["meta"]["kind"]} for e in events],
        "payload": [
            chance.choice([None, {"device.id": None}, *[e["payload"]] * 6]) for e in events
        ],
        "größe": [e["größe"] for e in events],
        "readings": [e["readings"][: chance.choice([0, 1, 2, 2])] for e in events],
        "list": [chance.choice([None, [], [3], [4, 5]]) for e in events],
        "ids": [{"event": chance.choice([None, "a", "b"])} for _ in events],
    }
    columns = [pl.Series(name, values, strict=False) for name, values in one.items()]
    frame = pl.DataFrame(columns)
    change = chance.random()
    if change < 0.2:
        frame = frame.with_columns(pl.lit("x").alias(chance.choice(["payload", "list", "größe"])))
    elif change < 0.4:
        frame = frame.drop(chance.choice(["payload", "ids", "readings", "meta"]))
    elif change < 0.5:
        frame = frame.with_columns(pl.col("list").list.concat([0, 1]).list.head(2).list.to_array(2))
    file = io.BytesIO()
    frame.write_ipc_stream(file)
    return file.getvalue()


@pytest.mark.parametrize("seed", range(10))
def test_arrow_is_read_alike(seed: int) -> None:
    """Structs are objects, lists are arrays."""
    chance = random.Random(seed)
    source = source_of(INDEXED)
    sound = {"meta": {"ts": 9, "kind": "flight.departed"}, "größe": 1.5}
    values = []
    for _ in range(20):
        events = [
            sound | {"readings": [{"w": 1.0}, {"w": 2.5}],
                     "payload": {"device.id": "d", "delay": 4, "who": {"vip": True}}}
            for _ in range(5)
        ]  # fmt: skip
        values.append(arrow_of(chance, events))
    decoder = Decoder(source)
    batch = decoder.decode([run_of(values, topic=source.topic, append_time_ms=NOW_MS)])
    names = [field.name for field in source.fields]
    frame = batch.frame.with_columns(pl.col(ID_COLUMN).fill_null(""))
    got = {
        row[0]: row[1:]
        for row in frame[INDEX_COLUMN, "time", "type", ID_COLUMN, *names].iter_rows()
    }
    reasons = {
        item.record * RECORD_SPAN + index: item.reason
        for item in batch.aside
        for index in item.events or ()
    }
    reader = RecordReader(source, ArrowRows(source))
    want: dict[int, Any] = {}
    refused: dict[int, Faults] = {}
    for offset, value in enumerate(values):
        content = reader.read(Record(offset, NOW_MS, value), many=lambda: False)
        for index, found in enumerate(content.events):
            if isinstance(found, Event):
                own = (found.fields.get(name) for name in names)
                want[offset * RECORD_SPAN + index] = (found.time_ms, found.type, found.id, *own)
            else:
                refused[offset * RECORD_SPAN + index] = found
    assert got == want
    assert reasons.keys() == refused.keys()
    assert [at for at, reason in reasons.items() if reason not in refused[at]] == []
    assert len(want) > 20
    assert len(refused) > 5
