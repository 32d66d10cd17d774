"""Measures: the forms of each step give the same number, and columns keep their order."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from tables.measures.kind import AccumulatorKind, MeasureKind
from tables.measures.registry import MEASURES, accumulators_of, is_accumulator, kind_of
from tables.model.layer import Measure
from tables.state.cell import merge_rows
from tables.state.small_merge import merge_small
from tests.support.common import seeds, small_map

FORMS = [
    pytest.param(kind, number, id=f"{kind.name}-{number}")
    for kind in MEASURES.values()
    for number in kind.forms
]
FoldColumn = Callable[[pl.Expr], pl.Expr]
TYPES = {"int": pl.Int64(), "float": pl.Float64()}
EXTREMES: dict[str, list[Any]] = {
    "int": [2**63 - 1, -(2**63), 3_037_000_499, 3_037_000_500, 2**31, 0, 1],
    "float": [1.7976931348623157e308, -1.7976931348623157e308, 1e200, 2.0**53, 1.0, 5e-324, 0.0],
}
CELLS = 300


def number_of(rng: random.Random, number: str, *, small: bool) -> Any:
    """Return a number; there is one zero, as in events that are folded."""
    if not small and rng.random() < 0.5:
        return rng.choice(EXTREMES[number])
    return rng.randint(-9, 9) if number == "int" else rng.uniform(-1e3, 1e3)


def values_of(rng: random.Random, number: str, count_max: int) -> list[list[Any]]:
    """Return the values of the events of some cells; of each cell all are small, or any."""
    return [
        [
            None if rng.random() < 0.1 else number_of(rng, number, small=is_small)
            for _ in range(rng.randint(1, count_max))
        ]
        for is_small in rng.choices([True, False], k=CELLS)
    ]


def measured(values: list[Any], *, has_field: bool) -> list[Any]:
    """Return the values that an accumulator takes: all if it is of no field."""
    return [value for value in values if value is not None] if has_field else values


def fold_ways(kind: AccumulatorKind, largest: Any, count: int) -> list[FoldColumn]:
    """Return the aggregations that a chunk of such values may be folded by."""
    if kind.narrow is None or not kind.narrow[1](largest, count):
        return [kind.fold_column]
    return [kind.fold_column, kind.narrow[0]]


@pytest.mark.parametrize("seed", seeds(5))
@pytest.mark.parametrize(("kind", "number"), FORMS)
def test_a_fold_of_columns_gives_what_a_fold_of_values_gives(
    kind: MeasureKind, number: str, seed: int
) -> None:
    """Both are equal to the last bit; the size of a chunk's values chooses the aggregation."""
    rng, form = random.Random(seed), kind.forms[number]
    for bound in (9, math.inf):
        cells = values_of(rng, number, 40)
        cells = [[value and max(-bound, min(value, bound)) for value in cell] for cell in cells]
        events = [(key, value) for key, cell in enumerate(cells) for value in cell]
        order = sorted(range(len(events)), key=lambda _: rng.random())
        frame = pl.DataFrame(
            [events[at] for at in order],
            schema={"key": pl.Int64(), "x": TYPES[number]},
            orient="row",
        )
        wanted = {}
        for (key,), part in frame.group_by("key", maintain_order=True):
            values = measured(part["x"].to_list(), has_field=kind.has_field)
            wanted[key] = repr(form.result(*(one.fold_values(values) for one in form.stored)))
        largest = max(abs(value) for _, value in events if value is not None)
        ways = [fold_ways(stored, largest, len(events)) for stored in form.stored]
        for steps in itertools.product(*ways):
            exprs = [step(pl.col("x")).alias(str(place)) for place, step in enumerate(steps)]
            rows = frame.group_by("key", maintain_order=True).agg(exprs).rows()
            assert {key: repr(form.result(*cell)) for key, *cell in rows} == wanted


@pytest.mark.parametrize("seed", seeds(5))
@pytest.mark.parametrize(("kind", "number"), FORMS)
def test_a_merge_of_columns_gives_what_a_merge_of_values_gives(
    kind: MeasureKind, number: str, seed: int
) -> None:
    """Both are equal to the last bit, and null for the same cells, those with an unknown part."""
    rng = random.Random(seed)
    measure = Measure(kind.name, "x" if kind.has_field else None)
    accumulators = accumulators_of([measure], {"x": number})  # type: ignore[dict-item]
    rows = []
    for values in values_of(rng, number, 5):
        unknown = rng.choice(accumulators) if rng.random() < 0.1 else None
        row = [
            None
            if acc == unknown
            else kind_of(acc).fold_values(measured(values, has_field=acc.field is not None))
            for acc in accumulators
        ]
        rows.append((rng.randrange(CELLS // 4), *row, rng.randrange(9)))
    schema = {"key": pl.Int64(), **{acc.column: kind_of(acc).type for acc in accumulators}}
    frame = pl.DataFrame(rows, schema=schema | {"version": pl.Int64()}, orient="row")
    merged = merge_rows(frame, ["key"], accumulators).rows()
    small = merge_small(accumulators, (((key,), tuple(row)) for key, *row in rows))
    assert {key: repr(row) for key, *row in merged} == {
        key: repr(list(row)) for (key,), row in small.items()
    }


def test_cells_store_accumulators_in_one_order() -> None:
    """The map may name measures in any order; columns of archives follow from the one."""
    types = {"x": "int", "y": "float"}
    measures = [Measure(name, field) for field in types for name in MEASURES if name != "count"]
    for order in (measures, measures[::-1]):
        found = accumulators_of(order, types)  # type: ignore[arg-type]
        columns = [acc.column for acc in found if acc.field != "y"]
        assert columns == ["events", "n_x", "sum_x", "min_x", "max_x", "sqlo_x", "sqhi_x"]
        assert [acc.kind for acc in found if acc.field == "y"] == ["n", "sum", "min", "max", "m2"]
    layer = small_map().layers[0]
    assert accumulators_of(layer.measures, {"delay": "int"}) == layer.accumulators


@pytest.mark.parametrize(
    ("column", "wanted"),
    [("events", True), ("m2_x", True), ("sum_of_all", True), ("key_x", False), ("sum", False),
     ("sum_", False), ("window_start", False), ("source_partition", False), ("version", False)],
)  # fmt: skip
def test_columns_of_accumulators_are_told_from_others(column: str, *, wanted: bool) -> None:
    """Only they may come and go between revisions of a map."""
    assert is_accumulator(column) == wanted
