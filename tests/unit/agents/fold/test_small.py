"""Folding a few events in plain Python: the same cells as by the general way."""

import math
import random
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from agents.decode.event_batch import SMALL_EVENTS_MAX
from agents.decode.records import Decoder
from agents.fold.content import Before, Content
from agents.fold.layers import KEY_BYTES_MAX, Folder
from agents.fold.small import SmallBatchFolder
from tables.model import ledger
from tables.model.layer import Condition, Field, KeyField, Map
from tables.model.window import MONTH, NEVER_MS, Window
from tables.record.chunk import RecordFault, Run
from tables.state.block import TupleRows, decode_block, encode_block
from tables.state.input_plan import plans_of
from tests.support.common import (
    DAY_MS,
    EVENTS,
    HOUR_MS,
    accumulators,
    dataclasses_replace,
    flight,
    run_of,
    small_map,
)

NEVER = {0: Before(NEVER_MS, {}), 1: Before(NEVER_MS, {})}


def wide_map(**changes: Any) -> Map:
    """Return a map of four base layers: one filtered, one of months, one without a key."""
    themap = small_map()
    hour, day = themap.layers[0], Window(DAY_MS)
    fields = (*themap.sources[0].fields, Field("share", "float"), Field("night", "bool"))
    source = dataclasses_replace(themap.sources[0], **{"fields": fields} | changes)
    both = (*accumulators("delay"), *accumulators("share", "float")[1:])
    where = (Condition("delay", ">", 0), Condition("carrier", "in", ("UA", "AA")))
    filtered = dataclasses_replace(
        hour, name="filtered", accumulators=both, where=where, events=("flight.**",)
    )
    months = dataclasses_replace(
        hour,
        name="months",
        window=MONTH,
        key=(KeyField("night", "bool"),),
        accumulators=both,
        where=(),
        events=("*.arrived",),
    )
    days = dataclasses_replace(hour, name="days", window=day, key=(), accumulators=(EVENTS,))
    layers = [
        dataclasses_replace(layer, allowed_lateness_ms=100 * DAY_MS)
        for layer in (hour, filtered, months, days)
    ]
    return dataclasses_replace(themap, sources=(source,), layers=tuple(layers))


def both_ways(
    themap: Map, runs: list[Run], before: dict[int, Before]
) -> tuple[list[Content] | None, list[Content]]:
    """Return the contents of the few events' way, and those of the general one."""
    plan = plans_of(themap)["flights.raw"]
    assert plan.source is not None
    small = SmallBatchFolder(plan.source, plan).fold(runs, before)
    batch = Decoder(plan.source).decode(runs)
    return small, Folder(plan).fold(batch, before)


def assert_same(small: list[Content] | None, general: list[Content]) -> None:
    """Assert that both ways gave the same; sums of floats may differ in their last bits."""
    assert small is not None
    for one, other in zip(small, general, strict=True):
        counts = [{n: c for n, c in x.ledger.items() if c} for x in (one, other)]
        assert counts[0] == counts[1]
        assert (one.start, one.stop, one.stream_time_ms) == (
            other.start, other.stop, other.stream_time_ms
        )  # fmt: skip
        assert one.blocks.keys() == other.blocks.keys()
        for name, block in one.blocks.items():
            assert isinstance(block, TupleRows)
            frame, wanted = block.frame(), other.blocks[name]
            assert isinstance(wanted, pl.DataFrame)
            assert decode_block(encode_block(block), frame.schema).equals(frame)
            assert squares(frame) == squares(wanted)
            halves = pl.selectors.starts_with("sqhi_", "sqlo_")
            one_sum, other_sum = frame.drop(halves), wanted.drop(halves)
            assert_frame_equal(one_sum, other_sum, rel_tol=1e-9, abs_tol=1e-6)


def squares(frame: pl.DataFrame) -> list[int]:
    """Return exact sums of squares; how one is split into halves may differ."""
    if "sqlo_delay" not in frame.columns:
        return []
    pairs = zip(frame["sqhi_delay"], frame["sqlo_delay"], strict=True)
    return [(high << 64) + low for high, low in pairs]


# From the last of these on, two squares do not fit into one word.
LARGE = st.sampled_from([2**31, 3_037_000_499, 3_037_000_500])
EVENT = st.fixed_dictionaries(
    {
        "at": st.integers(-40 * DAY_MS, 40 * DAY_MS),
        "type": st.sampled_from(["flight.arrived", "flight.departed"]),
        "origin": st.sampled_from(["JFK", "LGA"]),
        "carrier": st.sampled_from(["UA", "AA", "ÄÖ"]),
        "night": st.booleans(),
        "delay": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), LARGE, st.integers(-9, 9)),
        "share": st.one_of(st.none(), st.floats(-1e4, 1e4), st.integers(-5, 5)),
    }
)


