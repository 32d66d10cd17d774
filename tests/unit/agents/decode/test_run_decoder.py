"""Forms of records: the same events in any mix of them are the same events, offsets and ledger."""

import datetime as dt
import io
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.decode.event_batch import INDEX_COLUMN, RECORD_SPAN, EventBatch, SetAside
from agents.decode.records import Decoder
from agents.decode.times import parse_times
from agents.fold.content import Before
from agents.fold.layers import Folder
from tables.model import ledger
from tables.model.layer import Field, Map
from tables.model.window import NEVER_MS
from tables.state.input_plan import plans_of
from tests.support.common import dataclasses_replace, run_of, small_map

FIELDS = (
    Field("origin", "string"), Field("carrier", "string"), Field("delay", "int"),
    Field("vip", "bool"), Field("weight", "float"),
)  # fmt: skip


def mixed_map() -> Map:
    """Return the small map with a field of every type."""
    themap = small_map()
    source = dataclasses_replace(themap.sources[0], fields=FIELDS)
    return dataclasses_replace(themap, sources=(source,))


MAP = mixed_map()
PLAN = plans_of(MAP)["flights.raw"]
DECODER = Decoder(MAP.sources[0])
FOLDER = Folder(PLAN)
ARROW = (("content-type", b"application/vnd.apache.arrow.stream"),)
SCHEMA = {
    "at": pl.Int64, "type": pl.String, "origin": pl.String, "carrier": pl.String,
    "delay": pl.Int64, "vip": pl.Boolean, "weight": pl.Float64, "unknown": pl.String,
}  # fmt: skip

EVENTS = st.fixed_dictionaries(
    {
        "at": st.one_of(st.integers(0, 10**7), st.just(10**15), st.none()),
        "type": st.sampled_from(["flight.departed", "flight.arrived", "bus.left", None]),
        "origin": st.sampled_from(["JFK", "LGA", "x" * 1_100, "é" * 520, None]),
        "carrier": st.sampled_from(["UA", "AA"]),
        "delay": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "vip": st.one_of(st.none(), st.booleans()),
        "weight": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        "unknown": st.sampled_from(["", "}\n{", "\u2028"]),
    }
)


def arrow(events: Sequence[dict[str, Any]], style: int = 0) -> bytes:
    """Return events as an Arrow stream; the style says how columns are typed and compressed."""
    frame = pl.DataFrame(list(events), schema=SCHEMA)
    if style % 2:
        frame = frame.with_columns(pl.col("type", "origin").cast(pl.Categorical))
    file = io.BytesIO()
    frame.write_ipc_stream(file, compression=("uncompressed", "lz4", "zstd")[style % 3])
    return file.getvalue()


def as_json(event: dict[str, Any], style: int) -> bytes:
    """Return an event as JSON; the style says how it is written."""
    present = {k: v for k, v in event.items() if v is not None} if style % 2 else event
    return json.dumps(
        present, ensure_ascii=style % 3 == 0, indent=4 if style % 5 == 4 else None
    ).encode()


def records(groups: Sequence[tuple[list[dict[str, Any]], int]]) -> tuple[list[bytes | None], Any]:
    """Return a record for each group of events, in the form its number says, and the headers."""
    values: list[bytes | None] = []
    headers: dict[int, Any] = {}
    for events, form in groups:
        if form >= 6:
            values.append(arrow(events, form))
            if form % 2:
                headers[len(values) - 1] = ARROW
        elif len(events) == 1:
            values.append(as_json(events[0], form))
            if form == 1:
                headers[len(values) - 1] = (("content-type", b"application/json; charset=utf-8"),)
        else:
            lines = [as_json(event, form % 4) for event in events]
            ending = (b"", b"\n", b"\r\n", b"\n\n", b" \n", b"")[form]
            values.append((b"\r\n" if form == 2 else b"\n").join(lines) + ending)
            if form == 3:
                headers[len(values) - 1] = (("Content-Type", b"APPLICATION/X-NDJSON"),)
    return values, headers


