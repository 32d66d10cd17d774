"""Verify and a worker take the same values for events, for any content of records."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import polars as pl
import pytest

from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from agents.partition.letters import letters_of
from app.verify.arrow import ArrowRows
from app.verify.batches import Decoder as BatchDecoder
from app.verify.checks import Faults
from app.verify.database import Database
from app.verify.events import Events
from app.verify.letters import Letters
from app.verify.records import Record, RecordReader, form_of
from app.verify.trial import readable
from tables.model.layer import Field
from tables.model.window import NEVER_MS
from tables.state.input_plan import plans_of
from tests.support.common import dataclasses_replace, run_of, small_map
from tests.support.plain.letters import Letters as PlainLetters
from tests.support.plain.partition import Partition

FIELDS = {
    "origin": "string", "carrier": "string", "delay": "int", "vip": "bool", "weight": "float",
}  # fmt: skip
SOURCE = dataclasses_replace(
    small_map().sources[0],
    fields=tuple(Field(name, kind) for name, kind in FIELDS.items()),  # type: ignore[arg-type]
)
MAP = small_map(sources=(SOURCE,))
RAW = SOURCE.topic
# Put in anywhere, these break an event, or change its kind, in every way that was thought of.
PIECES = [piece.encode("latin-1") for piece in (
    '"', "{", "}", "[", "]", ",", ":", "\\", "\\u00e9", "\\ud800", "\\ud83d\\ude00", "NaN", "-",
    "1e999", "0", ".", "e5", "null", "true", "\xff", "\xc3", "\xc3\xa9", "\n", "\r\n", " ", "\t",
    "\x0b", "\x00", "99999999999999999999", "9223372036854775808", "}\n{", "\\x", "/*c*/", "\n\n",
    '"at":null,', '"at":5.0,', '"at":true,', '"at":"2013-01-01T00:00:00Z",', '"type":5,',
    '"at":"1970-01-01T00:00:60Z",', '"at":"0001-01-01T00:00:00+00:01",', '"at":"1970-02-30",',
    '"at":"1970-01-01 00:00:01.1239-23:59",', '"at":"1970-01-01t00:00:00+24:00",',
    '"delay":1.0,', '"delay":"x",', '"delay":1e999,', '"origin":null,', '"vip":1,', '"weight":3,',
    '"weight":1e309,', '"x":{"a":[1,2]},', '"x":01,', '"x":1e309,', '"x":"\\ude00",',
)]  # fmt: skip
TYPES = (b"application/json", b"application/x-ndjson; a=b", b"text/plain", b"APPLICATION/JSON")
ARROW = (("content-type", b"application/vnd.apache.arrow.stream"),)


def recomputed(database: Database, letters: list[Record], taken: list[Record]) -> Events:
    """Return the events of records of the first partition, in tables."""
    told = Letters(database)
    told.take(letters)
    told.load()
    events = Events(database, SOURCE, MAP.base_layers("flights"), told)
    events.take(0, taken)
    events.load()
    events.settle()
    return events


def by_plain_rules(letters: list[Record], taken: list[Record]) -> Partition:
    """Return the same by plain rules."""
    told = PlainLetters()
    for letter in letters:
        told.take(letter)
    reader = RecordReader(SOURCE, ArrowRows(SOURCE))
    one = Partition(SOURCE, MAP.base_layers("flights"), 0, told.of(RAW, 0), reader)
    for record in taken:
        one.take(record)
    return one


def event(chance: random.Random) -> dict[str, Any]:
    """Return an event, most often a sound one."""
    return {
        "at": chance.choice([5, 10**6, 10**7, 4 * 10**7] * 3 + [10**15]) + chance.randrange(1_000),
        "type": chance.choice(["flight.departed"] * 9 + ["flight.x.y", "bus.left", "flight."]),
        "origin": chance.choice(["JFK"] * 5 + ["é" * 520, "LGA"]),
        "carrier": chance.choice(["UA"] * 4 + ["AA", None]),
        "delay": chance.choice([None, 1, -5, 2**63 - 1]),
        "vip": chance.choice([None, True]),
        "weight": chance.choice([None, 1.5, 3.0]),
        "more": chance.choice(["", "}\n{"]),
    }


def arrow(chance: random.Random, events: list[dict[str, Any]]) -> bytes:
    """Return events as an Arrow stream, now and then with a byte changed."""
    file = io.BytesIO()
    frame = pl.DataFrame(events, schema_overrides={"delay": pl.Int64, "weight": pl.Float64})
    frame.write_ipc_stream(file, compression=chance.choice(["uncompressed", "lz4", "zstd"]))
    value = bytearray(file.getvalue())
    if chance.random() < 0.4:
        value[chance.randrange(len(value))] = chance.randrange(256)
    return bytes(value)


def lines(chance: random.Random, events: list[dict[str, Any]]) -> bytes:
    """Return events as JSON lines, with pieces put in."""
    indent = chance.choice([None, None, 4])
    texts = [json.dumps(one, ensure_ascii=False, indent=indent).encode() for one in events]
    value = chance.choice([b"\n", b"\r\n", b"\n \n"]).join(texts)
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        at = chance.randrange(len(value) + 1)
        if chance.random() < 0.6:
            at = max(1, value.find(chance.choice([b'"at"', b'"type"', b'"delay"', b'"vip"'])))
        after = at if chance.random() < 0.7 else at + chance.randrange(4)
        value = value[:at] + chance.choice(PIECES) + value[after:]
    return value


def records(chance: random.Random) -> tuple[list[bytes | None], dict[int, Any]]:
    """Return the values of some records, and the headers of those that have some."""
    values: list[bytes | None] = []
    headers: dict[int, Any] = {}
    for _ in range(60):
        events = [event(chance) for _ in range(chance.choice([1, 1, 2, 3]))]
        if chance.random() < 0.2:
            values.append(arrow(chance, events))
            if chance.random() < 0.5:
                headers[len(values) - 1] = ARROW
            continue
        values.append(chance.choice([lines(chance, events)] * 20 + [b"", None, b" \n"]))
        if chance.random() < 0.3:
            headers[len(values) - 1] = (("content-type", chance.choice(TYPES)),)
    return values, headers


@pytest.mark.parametrize("seed", range(15))
def test_what_is_no_event_is_what_a_worker_takes_for_none(seed: int) -> None:
    """Events of all forms with pieces put in: the same ledger, and a letter for each bad one."""
    values, headers = records(random.Random(seed))
    run = run_of(values)
    run.headers = headers
    decoder = Decoder(SOURCE)
    batch = decoder.decode([run])
    (content,) = Folder(plans_of(MAP)[RAW]).fold(batch, {0: Before(NEVER_MS, {})})
    letters = [
        Record(0, 0, b"", told)
        for item in batch.aside
        for _, told in letters_of(run, item, decoder.part_of)
    ]
    taken = [
        Record(offset, run.append_times_ms[offset], value, headers.get(offset, ()))
        for offset, value in enumerate(values)
    ]
    with Database() as database:
        events = recomputed(database, letters, taken)
        plain = by_plain_rules(letters, taken)
        (one, _) = events.partitions
        ledger = {name: count for name, count in content.ledger.items() if count}
        decoded = {
            name: count
            for name, count in ledger.items()
            if name.startswith(("records", "unreadable", "events", "malformed"))
        }
        assert {name: count for name, count in one.ledger.items() if count} == decoded
        assert {name: count for name, count in plain.ledger.items() if count} == ledger
        assert list(events.letters_differing()) == plain.differences == []
    assert one.ledger["events.malformed"] > 10
    assert one.ledger["events.classified"] > 0


TIMES = (
    "1970-01-01T00:00:05Z", "1970-01-01T00:16:40.123Z", "1970-01-01T00:00:05.1Z", "1970-01-01",
    "1970-02-30T00:00:05Z", "1970-01-01T24:00:05Z", "1970-01-01T00:00:60Z", "1970-01-01T00:00:61Z",
    "1970-01-01T00:00:05+01:00", "1970-01-01t00:00:05z", "1970-01-01 00:00:05Z", "x", "",
    "1970-01-01T00:00:\u0665\u0665Z", "1970-01-01T00:00:05.12xZ", "1970-01-01T00:00:05,123Z",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "1970-01-01T00:00: 5Z", "1970-01-01T00:00:-5Z",
)  # fmt: skip
IDS = (None, "", "a", "7", 7, -0, 2**63, -(2**63) - 1, 10**30, 1.0, True, "\u00e9", "\x00")


def doubled(chance: random.Random, one: dict[str, Any]) -> bytes:
    """Return an event as JSON, with one of its names there twice, or escaped, now and then."""
    text = json.dumps(one)
    name = chance.choice(["at", "type", "delay", "id", "more"])
    more = chance.choice([f'"{name}": {chance.choice(["5", chr(34) * 2, "null"])}', ""] + [""] * 8)
    if chance.random() < 0.1:
        more = more.replace(name, f"\\u00{ord(name[0]):02x}{name[1:]}")
    return (text[:-1] + (", " + more if more else "") + "}").encode()


@pytest.mark.parametrize("id_type", [None, "string", "int", "float", "bool"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_decoded_by_the_column_is_what_plain_rules_read(
    seed: int, id_type: str | None
) -> None:
    """Events, one by one: time, type, id and fields; texts of times, names that are there twice."""
    chance = random.Random(seed)
    fields = (Field("at", "int"), Field("type", "string"), *SOURCE.fields)
    if id_type is not None:
        fields += (Field("id", id_type),)  # type: ignore[arg-type]
    source = dataclasses_replace(
        SOURCE, fields=fields, id_field="id", time_unit_ms=chance.choice([1, 1_000])
    )
    taken = []
    values, headers = records(chance)
    for _ in range(40):
        several = []
        for _ in range(chance.choice([1, 1, 1, 5])):
            one = event(chance) | {"id": chance.choice(IDS)}
            if chance.random() < 0.5:
                one["at"] = chance.choice(TIMES)
            one["deep"] = json.loads("[" * 60 + "]" * 60) if chance.random() < 0.02 else {"at": 3}
            several.append(doubled(chance, one))
        values.append(b"\n".join(several))
    for offset, value in enumerate(values):
        kind = chance.choice([(), (), (("x", b"y"),), (("content-type", b"application/x-ndjson"),)])
        taken.append(Record(offset, 2 * 10**12, value, headers.get(offset, kind)))
    names = [field.name for field in fields]
    arrow = ArrowRows(source)
    reader = RecordReader(source, arrow)
    faulty: dict[tuple[int, int], Faults] = {}
    with Database() as database:
        decoder = BatchDecoder(
            database, source, MAP.base_layers("flights"), {f.name: f.type for f in fields}, reader,
            arrow=arrow,
            faulty=lambda _part, offset, index, faults: faulty.update({(offset, index): faults}),
        )  # fmt: skip
        rest = decoder.values(0, taken)
        left = [one for one in rest if form_of(one, source) != "arrow" or not decoder.arrow(0, one)]
        assert decoder.load()
        columns = ", ".join(decoder.columns.values())
        rows = database.all(
            f'SELECT "offset", index, time, kind, id, {columns} FROM {decoder.table}'  # noqa: S608
        )
    assert len({row[:2] for row in rows}) == len(rows)
    got = {row[:2]: (*row[2:4], row[4] or "", *row[5:]) for row in rows}
    want: dict[tuple[int, int], Any] = {}
    wrong: dict[tuple[int, int], Faults] = {}
    for record in taken:
        content = reader.read(record, many=lambda: False)
        for index, read in enumerate(content.events):
            if isinstance(read, frozenset):
                wrong[record.offset, index] = read
            else:
                found = tuple(read.fields.get(name) for name in names)
                want[record.offset, index] = (
                    read.time_ms, decoder.kinds[read.type], read.id, *found,
                )  # fmt: skip
    alone = {one.offset for one in left}
    assert got == {where: one for where, one in want.items() if where[0] not in alone}
    assert faulty == {where: one for where, one in wrong.items() if where[0] not in alone}
    assert len(left) < len(taken) / 2
    assert len(got) > 10


LENIENT = (
    '"x":[1,2,],', '"x":{"y":1,},', '"x":{"y":1, \t},', '"x":NaN,', '"x":nan,', '"x":-Infinity,',
    '"x":[ -inf ],', '"x":[1,NaN],', '"x":1e400,', '"x":-1E+400,', '"x":1e-400,', '"x":0.1e0309,',
    f'"x":{"9" * 299},', f'"x":{"9" * 399},', f'"x":{"9" * 500},', f'"x":{"9" * 500}.5,',
    f'"x":{"[" * 99}{"]" * 99},', f'"x":{"[" * 200}{"]" * 200},', f'"x":{"[" * 5000}{"]" * 5000},',
    '"x":"\\ud800",', '"x":"\\u0000",', '"x":"\\u0061",', '"x":"a\tb",', '"x":"info, nan}, ]",',
    '"\\u0064elay":"x",', '"delay":1,', '"delay":"x",', '"d\\u0065lay":null,', '"x":{"delay":"x"},',
    '"x":"\\"delay\\":",', '"delay":1.0,', '"delay":-0,', '"weight":-0.0,', '"weight":1e308,',
    '"weight":123456789012345678901234567890,', '"weight":1e-999,', '"weight":1E5,',
    '"delay":9223372036854775807,', '"delay":9223372036854775808,', '"delay":18446744073709551616,',
    '"vip":TRUE,', '"vip":"true",', '"origin":"\\ud83d\\ude00\\/\\n\\"",', '"x":0x1F,', '"x":01,',
    '"x":.5,', '"x":5.,', '"x":+1,', "'x':1,", "x:1,", "/*c*/", "//c\n", ",", "\ufeff", "\x00", "",
)  # fmt: skip


@pytest.mark.parametrize("more", LENIENT)
def test_what_other_readers_of_json_take_too_is_read_as_plain_rules_do(more: str) -> None:
    """Any place of an event counts: the engine's reader takes more than JSON, and names twice."""
    text = '{"at": 5, "type": "flight.left", "origin": "A", "carrier": "B"}'
    values = [
        text,
        text.replace('"origin"', f'{more}"origin"'),
        "{" + more + text[1:],
        text[:-1] + ", " + more.rstrip(",") + "}",
        text + more,
        text,
    ]
    taken = [Record(at, 2 * 10**12, one.encode()) for at, one in enumerate(values)]
    reader = RecordReader(SOURCE, ArrowRows(SOURCE))
    names = list(FIELDS)
    faulty: dict[int, Faults] = {}
    with Database() as database:
        decoder = BatchDecoder(
            database, SOURCE, MAP.base_layers("flights"), FIELDS, reader, arrow=ArrowRows(SOURCE),
            faulty=lambda _part, offset, _index, faults: faulty.update({offset: faults}),
        )  # fmt: skip
        left = {one.offset for one in decoder.values(0, taken)}
        assert decoder.load()
        columns = ", ".join(decoder.columns.values())
        rows = database.all(f'SELECT "offset", time, {columns} FROM {decoder.table}')  # noqa: S608
    for record in taken:
        if record.offset in left:
            continue
        (event,) = reader.read(record, many=lambda: False).events
        found = [row[1:] for row in rows if row[0] == record.offset]
        if isinstance(event, frozenset):
            assert (found, faulty[record.offset]) == ([], event)
        else:
            want = [event.fields.get(name) for name in names]
            weight = want[names.index("weight")]
            want[names.index("weight")] = None if weight is None else float(weight)
            assert found == [(event.time_ms, *want)], (record.value, found)
    assert {0, 5}.isdisjoint(left)


def test_a_stream_that_a_letter_wrongly_calls_broken_is_found() -> None:
    """The second declares more rows than there is memory for, and the third is cut."""
    file = io.BytesIO()
    pl.DataFrame({"at": [1] * 7}).write_ipc_stream(file)
    whole = file.getvalue()
    lie = whole.replace((7).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little"))
    assert list(readable([whole, lie, whole[:-24], whole], 1_000)) == [True, False, False, True]

    headers = {"topic": RAW, "partition": "0", "offset": "0", "index": "", "reason": "arrow"}
    letter = Record(0, 0, b"", tuple((n, text.encode()) for n, text in headers.items()))
    with Database() as database:
        events = recomputed(database, [letter], [Record(0, 0, whole, ARROW)])
        events.try_suspects()
    assert [(found.what, found.got) for found in events.differences] == [("letters", "arrow")]