@given(st.lists(EVENT, min_size=1, max_size=40), st.integers(0, 40))
def test_it_gives_what_the_general_way_gives(events: list[dict[str, Any]], cut: int) -> None:
    """Cells, ledger, stream time and range are the same; bytes read back as the same."""
    themap = wide_map()
    values = [orjson.dumps(event) for event in sorted(events, key=lambda event: event["at"])]
    runs = [run_of(values[:cut]), run_of(values[cut:], partition=1)]
    runs = [run for run in runs if run.values]
    small, general = both_ways(themap, runs, NEVER)
    assert all(not ledger.imbalances(c.ledger, c.stop - c.start, [x.name for x in themap.layers])
               for c in general)  # fmt: skip
    assert_same(small, general)


def test_plain_events_are_taken() -> None:
    """The small path is for events in order, of known types, with their key."""
    small, _ = both_ways(wide_map(), [run_of([flight(0), flight(1, delay=None)])], NEVER)
    assert small is not None
    assert small[0].blocks["hour"].height == 1


OTHERS = {
    "a heartbeat": [flight(0), 5],
    "lines": [flight(0) + b"\n" + flight(1)],
    "a broken one": [flight(0), b"{"],
    "an empty one": [b""],
    "no UTF-8": [b'{"at":1,"type":"flight.x","origin":"\xff","carrier":"UA"}'],
    "a text as time": [
        b'{"at":"2013-01-01T00:00:00Z","type":"flight.x","origin":"a","carrier":""}'
    ],
    "an unknown type": [b'{"at":1,"type":"page.view"}'],
    "no key": [b'{"at":1,"type":"flight.x","origin":"JFK"}'],
    "a long key": [flight(0, "x" * (KEY_BYTES_MAX + 1))],
    "a key that may be long": [flight(0, "x" * (KEY_BYTES_MAX // 4 + 1))],
    "a late one": [flight(0), flight(10 * HOUR_MS), flight(1)],
    "one of the future": [flight(2**45)],
    "many": [flight(0)] * (SMALL_EVENTS_MAX + 1),
}


@pytest.mark.parametrize("values", OTHERS.values(), ids=OTHERS)
def test_all_others_are_left_to_the_general_way(values: list[bytes | None]) -> None:
    """One place alone defines the result of all other events."""
    small, _ = both_ways(small_map(), [run_of(values)], NEVER)
    assert small is None


def test_a_floor_of_before_leaves_a_late_event_to_the_general_way() -> None:
    """The first event of a chunk can be late as well."""
    before = {0: Before(10 * HOUR_MS, {"hour": 9 * HOUR_MS})}
    small, general = both_ways(small_map(), [run_of([flight(1)])], before)
    assert small is None
    assert general[0].ledger["layer.hour.too_late"] == 1


def test_records_with_headers_are_left_to_the_general_way() -> None:
    """A content type decides the format of a value."""
    run = run_of([flight(0)])
    run.headers[0] = (("content-type", b"application/x-ndjson"),)
    assert both_ways(small_map(), [run], NEVER)[0] is None


def test_records_with_a_fault_are_left_to_the_general_way() -> None:
    """Their values are not events, even if they look like it."""
    run = run_of([flight(0)])
    run.faults[0] = RecordFault("header", "why")
    small, general = both_ways(small_map(), [run], NEVER)
    assert small is None
    assert general[0].ledger["records.unreadable"] == 1


def test_a_time_in_seconds_and_ids_are_left_to_the_general_way() -> None:
    """It multiplies no time and remembers nothing."""
    for changes in ({"time_unit_ms": 1_000}, {"id_field": "carrier"}):
        plan = plans_of(wide_map(**changes))["flights.raw"]
        assert plan.source is not None
        assert SmallBatchFolder(plan.source, plan).fold([run_of([flight(0)])], NEVER) is None


def test_values_of_other_types_are_folded_as_in_the_general_way() -> None:
    """Wrong values that become null are counted there, so a source that has them takes it."""
    themap = wide_map()
    fields = {field.name: field for field in themap.sources[0].fields}
    fields["delay"] = dataclasses_replace(fields["delay"], text=True, whole=True)
    fields["carrier"] = dataclasses_replace(fields["carrier"], digits=True)
    events = [
        {"at": at, "type": "flight.arrived", "origin": "JFK", "carrier": [7, "7"][n % 2],
         "night": True, "delay": delay, "share": 1.5}
        for n, (at, delay) in enumerate([(1, "3"), ("2", 4.0), (3.5, 5), ("4.25", "6.0")])
    ]  # fmt: skip
    values: list[bytes | None] = [orjson.dumps(event) for event in events]
    changes = {"time_text": True, "time_fraction": True, "fields": tuple(fields.values())}
    small, general = both_ways(wide_map(**changes), [run_of(values)], NEVER)
    assert small is not None
    assert_same(small, general)
    nullable = {**fields, "share": dataclasses_replace(fields["share"], null_on_error=True)}
    plan = plans_of(wide_map(fields=tuple(nullable.values())))["flights.raw"]
    assert plan.source is not None
    assert SmallBatchFolder(plan.source, plan).fold([run_of([flight(0)])], NEVER) is None


def test_offsets_without_a_record_are_counted() -> None:
    """They are gaps, here as there."""
    run = run_of([flight(0), flight(1)])
    run.next_offset += 3
    small, general = both_ways(small_map(), [run], NEVER)
    assert small is not None
    assert small[0].ledger["records.gap"] == 3
    assert_same(small, general)


def test_sums_beyond_64_bits_are_kept_exactly() -> None:
    """MessagePack has no such integers, so their block is a frame."""
    values = [flight(0, delay=2**63 - 1), flight(1, delay=2**63 - 1), flight(2, delay=-(2**63))]
    small, general = both_ways(small_map(), [run_of(values[:2])], NEVER)
    assert small is not None
    block = small[0].blocks["hour"]
    frame = decode_block(encode_block(block), block.frame().schema)  # type: ignore[union-attr]
    assert frame["sum_delay"].to_list() == [2**64 - 2]
    assert_same(small, general)
    square = 2 * (2**63 - 1) ** 2
    assert (frame["sqhi_delay"][0] << 64) + frame["sqlo_delay"][0] == square


def test_squared_deviations_do_not_cancel() -> None:
    """The variance of a million and a bit more is that of the bits."""
    rng = random.Random(3)
    shares = [1e6 + rng.random() for _ in range(50)]
    events = [
        orjson.dumps({"at": 1, "type": "flight.arrived", "origin": "JFK", "carrier": "UA",
                      "night": True, "delay": 1, "share": share})
        for share in shares
    ]  # fmt: skip
    small, _ = both_ways(wide_map(), [run_of(list(events))], NEVER)
    assert small is not None
    row = small[0].blocks["months"].frame().to_dicts()[0]  # type: ignore[union-attr]
    mean = math.fsum(shares) / len(shares)
    assert row["m2_share"] == pytest.approx(math.fsum((s - mean) ** 2 for s in shares), rel=1e-9)


def test_a_block_of_an_earlier_revision_is_filled() -> None:
    """A measure that came later is unknown for the windows before it, in few rows too."""
    old = {
        "key_a": pl.String(),
        "window_start": pl.Int64(),
        "gone": pl.Int64(),
        "events": pl.Int64(),
    }
    new = {"key_a": pl.String(), "window_start": pl.Int64(), "events": pl.Int64(),
           "n_x": pl.Int64(), "min_x": pl.Float64(), "sum_x": pl.Float64()}  # fmt: skip
    small = TupleRows(old, [("a", 1, 7, 2), ("b", 2, 8, 3)])
    frame = decode_block(encode_block(small), new)
    assert frame.schema == pl.Schema(new)
    assert frame.rows() == [("a", 1, 2, None, None, None), ("b", 2, 3, None, None, None)]
    assert frame.equals(decode_block(encode_block(small.frame()), new))


@pytest.mark.parametrize("rows", [1, 59, 60, 300])
def test_few_rows_make_the_same_frame_by_rows_and_by_columns(rows: int) -> None:
    """The path depends on the number of rows, the frame does not."""
    schema = {
        "key_a": pl.String(),
        "events": pl.Int64(),
        "sum_x": pl.Int128(),
        "min_x": pl.Float64(),
    }
    values = [(f"k{i}", i, 2**64 + i, None if i % 2 else 0.5 * i) for i in range(rows)]
    frame = TupleRows(schema, values).frame()
    assert frame.schema == pl.Schema(schema)
    assert frame.rows() == values