def fold(values: Sequence[bytes | None], headers: Any, cuts: Sequence[int]) -> tuple[Any, Any, Any]:
    """Decode and fold in the chunks that cuts make; return cells, ledger and input set aside."""
    counts: dict[str, int] = {}
    blocks: list[pl.DataFrame] = []
    aside: list[Any] = []
    before = Before(NEVER_MS, {})
    for first, last in itertools.pairwise([0, *sorted(cuts), len(values)]):
        run = run_of(values[first:last], first_offset=first)
        run.headers = {i - first: h for i, h in headers.items() if first <= i < last}
        batch = DECODER.decode([run])
        (content,) = FOLDER.fold(batch, {0: before})
        ledger.add(counts, content.ledger)
        if "hour" in content.blocks:
            block = content.blocks["hour"]
            assert isinstance(block, pl.DataFrame)
            blocks.append(block)
        aside += [(first + a.record, a.events, a.reason, a.layer) for a in batch.aside]
        before = Before(content.stream_time_ms, {})
        assert all(len(DECODER.part_of(run, item)) == 2 for item in batch.aside)
    keys = ["key_origin", "key_carrier", "window_start"]
    sums = [pl.col("events", "n_delay", "sum_delay").sum(), pl.col("max_delay").max()]
    cells = pl.concat(blocks).group_by(keys).agg(*sums).sort(keys) if blocks else None
    return cells, {name: count for name, count in counts.items() if count}, sorted(aside)


def equal(one: pl.DataFrame | None, other: pl.DataFrame | None) -> bool:
    """Return whether two frames, or two absences of one, are equal."""
    return one.equals(other) if one is not None and other is not None else one is other


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.lists(EVENTS, min_size=1, max_size=5), st.integers(0, 11)), max_size=8),
    st.lists(st.integers(0, 8), max_size=4),
)
def test_any_mix_of_forms_and_chunks_gives_the_same_events(
    groups: list[tuple[list[dict[str, Any]], int]], cuts: list[int]
) -> None:
    """Every other mix is compared with one event a record in one chunk."""
    values, headers = records(groups)
    alone = [json.dumps(event).encode() for events, _ in groups for event in events]
    cells, counts, _ = fold(alone, {}, [])
    mixed_cells, mixed, aside = fold(values, headers, [cut for cut in cuts if cut <= len(values)])
    whole = fold(values, headers, [])
    assert equal(cells, mixed_cells)
    assert mixed == whole[1]
    assert aside == whole[2]
    assert ledger.imbalances(mixed, len(values), ["hour"]) == []
    # Of several faults of one event each form may meet another first.
    kinds = ("events.", "layer.")
    events = {k: v for k, v in counts.items() if k.startswith(kinds)}
    assert events == {k: v for k, v in mixed.items() if k.startswith(kinds)}
    assert sum(len(events or ()) for _, events, reason, _ in aside if reason != "late") == (
        counts.get("events.decoded", 0) - counts.get("events.classified", 0)
    )


@given(st.lists(st.one_of(st.binary(max_size=40), st.none()), max_size=6), st.integers(0, 2**32))
def test_no_bytes_break_the_ledger(values: list[bytes | None], seed: int) -> None:
    """Junk, also junk that begins like Arrow, ends in one column for each record."""
    junk = [
        b"\xff\xff\xff\xff" + value if value is not None and (seed >> i) & 1 else value
        for i, value in enumerate(values)
    ]
    _, counts, _ = fold(junk, {}, [])
    assert ledger.imbalances(counts, len(junk), ["hour"]) == []


GOOD = {"at": 5, "type": "flight.departed", "origin": "JFK", "carrier": "UA"}


