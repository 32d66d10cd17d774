"""Every kind of bad input is as its name says, by the worker's own decoder."""

from __future__ import annotations

import dataclasses
import random

import polars as pl
import pytest

from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from app.load.bad_input import (
    KINDS,
    OVERSIZED_EVERY,
    Bad,
    Deck,
    Sample,
)
from app.load.event_shape import EventShape
from app.load.plan import MAP_FILE, SOURCE, GenerateError
from app.load.writers import WRITERS, Writer, arrow_stream
from app.mapfile.load import load_map
from tables.model.layer import Field, Map
from tables.model.ledger import Ledger
from tables.model.window import NEVER_MS
from tables.record.chunk import Headers, Run
from tables.state.input_plan import plans_of
from tests.support.common import dataclasses_replace, nested

NOW_MS = 1_700_000_000_000
MAP = load_map(MAP_FILE)
EVENT = pl.DataFrame(
    {
        "at": [NOW_MS], "type": ["order.t0"], "store": ["store1"], "region": ["region2"],
        "amount_cents": [5], "items": [2], "weight_kg": [1.5], "coupon": [None], "online": [True],
    },
    schema_overrides={"coupon": pl.String},
)  # fmt: skip
FLAT = MAP
NESTED = nested(FLAT)
OPTIONS = {"string": "digits", "int": "text", "float": "text", "bool": "text"}
TAKING = dataclasses_replace(
    FLAT,
    sources=tuple(
        dataclasses_replace(
            source,
            fields=tuple(
                dataclasses_replace(
                    field, null_on_error=field.name == "weight_kg", **{OPTIONS[field.type]: True}
                )
                for field in source.fields
            ),
            time_text=True,
            time_fraction=True,
            time_offset="Z",
            arrays=True,
            compression="gzip",
        )
        for source in FLAT.sources
    ),
)
"""The map with every option of values."""

MAPS = pytest.mark.parametrize(
    "themap", [FLAT, NESTED, TAKING], ids=["flat", "nested", "as they come"]
)
CASES = [
    pytest.param(themap, bad, writer, id=f"{name}-{bad.name}-{writer.name}")
    for name, themap in (("flat", FLAT), ("nested", NESTED), ("as they come", TAKING))
    for bad in KINDS
    for writer in WRITERS
    if bad.suits(writer) and writer.fits(themap.source(SOURCE))
]


def event_of(shape: EventShape) -> pl.DataFrame:
    """Return the good event under the names of a map's columns."""
    return EVENT.rename({"at": shape.time, "type": shape.type})


def sample(seed: int, themap: Map = FLAT) -> Sample:
    """Return a good event of the example's map."""
    source = themap.source(SOURCE)
    shape = EventShape(source)
    events = event_of(shape)
    return Sample(
        source=source,
        shape=shape,
        chance=random.Random(seed),
        now_ms=NOW_MS,
        events=events,
        row=0,
        event=events.row(0, named=True),
        key_names=("store", "region"),
        unclassified="unknown",
    )


def ledger_of(value: bytes | None, headers: Headers, themap: Map = FLAT) -> Ledger:
    """Return the worker's counts for one record."""
    source = themap.source(SOURCE)
    run = Run(
        topic=source.topic,
        partition=0,
        first_offset=0,
        next_offset=1,
        offsets=range(1),
        values=[value],
        append_times_ms=[NOW_MS],
        headers={0: headers} if headers else {},
    )
    batch = Decoder(source).decode([run])
    [content] = Folder(plans_of(themap)[source.topic]).fold(batch, {0: Before(NEVER_MS, {})})
    return {name: count for name, count in content.ledger.items() if count}


def record_of(bad: Bad, writer: Writer, one: Sample) -> tuple[bytes | None, Headers]:
    """Return a record that holds nothing but the bad thing."""
    made = bad.make(one)
    assert made is not None
    if bad.stage == "record":
        value, headers = made
        return value, headers
    if bad.stage == "line":
        return made, ()
    name, value = made
    frame = one.events.with_columns(pl.Series(name, [value], dtype=one.events[name].dtype))
    line = dataclasses.replace(one, event=frame.row(0, named=True)).line()
    headers = () if writer.is_recognised else writer.headers
    return writer.encode(one.shape.frame(frame), [line]), headers


def wanted(bad: Bad) -> Ledger:
    """Return the counts that the worker must have for it."""
    if bad.counted.startswith("unreadable."):
        return {"records.unreadable": 1, bad.counted: 1}
    if bad.counted.startswith("records."):
        return {bad.counted: 1}
    counts = {"records.with_events": 1, "events.decoded": 1, bad.counted: 1}
    return counts | ({"events.malformed": 1} if bad.outcome == "malformed" else {})


@MAPS
def test_the_event_itself_is_good(themap: Map) -> None:
    """This proves that a fault found below is the fault made there."""
    one = sample(1, themap)
    for value in (one.line(), arrow_stream(one.shape.frame(one.events))):
        assert ledger_of(value, (), themap)["layer.orders_minute.folded"] == 1


@pytest.mark.parametrize(("themap", "bad", "writer"), CASES)
def test_a_kind_is_what_its_name_says(themap: Map, bad: Bad, writer: Writer) -> None:
    """Twelve are made at random; each is counted under its reason and nothing else."""
    for seed in range(12):
        one = sample(seed, themap)
        if bad.make(one) is None:
            assert themap is TAKING
            return
        value, headers = record_of(bad, writer, one)
        counts = ledger_of(value, headers, themap)
        assert counts == wanted(bad), (seed, value and value[:300], headers)


def test_values_that_lie_in_arrays_are_not_generated() -> None:
    """The load generator says so, and which."""
    source = FLAT.source(SOURCE)
    field = Field("items", "int", ("list", 0, "items"))
    with pytest.raises(GenerateError, match=r"list\[0\]\.items lies in an array"):
        EventShape(dataclasses_replace(source, fields=(*source.fields, field)))


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_a_content_type_changes_nothing_but_for_lines_in_one_document(writer: Writer) -> None:
    """Bad lines and rows are the same if a header tells their form."""
    for bad in KINDS:
        if bad.suits(writer) and bad.stage != "record":
            for seed in range(20):
                value, _ = record_of(bad, writer, sample(seed))
                assert ledger_of(value, writer.headers) == wanted(bad), (bad.name, seed, value)


def test_every_round_has_every_kind_and_few_have_an_oversized_record() -> None:
    """Records of more than a MiB would otherwise be most of the load."""
    deck = Deck(random.Random(5))
    kinds = [bad for bad in KINDS if bad.suits(WRITERS[0])]
    first = [deck.draw("json", sample(0))[0].name for _ in kinds]
    assert sorted(first) == sorted(bad.name for bad in kinds)
    more = (OVERSIZED_EVERY - 1) * (len(kinds) - 1)
    assert "oversized" not in [deck.draw("json", sample(0))[0].name for _ in range(more)]
    assert "oversized" in [deck.draw("json", sample(0))[0].name for _ in kinds]


def test_what_a_source_cannot_have_is_left_out() -> None:
    """A key cannot be too long without text, nor a type unknown if all are selected."""
    one = sample(1)
    bare = dataclasses.replace(one, key_names=(), unclassified=None)
    deck = Deck(random.Random(5))
    drawn = {deck.draw("arrow", bare)[0].name for _ in range(100)}
    assert {"tombstone", "arrow", "not_finite"} <= drawn
    assert not drawn & {"key_too_long", "unclassified"}
