"""Values as they come: the worker's decoders and both of verify's take the same ones, or none."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections import Counter
from typing import Any

import polars as pl
import pytest

from agents.decode.event_batch import ID_COLUMN, INDEX_COLUMN, RECORD_SPAN, EventBatch
from agents.decode.records import Decoder
from app.verify.arrow import ArrowRows
from app.verify.batches import Decoder as BatchDecoder
from app.verify.checks import Faults
from app.verify.database import Database
from app.verify.records import Event, Record, RecordReader, form_of
from tables.model.layer import Field, Source
from tables.record.chunk import Run
from tests.support.common import dataclasses_replace, run_of, small_map

APPEND_MS = -1
"""No append time: no event is of the future."""

BYTES_MAX = 1 << 14
HEADERS: tuple[tuple[tuple[str, bytes], ...], ...] = (
    (), (), (("content-type", b"application/json"),), (("content-type", b"application/x-ndjson"),),
    (("content-type", b"image/png"),),
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    None, 0, 7, -7, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30,
    7.0, -0.0, 7.5, 1e18, 2e19,
    "7", "-7", "+7", "007", "7.0", "7.", ".5", "7.5", "1e3", "1e999", " 7", "7 ", "", "x", "1_0",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808.0", "1" * 30, "0" * 30,
    "0" * 5_000 + "7",
    True, False, "true", "False", "TRUE", "tRUE", "\u0667", [], {}, [7], {"x": 7},
)  # fmt: skip
TIMES: tuple[Any, ...] = (
    5, 1_000, 5.5, 0.29, -0.0001, 1e10, 1e15, 1e300, "5", "5.5", "1e3", "-7", "99999999999999999",
    "1970-01-01T00:00:05.0019Z", "1970-01-01T00:00:05.0019", "1970-01-01 00:00:05",
    "1970-01-01T00:00:05+01:00", "1970-02-30T00:00:05", "1970-01-01", "0001-01-01T00:00:00",
    "9999-12-31T23:59:59", "", "x", None, True, [], 253402300799.9999, -62135596800.0,
)  # fmt: skip


def source_of(chance: random.Random) -> Source:
    """Return a source with random options, at the top level or deeper."""
    deep = chance.choice([(), ("payload",), ("list", 1)])

    def flag() -> bool:
        return chance.random() < 0.6

    def seldom() -> bool:
        return chance.random() < 0.35

    fields = (
        Field("a", "int", (*deep, "a"), text=flag(), whole=flag(), null_on_error=seldom()),
        Field("b", "float", (*deep, "b"), text=flag(), null_on_error=seldom()),
        Field("c", "bool", (*deep, "c"), text=flag(), null_on_error=seldom()),
        Field("d", "string", (*deep, "d"), digits=flag(), null_on_error=seldom()),
        Field("e", "int", (*deep, "e"), required=flag(), text=flag()),
    )
    return dataclasses_replace(
        small_map().sources[0],
        fields=fields,
        id_field="id",
        time_unit_ms=chance.choice([1, 1_000]),
        time_text=flag(),
        time_fraction=flag(),
        time_offset=chance.choice(["", "Z", "-03:30"]),
        arrays=flag(),
        compression=chance.choice(["", "gzip"]),
        record_bytes_max=BYTES_MAX,
    )


def event(chance: random.Random, source: Source) -> Any:
    """Return an event; most of its values are of their types, or of such as options take."""
    own: dict[str, tuple[Any, ...]] = {
        "a": (4, "4", 4.0), "b": (1.5, 2, "2.5"), "c": (True, "true"), "d": ("x", 42),
        "e": (1, "1"),
    }  # fmt: skip
    values: dict[str, Any] = {}
    for name, good in own.items():
        values[name] = chance.choice(good if chance.random() < 0.8 else NUMBERS)
        if chance.random() < 0.05:
            del values[name]
    some = chance.randrange(-(10**9), 2 * 10**9) + chance.choice([0.0, 0.0005, chance.random()])
    good = (5, some, str(abs(int(some))), "1970-01-01T00:00:05.001", "1970-01-01T00:00:05")
    time: Any = chance.choice(good if chance.random() < 0.6 else TIMES)
    one = {"at": time, "type": "flight.departed", "id": chance.choice(["x", 7, None])}
    path = source.fields[0].path[:-1]
    if path == ("payload",):
        return one | {"payload": values if chance.random() < 0.95 else chance.choice(NUMBERS)}
    if path:
        return one | {"list": [0, values] if chance.random() < 0.95 else [values]}
    return one | values


def text_of(chance: random.Random, one: Any) -> bytes:
    """Return an event as JSON, now and then broken, with a name twice, or with large numbers."""
    text = json.dumps(one, ensure_ascii=chance.random() < 0.5)
    change = chance.random()
    if change < 0.03:
        text = text.replace(
            '"a": ', f'"a": {chance.choice(["[]", "1e999", "7" * 5_000, "7"])}, "a": '
        )
    elif change < 0.05:
        text = text.replace('"at": ', f'"at": {chance.choice(["7", "true"])}, "at": ')
    elif change < 0.07:
        large = chance.choice(["1e999", "-" + "7" * 5_000])
        text = text.replace('"d": ', f'"d": {large}, "z": ')
    elif change < 0.09:
        text = chance.choice([text[:-1], "[" + text, "7", "null", "[]", '"x"', "\ud800"])
    elif change < 0.11:
        return text.replace('"x"', '"\\ud800"').encode()
    elif change < 0.13:
        return text.encode("utf-8", "replace").replace(b'"x"', b'"\xff\n"')
    return text.encode("utf-8", "replace")


def value_of(chance: random.Random, source: Source) -> bytes:
    """Return a value: a document, lines, or an array; perhaps packed, twice or not wholly."""
    texts = [text_of(chance, event(chance, source)) for _ in range(chance.choice([1, 1, 3, 6]))]
    blank = chance.choice([b"", b" ", b"\n", b"\r\n\t"])
    form = chance.random()
    if form < 0.5:
        value = blank + b"[" + blank + (blank + b"," + blank).join(texts) + blank + b"]" + blank
        if chance.random() < 0.1:
            value = chance.choice(
                [value[:-3], value + b"]", b"[]", b"[ ]\n", value.replace(b",", b"")]
            )
    else:
        value = chance.choice([b"\n", b"\n\n", b" \n"]).join(texts)
    if chance.random() < 0.03:
        value += b" " * BYTES_MAX
    packs = [0, 1, 1, 1, 2] if source.compression == "gzip" else [0] * 9 + [1]
    for _ in range(chance.choice(packs)):
        value = gzip.compress(value)
        change = chance.random()
        if change < 0.05:
            value = value[: chance.randrange(2, len(value))]
        elif change < 0.1:
            at = chance.randrange(2, len(value))
            value = value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :]
        elif change < 0.15:
            value += chance.choice([b"\0\0", gzip.compress(b"\n"), gzip.compress(b" ") + b"x"])
    return value


Place = tuple[int, int]
"""A record, and an event in it; -1 for a whole record."""


def taken_by(batch: EventBatch, source: Source) -> tuple[dict[Place, Any], dict[Place, str]]:
    """Return rows and reasons of a batch by place."""
    names = [field.name for field in source.fields]
    frame = batch.frame.with_columns(pl.col(ID_COLUMN).fill_null(""))
    rows = {
        divmod(row[0], RECORD_SPAN): row[1:]
        for row in frame[INDEX_COLUMN, "time", "type", ID_COLUMN, *names].iter_rows()
    }
    reasons = {
        (item.record, index): item.reason
        for item in batch.aside
        for index in ((-1,) if item.events is None else item.events)
    }
    return rows, reasons


def plain_rules(
    source: Source, reader: RecordReader, taken: list[Record], reasons: dict[Place, str]
) -> tuple[dict[Place, Any], dict[Place, Faults], Counter[str]]:
    """Return rows, faults, and nulled values by the plain rules."""
    rows: dict[Place, Any] = {}
    refused: dict[Place, Faults] = {}
    nulled: Counter[str] = Counter()
    for record in taken:
        several = any(at[0] == record.offset and at[1] > 0 for at in reasons)
        content = reader.read(record, many=lambda several=several: several)  # type: ignore[misc]
        if content.reason:
            refused[record.offset, -1] = frozenset({content.reason})
        for index, found in enumerate(content.events):
            if isinstance(found, Event):
                own = (found.fields.get(field.name) for field in source.fields)
                rows[record.offset, index] = (found.time_ms, found.type, found.id, *own)
                nulled.update(found.nulled)
            else:
                refused[record.offset, index] = found
    return rows, refused, nulled


def assert_letters_are_parts(
    decoder: Decoder, run: Run, batch: EventBatch, reasons: dict[Place, str]
) -> None:
    """Assert that each letter, sent again, is refused for the same reason, and has no more."""
    for item in batch.aside:
        value, content_type = decoder.part_of(run, item)
        again = run_of([value], append_time_ms=APPEND_MS, topic=run.topic)
        if content_type:
            again.headers = {0: (("content-type", content_type.encode()),)}
        batch = decoder.decode([again])
        found = [one.reason for one in batch.aside for _ in one.events or (0,)]
        wanted = [reasons[item.record, index] for index in item.events or (-1,)]
        assert Counter(found) == Counter(wanted), (value, content_type)
        if item.events is not None:
            assert batch.frame.height == 0
            assert batch.ledgers[0].counts["events.decoded"] == len(item.events)


@pytest.mark.parametrize("seed", range(8))
def test_json_is_read_alike(seed: int) -> None:
    """By the worker, by plain rules, and by the columns of the engine; letters are parts."""
    chance = random.Random(seed)
    source = source_of(chance)
    values = [value_of(chance, source) for _ in range(150)]
    headers = {index: chance.choice(HEADERS) for index in range(len(values))}
    run = run_of(list(values), topic=source.topic, append_time_ms=APPEND_MS)
    run.headers = {index: found for index, found in headers.items() if found}
    if chance.random() < 0.3:
        run.headers = headers = {}
    worker = Decoder(source)
    batch = worker.decode([run])
    rows, reasons = taken_by(batch, source)
    assert_letters_are_parts(worker, run, batch, reasons)
    reader = RecordReader(source, ArrowRows(source))
    taken = [
        Record(offset, APPEND_MS, value, headers.get(offset, ()))
        for offset, value in enumerate(values)
    ]
    want, refused, nulled = plain_rules(source, reader, taken, reasons)
    assert reasons.keys() == refused.keys()
    assert {at: reason for at, reason in reasons.items() if reason not in refused[at]} == {}
    assert rows == want
    assert want
    assert len(refused) > 20
    ledger = batch.ledgers[0].counts
    prefix = f"nulled.{source.name}."
    found = {name.removeprefix(prefix): n for name, n in ledger.items() if name.startswith(prefix)}
    assert found == nulled
    faulty: dict[Place, Faults] = {}
    with Database() as database:
        decoder = BatchDecoder(
            database, source, small_map().base_layers("flights"),
            {f.name: f.type for f in source.fields}, reader, arrow=ArrowRows(source),
            faulty=lambda _part, offset, index, faults: faulty.update({(offset, index): faults}),
        )  # fmt: skip
        rest = decoder.values(0, list(map(reader.unpacked, taken)))
        for record in rest:
            assert form_of(record, source) != "arrow"
            several = any(at[0] == record.offset and at[1] > 0 for at in reasons)
            content = reader.read(record, many=lambda several=several: several)  # type: ignore[misc]
            if content.reason:
                faulty[record.offset, -1] = frozenset({content.reason})
            decoder.content(0, record, content)
        assert decoder.load()
        columns = ", ".join(decoder.columns.values())
        got = database.all(
            f'SELECT "offset", index, time, id, {columns} FROM {decoder.table}'  # noqa: S608
        )
        sums = {field: count for (_, field), count in decoder.nulled.items()}
    assert {row[:2]: (row[2], row[3] or "", *row[4:]) for row in got} == {
        at: (row[0], *row[2:]) for at, row in want.items()
    }
    assert faulty == refused
    assert sums == nulled


@pytest.mark.parametrize("seed", range(8))
def test_arrow_is_read_alike(seed: int) -> None:
    """Columns of every type that a field may take, and of others."""
    chance = random.Random(seed)
    source = source_of(chance)
    source = dataclasses_replace(
        source, fields=tuple(dataclasses_replace(f, path=()) for f in source.fields)
    )
    values = [arrow_of(chance) for _ in range(40)]
    run = run_of(list(values), topic=source.topic, append_time_ms=APPEND_MS)
    batch = Decoder(source).decode([run])
    rows, reasons = taken_by(batch, source)
    arrow = ArrowRows(source)
    reader = RecordReader(source, arrow)
    taken = [Record(offset, APPEND_MS, value) for offset, value in enumerate(values)]
    want, refused, nulled = plain_rules(source, reader, taken, reasons)
    assert reasons.keys() == refused.keys()
    assert {at: reason for at, reason in reasons.items() if reason not in refused[at]} == {}
    assert repr(rows) == repr(want)
    assert (
        batch.ledgers[0].counts.items()
        >= {f"nulled.{source.name}.{name}": count for name, count in nulled.items()}.items()
    )
    for offset, record in enumerate(map(reader.unpacked, taken)):
        assert record.value is not None
        frame = arrow.frame(record.value)
        assert frame is not None
        found = arrow.columns(frame, {field.name: f"f_{field.name}" for field in source.fields})
        for index, row in enumerate(found.iter_rows(named=True)):
            if row["sound"]:
                own = (row[f"f_{field.name}"] for field in source.fields)
                at = (offset, index)
                assert repr((row["time"], row["type"], row["id"] or "", *own)) == repr(want[at])


def arrow_of(chance: random.Random) -> bytes:
    """Return five events as an Arrow stream, now and then packed."""
    texts = pl.Series([chance.choice([x for x in NUMBERS if type(x) is str]) for _ in range(5)])
    floats = [7.0, -0.0, 7.5, 1e18, 2e19, float("nan"), float("inf"), None, -(2.0**63), 2.0**63]
    kinds: list[pl.Series] = [
        texts,
        pl.Series(["7", "8", None, "9", "10"]),
        pl.Series(["7", "8", None, "7", "7"]).cast(pl.Categorical),
        pl.Series([chance.choice(floats) for _ in range(5)], dtype=pl.Float64),
        pl.Series([1.0, 2.0, None, 4.0, 5.0], dtype=pl.Float32),
        pl.Series([1, 2**63 - 1, None, -(2**63), 5], dtype=pl.Int64),
        pl.Series([1, 2, 3, 2**64 - 1, 5], dtype=pl.UInt64),
        pl.Series([True, None, False, True, True]),
        pl.Series(["true", "FALSE", None, "true", "no"]),
        pl.Series([[1]] * 5),
        pl.Series([None] * 5),
    ]
    times: list[pl.Series] = [
        pl.Series([5, 6, 7, 8, 9]),
        pl.Series([chance.choice([t for t in TIMES if type(t) is str]) for _ in range(5)]),
        pl.Series([chance.choice([t for t in TIMES if type(t) is float]) for _ in range(5)]),
        pl.Series([1.5, float("nan"), None, float("inf"), 0.29], dtype=pl.Float32),
        pl.Series([5, 6, 7, 8, 9]).cast(pl.Datetime("us")),
        pl.Series([True] * 5),
    ]
    columns = {
        "at": chance.choice([*times[:1] * 5, *times]),
        "type": pl.Series(["flight.departed"] * 5),
        "id": pl.Series(["x", "y", None, "", "z"]),
    } | {name: chance.choice(kinds) for name in "abcde"}
    file = io.BytesIO()
    pl.DataFrame(columns).write_ipc_stream(file)
    return file.getvalue()