@given(st.data())
def test_broken_arrow_never_breaks_the_ledger(data: st.DataObject) -> None:
    """Flipped, cut and overwritten streams are events, faults or one unreadable record."""
    value = bytearray(arrow([GOOD] * data.draw(st.integers(1, 30)), data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        kind = data.draw(st.sampled_from(["flip", "huge", "cut", "drop"]))
        if kind == "flip":
            value[at] ^= data.draw(st.integers(1, 255))
        elif kind == "huge":
            number = data.draw(st.sampled_from([2**63 - 1, 2**62, 2**40, 2**31, -1]))
            value[at : at + 8] = number.to_bytes(8, "little", signed=True)
        elif kind == "cut":
            del value[at + 1 :]
        else:
            del value[at : at + 4]
        if not value:
            value = bytearray(b"\xff")
    _, counts, _ = fold([bytes(value), json.dumps(GOOD).encode()], {0: ARROW}, [])
    assert ledger.imbalances(counts, 2, ["hour"]) == []
    assert counts["layer.hour.folded"] >= 1


def decode(*values: bytes, headers: Any = None, **changes: Any) -> EventBatch:
    """Decode records with a source that differs from the map's by ``changes``."""
    run = run_of(list(values))
    run.headers = headers or {}
    return Decoder(dataclasses_replace(MAP.sources[0], **changes)).decode([run])


def reasons(batch: EventBatch) -> dict[str, int]:
    """Return the counts by reason."""
    return {
        k: v
        for k, v in batch.ledgers[0].counts.items()
        if k.split(".")[0] in ("malformed", "unreadable")
    }


@pytest.mark.parametrize(
    ("fragment", "reason"),
    [
        ('"at":1', "missing"),
        ('"type":"a"', "missing"),
        ('"at":null,"type":"a"', "missing"),
        ('"at":1,"type":null', "missing"),
        ('"at":1.0,"type":"a"', "wrong_type"),
        ('"at":[],"type":"a"', "wrong_type"),
        ('"at":1,"type":5', "wrong_type"),
        ('"at":1,"type":"a","delay":"5"', "wrong_type"),
        ('"at":1,"type":"a","delay":5.0', "wrong_type"),
        ('"at":1,"type":"a","vip":1', "wrong_type"),
        ('"at":1,"type":"a","weight":"1"', "wrong_type"),
        ('"at":1,"type":"a","origin":7', "wrong_type"),
        ('"at":1,"type":"a","delay":9223372036854775808', "out_of_range"),
        ('"at":1,"type":"a","delay":-9223372036854775809', "out_of_range"),
        ('"at":99999999999999999999999999,"type":"a"', "out_of_range"),
        ('"at":1,"type":"a","weight":1e999', "out_of_range"),
        ('"at":"2013-01-01","type":"a"', "out_of_range"),
        ('"at":1,"type":"a","weight":NaN', "json"),
        ('"at":1,"type":"a"', ""),
        ('"at":1,"type":"a","weight":5', ""),
    ],
)
def test_every_fault_of_json_has_its_reason(fragment: str, reason: str) -> None:
    """The reasons are read from the words of msgspec, so each of them is tried."""
    batch = decode(f"{{{fragment}}}".encode())
    assert reasons(batch) == ({f"malformed.{reason}": 1} if reason else {})


@pytest.mark.parametrize("value", [b"[]", b"1", b"null", b'"x"', b"{", b"\xff", b"[" * 5_000])
def test_what_is_no_json_object_says_so(value: bytes) -> None:
    """Other JSON, and no JSON, is one malformed event."""
    batch = decode(value)
    assert reasons(batch) == {"malformed.json": 1}
    assert batch.ledgers[0].counts["records.with_events"] == 1


@pytest.mark.parametrize(
    "name", ["place", "event_index", "event", "index", "reason", "lateness", "number", "least"]
)
@pytest.mark.parametrize("is_arrow", [False, True])
def test_a_field_may_have_the_name_of_any_column_of_ours(name: str, *, is_arrow: bool) -> None:
    """All that a map accepts, of events that are folded, late and malformed."""
    source = dataclasses_replace(MAP.sources[0], fields=(*FIELDS, Field(name, "string")))
    plan = plans_of(dataclasses_replace(MAP, sources=(source,)))["flights.raw"]
    good = {"type": "flight.departed", "origin": "JFK", "carrier": "UA", name: "x"}
    events = [good | {"at": 10**9}, good | {"at": 1}, good | {"at": None}]
    value = b"\n".join(json.dumps(event).encode() for event in events)
    if is_arrow:
        file = io.BytesIO()
        pl.DataFrame(events).write_ipc_stream(file)
        value = file.getvalue()
    batch = Decoder(source).decode([run_of([value])])
    (content,) = Folder(plan).fold(batch, {0: Before(NEVER_MS, {})})
    assert content.ledger["layer.hour.folded"] == content.ledger["layer.hour.too_late"] == 1
    assert content.ledger["events.malformed"] == 1
    kinds = [(item.kind, item.events) for item in batch.aside]
    assert sorted(kinds) == [("dead", (2,)), ("late", (1,))]


def test_the_good_lines_of_a_record_are_kept() -> None:
    """Indexes count the lines that are not blank; each reason is one letter."""
    line = json.dumps(GOOD).encode()
    value = b"\n".join([line, b"{", b"", line, b"x", b'{"at":1}', line])
    batch = decode(value)
    assert (batch.frame[INDEX_COLUMN] % RECORD_SPAN).to_list() == [0, 2, 5]
    assert [(a.events, a.reason) for a in batch.aside] == [((1, 3), "json"), ((4,), "missing")]
    run = run_of([value])
    assert DECODER.part_of(run, batch.aside[0]) == (b"{\nx", "application/x-ndjson")


@pytest.mark.parametrize("style", range(6))
def test_the_good_rows_of_an_arrow_record_are_kept(style: int) -> None:
    """A letter holds the bad rows with all their columns, in Arrow."""
    events = [GOOD, GOOD | {"at": None}, GOOD | {"weight": math.nan}, GOOD]
    value = arrow(events, style)
    batch = decode(value)
    assert (batch.frame[INDEX_COLUMN] % RECORD_SPAN).to_list() == [0, 3]
    assert reasons(batch) == {"malformed.missing": 1, "malformed.not_finite": 1}
    aside = next(item for item in batch.aside if item.reason == "missing")
    assert aside.events == (1,)
    part, content_type = DECODER.part_of(run_of([value]), aside)
    assert content_type == "application/vnd.apache.arrow.stream"
    assert pl.read_ipc_stream(part)["origin"].to_list() == ["JFK"]
    assert "unknown" in pl.read_ipc_stream(part).columns


FIRST_DAY, LAST_DAY = (
    dt.datetime.fromisoformat("0001-01-02"),
    dt.datetime.fromisoformat("9999-12-30"),
)
ARROW_TIMES = [
    (pl.Series([1_700_000_000_123], dtype=pl.Int64), 1_700_000_000_123),
    (pl.Series([1_700_000_000], dtype=pl.UInt32), 1_700_000_000),
    (pl.Series([1_672_531_259_999_999]).cast(pl.Datetime("us")), 1_672_531_259_999),
    (pl.Series([-1], dtype=pl.Int64).cast(pl.Datetime("ns")), -1),
    (pl.Series([1_500_000], dtype=pl.Int64).cast(pl.Datetime("us", "Europe/Berlin")), 1_500),
    (pl.Series([dt.date(1969, 12, 31)]), -86_400_000),
    (pl.Series(["2023-01-01T01:00:59.9999999+01:00"]), 1_672_531_259_999),
    (pl.Series(["1969-12-31T23:59:59.9999Z"], dtype=pl.Categorical), -1),
]  # fmt: skip


@pytest.mark.parametrize(("times", "want"), ARROW_TIMES)
def test_arrow_times_of_any_type_are_milliseconds(times: pl.Series, want: int) -> None:
    """Fractions of a millisecond are cut off towards the past, before the epoch too."""
    file = io.BytesIO()
    pl.DataFrame({"at": times, "type": ["a"]}).write_ipc_stream(file)
    assert decode(file.getvalue()).frame["time"].to_list() == [want]


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("at", pl.Series([1.0]), "wrong_type"),
        ("at", pl.Series([None], dtype=pl.Null), "missing"),
        ("at", pl.Series([2**63], dtype=pl.UInt64), "out_of_range"),
        ("at", pl.Series(["yesterday"]), "out_of_range"),
        ("type", pl.Series([1]), "wrong_type"),
        ("delay", pl.Series([1.0]), "wrong_type"),
        ("delay", pl.Series([2**63], dtype=pl.UInt64), "out_of_range"),
        ("vip", pl.Series([1]), "wrong_type"),
        ("weight", pl.Series([math.inf]), "not_finite"),
        ("origin", pl.Series([b"x"]), "wrong_type"),
    ],
)
def test_every_fault_of_arrow_has_its_reason(column: str, values: pl.Series, reason: str) -> None:
    """A column of another type is a fault of every row that has a value in it."""
    columns = {"at": pl.Series([1]), "type": pl.Series(["a"])} | {column: values}
    file = io.BytesIO()
    pl.DataFrame(columns).write_ipc_stream(file)
    found = reasons(decode(file.getvalue()))
    # A type of another type is absent too; of several faults one is counted.
    assert found == {f"malformed.{reason}": 1}


