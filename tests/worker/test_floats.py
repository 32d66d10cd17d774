"""Floats of any size go through every path as IEEE 754 says, and end no worker."""

from __future__ import annotations

import itertools
import math
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from agents.fold.small import SmallBatchFolder
from tables.measures.floats import float_sum
from tables.model.layer import Field, Layer, Map, Measure
from tables.model.window import NEVER_MS
from tables.query.cell_query import measure_columns
from tables.state.block import TupleRows
from tables.state.cell import archive_schema, cell_schema, measures_of, merge_partitions
from tables.state.input_plan import plans_of
from tables.state.small_merge import small_cells
from tests.support.common import accumulators, dataclasses_replace, run_of, small_map

KINDS = ("count", "sum", "mean", "min", "max", "variance")
FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [1.7976931348623157e308, -1.7976931348623157e308, 1e200, 20.5, 0.0, -0.0, 5e-324]
)
CHUNKS = st.lists(st.lists(FINITE, min_size=1, max_size=8), min_size=1, max_size=6)
FLOATS = st.floats()
WIDE = st.integers(-(2**127), 2**127 - 1)


def float_map() -> Map:
    """Return a map of one layer with every measure of a float."""
    themap = small_map()
    fields = (Field("origin", "string"), Field("carrier", "string"), Field("delay", "float"))
    measures = tuple(Measure(k, None if k == "count" else "delay") for k in KINDS)
    hour = dataclasses_replace(
        themap.layers[0], accumulators=accumulators("delay", "float"), measures=measures
    )
    source = dataclasses_replace(themap.sources[0], fields=fields)
    return dataclasses_replace(themap, sources=(source,), layers=(hour,))


def folded(values: list[float]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the cells of one chunk of these values, by tuples and by frames."""
    plan = plans_of(float_map())["flights.raw"]
    assert plan.source is not None
    event = {"at": 1, "type": "flight.x", "origin": "JFK", "carrier": "UA"}
    run, before = run_of([orjson.dumps(event | {"delay": v}) for v in values]), Before(NEVER_MS, {})
    small = SmallBatchFolder(plan.source, plan).fold([run], {0: before})
    general = Folder(plan).fold(Decoder(plan.source).decode([run]), {0: before})
    assert small is not None
    mine, theirs = small[0].blocks["hour"], general[0].blocks["hour"]
    assert isinstance(mine, TupleRows)
    assert isinstance(theirs, pl.DataFrame)
    return mine.frame(), theirs


def merged(layer: Layer, parts: list[pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the sums of partial cells, by tuples and by frames."""
    rows = pl.concat(parts).with_columns(
        version=pl.lit(1, pl.Int64), source_partition=pl.lit(0, pl.Int32)
    )[list(archive_schema(layer))]
    first, columns = len(layer.key) + 1, [column.to_list() for column in rows]
    small = small_cells(layer, columns[:first], columns[first:-1])
    return small, merge_partitions(layer, rows)


def bits(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Return rows with floats as texts, so that every zero and every nan is like itself."""
    return [tuple(map(repr, row)) for row in frame.rows()]


@given(st.lists(FLOATS, max_size=20))
def test_a_sum_of_floats_is_that_of_a_frame(values: list[float]) -> None:
    """They are equal bit for bit, with infinite values and NaN."""
    values = [value + 0.0 for value in values]
    frame = pl.DataFrame(
        {"key": [0] * len(values), "value": values}, schema_overrides={"value": pl.Float64}
    )
    wanted = frame.group_by("key").agg(pl.col("value").sum())["value"].to_list() or [0.0]
    assert repr(float_sum(values)) == repr(wanted[0])


@pytest.mark.slow
@given(CHUNKS)
def test_floats_of_any_size_come_to_the_same_by_tuples_and_by_frames(
    chunks: list[list[float]],
) -> None:
    """They do in one chunk or several, and if their sum or squares are not a float any more."""
    layer = float_map().layers[0]
    found = [folded(values) for values in chunks]
    for small, general in found:
        assert bits(small) == bits(general)
    small, general = merged(layer, [cells for cells, _ in found])
    assert bits(small.drop("m2_delay")) == bits(general.drop("m2_delay"))
    for one, other in zip(small["m2_delay"], general["m2_delay"], strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.slow
@given(CHUNKS)
def test_cutting_into_chunks_changes_no_result(chunks: list[list[float]]) -> None:
    """Counts, least and greatest are the same; sums but for rounding, unless they overflow."""
    layer = float_map().layers[0]
    values = list(itertools.chain(*chunks))
    whole = folded(values)[0].to_dicts()[0]
    parts = merged(layer, [folded(chunk)[0] for chunk in chunks])[0].to_dicts()[0]
    for name in ("events", "n_delay", "min_delay", "max_delay"):
        assert repr(parts[name]) == repr(whole[name])
    size = math.fsum(abs(value) / 64 for value in values)
    if size < 1e306:
        assert parts["sum_delay"] == pytest.approx(whole["sum_delay"], rel=1e-9, abs=size * 1e-9)
    if size < 1e150:
        tolerance = (size * 64) ** 2 * 1e-9
        assert parts["m2_delay"] == pytest.approx(whole["m2_delay"], rel=1e-9, abs=tolerance)


@given(n=st.integers(0, 2**63 - 1), total=FLOATS, m2=FLOATS, least=FLOATS)
def test_measures_of_any_floats_are_answered(n: int, total: float, m2: float, least: float) -> None:
    """A cell may hold any floats; columns have null for NaN and infinity."""
    layer = float_map().layers[0]
    cells = pl.DataFrame(
        [("JFK", "UA", 0, n, n, total, least, least, m2, 1)],
        schema=cell_schema(layer), orient="row",
    )  # fmt: skip
    found = measures_of(layer, cells)[0]
    assert (found["mean_delay"] is None) == (n == 0)
    for column in measure_columns(layer, cells)[1:]:
        assert column[0] is None or math.isfinite(column[0])


@given(n=st.integers(0, 2**63 - 1), total=WIDE, high=WIDE, low=WIDE)
def test_measures_of_any_integers_are_answered(n: int, total: int, high: int, low: int) -> None:
    """So are integers of 128 bits, beyond all events; a column of 38 digits has null for them."""
    layer = small_map().layers[0]
    cells = pl.DataFrame(
        [("JFK", "UA", 0, n, n, total, 1, 1, low, high, 1)],
        schema=cell_schema(layer), orient="row",
    )  # fmt: skip
    found = measures_of(layer, cells)[0]
    columns = {column.name: column[0] for column in measure_columns(layer, cells)}
    assert found["sum_delay"] == (total if n else None)
    assert columns["sum_delay"] == (total if n and abs(total) < 10**38 else None)
