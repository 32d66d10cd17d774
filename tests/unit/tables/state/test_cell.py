"""Cells merge to the result of one pass over all their events, and measures are exact."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tables.state.cell
from tables.model.layer import Accumulator, KeyField, Layer, Measure
from tables.model.window import Window
from tables.state.cell import archive_schema, cell_schema, latest, measures_of, merge_partitions

KINDS = ("count", "sum", "min", "max", "mean", "variance")
LAYER = Layer(
    name="cells",
    key=(KeyField("k", "string"),),
    window=Window(1_000),
    measures=(
        *(Measure(kind, None if kind == "count" else "i") for kind in KINDS),
        *(Measure(kind, "f") for kind in KINDS[1:]),
    ),
    accumulators=(
        Accumulator("events", None, "int"),
        *(Accumulator(kind, "i", "int") for kind in ("n", "sum", "min", "max", "sqlo", "sqhi")),
        *(Accumulator(kind, "f", "float") for kind in ("n", "sum", "min", "max", "m2")),
    ),
    max_out_of_orderness_ms=0,
    allowed_lateness_ms=0,
    partitions=1,
    source="source",
)
Event = tuple[int | None, float | None]
INTS = st.none() | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.none() | st.floats(-1e6, 1e6)
PARTS = st.lists(st.lists(st.tuples(INTS, FLOATS), min_size=1, max_size=6), min_size=1, max_size=5)


def row(
    events: Sequence[Event], partition: int = 0, version: int = 1, **place: Any
) -> dict[str, Any]:
    """Fold events into one archive row, in plain Python."""
    ints = [i for i, _ in events if i is not None]
    floats = [f for _, f in events if f is not None]
    mean = sum(floats) / len(floats) if floats else 0.0
    return {
        "key_k": "a",
        "window_start": 0,
        "events": len(events),
        "n_i": len(ints),
        "sum_i": sum(ints),
        "min_i": min(ints, default=None),
        "max_i": max(ints, default=None),
        "sqlo_i": sum(i * i & (2**64 - 1) for i in ints),
        "sqhi_i": sum(i * i >> 64 for i in ints),
        "n_f": len(floats),
        "sum_f": math.fsum(floats),
        "min_f": min(floats, default=None),
        "max_f": max(floats, default=None),
        "m2_f": math.fsum((f - mean) ** 2 for f in floats),
        "version": version,
        "source_partition": partition,
    } | place


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    """Return the archive frame of rows."""
    return pl.DataFrame(rows, schema=archive_schema(LAYER), orient="row")


@given(PARTS)
def test_merged_partitions_are_the_fold_of_all_their_events(parts: list[list[Event]]) -> None:
    """Integers are the same to the last digit for any spread of events over partitions."""
    merged = merge_partitions(LAYER, frame(*(row(part, p) for p, part in enumerate(parts))))
    whole = row([event for part in parts for event in part])
    got = merged.row(0, named=True)
    assert dict(merged.schema) == cell_schema(LAYER)
    for column in ("sum_f", "m2_f", "source_partition"):
        del whole[column]
    assert {column: got[column] for column in whole} == whole


def test_rows_are_merged_a_part_of_the_keys_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of one merge; no step may take polars' one thread for long."""
    rows = [
        row(
            [(number, 0.5 * number)], number % 3, number,
            key_k=f"{number % 40}", window_start=number % 2,
        )
        for number in range(400)
    ]  # fmt: skip
    at_once = merge_partitions(LAYER, latest(LAYER, frame(*rows)))
    assert at_once.height == 40
    monkeypatch.setattr(tables.state.cell, "PART_ROWS_MAX", 9)
    newest = latest(LAYER, frame(*rows))
    assert newest.height == 120
    assert merge_partitions(LAYER, newest).equals(at_once)