def test_an_arrow_record_without_time_column_has_no_events() -> None:
    """Columns that are not there are null, and a null time is a fault of each row."""
    file = io.BytesIO()
    pl.DataFrame({"type": ["a", "b"]}).write_ipc_stream(file)
    assert reasons(decode(file.getvalue())) == {"malformed.missing": 2}


def test_arrow_that_inflates_too_far_is_refused() -> None:
    """A megabyte of zeros is a few kilobytes on the wire."""
    value = arrow([GOOD | {"unknown": "0" * 1_000_000}], 2)
    assert len(value) < 10_000
    assert reasons(decode(value, inflated_bytes_max=100_000)) == {"unreadable.arrow": 1}
    assert reasons(decode(value, inflated_bytes_max=2_000_000)) == {}


def test_an_arrow_stream_without_rows_is_empty() -> None:
    """It has no event to count."""
    batch = decode(arrow([]))
    assert batch.ledgers[0].counts == {"records.empty": 1}


def test_a_content_type_wins_over_the_bytes() -> None:
    """Lines that are called one document are malformed; unknown types are not guessed at."""
    line = json.dumps(GOOD).encode()
    one, lines = (
        (("content-type", b"application/json"),),
        (("content-type", b"application/x-ndjson"),),
    )
    assert reasons(decode(line + b"\n" + line, headers={0: one})) == {"malformed.json": 1}
    assert reasons(decode(b"{\n}", headers={0: lines})) == {"malformed.json": 2}
    assert reasons(decode(line, headers={0: ARROW})) == {"unreadable.arrow": 1}
    other = (("content-type", b"application/xml"),)
    batch = decode(line, headers={0: other})
    assert reasons(batch) == {"unreadable.content_type": 1}
    assert "application/xml" in batch.aside[0].detail
    assert DECODER.part_of(batch.runs[0], batch.aside[0]) == (line, "application/xml")


def test_bytes_that_are_no_utf_8_are_refused_in_skipped_fields_too() -> None:
    """They are refused alone, among others, and over many lines."""
    good = json.dumps(GOOD).encode()
    bad = good[:-1] + b',"extra":"\xff"}'
    for values in (
        [bad],
        [good, bad, good],
        [b"\n".join([good, bad])],
        [bad.replace(b",", b",\n")],
    ):
        batch = decode(*values)
        assert batch.ledgers[0].counts["malformed.json"] >= 1
        assert batch.frame.height == b"\n".join(values).count(good)


def test_white_space_counts_towards_the_size_of_a_record() -> None:
    """It counts with a content type and without."""
    value = json.dumps(GOOD).encode() + b" " * 100
    for headers in ({}, {0: (("content-type", b"application/x-ndjson"),)}):
        batch = decode(value, headers=headers, record_bytes_max=120)
        assert batch.ledgers[0].counts == {"records.oversized": 1}


def test_one_document_may_stand_over_many_lines() -> None:
    """It is one document, whether it is an event or not."""
    good = json.dumps(GOOD, indent=2).encode()
    bad = json.dumps(GOOD | {"at": "x"}, indent=2).encode()
    batch = decode(good, bad)
    assert batch.ledgers[0].counts["events.decoded"] == 2
    assert reasons(batch) == {"malformed.out_of_range": 1}
    assert DECODER.part_of(batch.runs[0], batch.aside[0]) == (bad, "application/json")