@given(PARTS)
def test_integer_measures_are_exact(parts: list[list[Event]]) -> None:
    """Mean and variance of integers are the fractions' nearest floats, however large they are."""
    merged = merge_partitions(LAYER, frame(*(row(part, p) for p, part in enumerate(parts))))
    measures = measures_of(LAYER, merged)[0]
    ints = [i for part in parts for i, _ in part if i is not None]
    assert measures["count"] == sum(map(len, parts))
    assert measures["min_i"] == min(ints, default=None)
    assert measures["max_i"] == max(ints, default=None)
    if not ints:
        assert measures["sum_i"] is measures["mean_i"] is measures["variance_i"] is None
        return
    mean = Fraction(sum(ints), len(ints))
    assert measures["sum_i"] == sum(ints)
    assert measures["mean_i"] == float(mean)
    assert measures["variance_i"] == float(sum((i - mean) ** 2 for i in ints) / len(ints))


@given(PARTS)
def test_float_variance_agrees_with_the_exact_one(parts: list[list[Event]]) -> None:
    """Merged squared deviations stay within rounding of the standard library's exact result."""
    merged = merge_partitions(LAYER, frame(*(row(part, p) for p, part in enumerate(parts))))
    measures = measures_of(LAYER, merged)[0]
    floats = [f for part in parts for _, f in part if f is not None]
    if not floats:
        assert measures["mean_f"] is measures["variance_f"] is None
        return
    scale = max(map(abs, floats))
    assert measures["mean_f"] == pytest.approx(statistics.fmean(floats), abs=1e-12 * scale)
    wanted = statistics.pvariance(floats)
    assert measures["variance_f"] == pytest.approx(wanted, rel=1e-9, abs=1e-12 * scale**2)


def test_float_variance_keeps_small_deviations_on_a_large_mean() -> None:
    """Sums of squares would cancel to nothing, deviations do not."""
    parts = [[(None, 1e9 + d) for d in (0.0, 1.0)], [(None, 1e9 + d) for d in (2.0, 3.0)]]
    merged = merge_partitions(LAYER, frame(*(row(part, p) for p, part in enumerate(parts))))
    assert measures_of(LAYER, merged)[0]["variance_f"] == 1.25


def test_sums_pass_64_bits_unharmed() -> None:
    """A hundred of the largest integers add up beyond 64 bits."""
    top = 2**63 - 1
    merged = merge_partitions(LAYER, frame(*(row([(top, None)] * 2, p) for p in range(50))))
    measures = measures_of(LAYER, merged)[0]
    assert (measures["sum_i"], measures["mean_i"]) == (100 * top, float(top))
    assert measures["variance_i"] == 0.0


def test_a_partition_without_the_field_does_not_move_the_others() -> None:
    """A row with n = 0 adds events and nothing else."""
    merged = merge_partitions(LAYER, frame(row([(3, 1.5), (5, 2.5)]), row([(None, None)], 1)))
    measures = measures_of(LAYER, merged)[0]
    assert (measures["count"], measures["mean_i"], measures["min_i"]) == (3, 4.0, 3)
    assert (measures["mean_f"], measures["variance_f"]) == (2.0, 0.25)


def test_latest_keeps_the_largest_version_of_each_cell_and_partition() -> None:
    """Versions are compared inside one cell and source partition only."""
    rows = [
        row([(1, None)], partition=0, version=5),
        row([(2, None)], partition=0, version=9),
        row([(3, None)], partition=1, version=7),
        row([(4, None)], partition=0, version=2, window_start=1_000),
        row([(5, None)], partition=0, version=1, key_k="b"),
    ]
    for order in (rows, rows[::-1]):
        kept = latest(LAYER, frame(*order))
        assert sorted(kept["sum_i"].to_list()) == [2, 3, 4, 5]


def test_merged_cells_come_by_window_and_then_key_with_the_largest_version() -> None:
    """The order of answers does not depend on the order of rows."""
    rows = [
        row([(1, None)], partition, version, key_k=key, window_start=start)
        for partition, version in ((0, 3), (1, 8))
        for key in ("b", "a")
        for start in (1_000, 0)
    ]
    merged = merge_partitions(LAYER, frame(*rows))
    places = merged.select("window_start", "key_k", "version", "events").rows()
    assert places == [(0, "a", 8, 2), (0, "b", 8, 2), (1_000, "a", 8, 2), (1_000, "b", 8, 2)]