def test_seconds_and_texts_are_the_same_time() -> None:
    """The unit is that of numbers; a text carries its own."""
    values = [
        json.dumps(GOOD | {"at": at}).encode()
        for at in (1_700_000_000, "2023-11-14T22:13:20Z", "2023-11-14T23:13:20.0009+01:00")
    ]
    batch = decode(*values, time_unit_ms=1_000)
    assert batch.frame["time"].to_list() == [1_700_000_000_000] * 3
    file = io.BytesIO()
    pl.DataFrame({"at": [1_700_000_000], "type": ["a"]}).write_ipc_stream(file)
    assert decode(file.getvalue(), time_unit_ms=1_000).frame["time"].to_list() == [
        1_700_000_000_000
    ]


@given(
    st.datetimes(FIRST_DAY, LAST_DAY),
    st.integers(-1439, 1439),
    st.integers(0, 9),
)
def test_rfc_3339_texts_agree_with_the_standard_library(
    moment: dt.datetime, offset_min: int, digits: int
) -> None:
    """Any offset and any number of digits, cut off at milliseconds."""
    zone = dt.timezone(dt.timedelta(minutes=offset_min))
    local = moment.replace(tzinfo=dt.UTC).astimezone(zone)
    fraction = f".{local.microsecond:06d}999"[: digits + 1] if digits else ""
    text = f"{local.replace(tzinfo=None, microsecond=0).isoformat()}{fraction}"
    sign = "+" if offset_min >= 0 else "-"
    text += f"{sign}{abs(offset_min) // 60:02d}:{abs(offset_min) % 60:02d}"
    whole = local.replace(microsecond=0) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    milliseconds = int((fraction[1:] + "000")[:3])
    assert parse_times(pl.Series([text])).to_list() == [
        whole // dt.timedelta(milliseconds=1) + milliseconds
    ]


@pytest.mark.parametrize(
    "text",
    ["", "2013-01-01", "2013-01-01T00:00:00", "2013-02-30T00:00:00Z", "2013-1-1T0:0:0Z",
     " 2013-01-01T00:00:00Z", "+12013-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
     "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2013-01-01T00:00:00 +02:00"],
)  # fmt: skip
def test_other_texts_are_no_times(text: str) -> None:
    """Strict, so that a slip is told instead of guessed at."""
    assert parse_times(pl.Series([text])).to_list() == [None]


def test_a_refused_record_is_one_letter_and_no_event() -> None:
    """A record is refused if it alone adds more than a delta can hold."""
    run = run_of([json.dumps(GOOD).encode()], first_offset=7)
    batch = DECODER.decode([run])
    refused = DECODER.refuse(run, "too_many_cells", "too much")
    assert refused.frame.schema == batch.frame.schema
    assert [d.counts for d in refused.ledgers] == [
        {"records.unreadable": 1, "unreadable.too_many_cells": 1}
    ]
    assert refused.aside == [SetAside("dead", 0, 0, None, "too_many_cells", "too much")]
    (content,) = FOLDER.fold(refused, {0: Before(3, {})})
    assert (content.stop, content.stream_time_ms, content.blocks) == (8, 3, {})
