"""Measures: both forms of each give the same, and a new one is added in one place."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from house import RAW, LocalWorker, archived, fill
from support import DAY_MS, MemoryLog, seeds, small_map
from test_few_cells import use_frames
from test_reader import Owned

from agents.query.reader import Reader
from app.mapfile.load import parse_map
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.measures.kind import AccumulatorKind, MeasureForm, MeasureKind, Values
from tables.measures.registry import (
    ACCUMULATORS,
    MEASURES,
    accumulators_of,
    is_accumulator,
    kind_of,
    register,
)
from tables.measures.sum import N
from tables.model.errors import MapError
from tables.model.layer import Map, Measure
from tables.query.cell_query import Limits
from tables.query.family import parse_family_query
from tables.query.measure_columns import measure_columns
from tables.query.top import parse_top_query, top_rows
from tables.state.cell import in_order, measures_of, merge_rows
from tables.state.small_merge import merge_few

FORMS = [
    pytest.param(kind, number, id=f"{kind.name}-{number}")
    for kind in MEASURES.values()
    for number in kind.forms
]
FoldColumn = Callable[[pl.Expr], pl.Expr]
TYPES = {"int": pl.Int64(), "float": pl.Float64()}
EXTREMES = {
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
    """To the last bit, by whichever aggregation: it depends on how large a chunk's values are."""
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
    """To the last bit, and null for the same cells: those of which a part is not known."""
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
    few = merge_few(accumulators, (((key,), tuple(row)) for key, *row in rows))
    assert {key: repr(row) for key, *row in merged} == {
        key: repr(list(row)) for (key,), row in few.items()
    }


def test_cells_store_accumulators_in_one_order() -> None:
    """Whatever order the map names measures in; columns of archives follow from it."""
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


def _below_column(values: pl.Expr) -> pl.Expr:
    return (values < 0).sum().cast(pl.Int64)


def _below(values: Values) -> int:
    return sum(value < 0 for value in values)


def _share(n: int | None, below: int | None) -> float | None:
    return below / n if n and below is not None else None


def _estimate(n: pl.Expr, below: pl.Expr) -> pl.Expr:
    return pl.when(n > 0).then(below / n)


BELOW = AccumulatorKind("below", pl.Int64(), _below_column, _below)
NEGATIVE = MeasureKind(
    "negative", {"int": MeasureForm((N, BELOW), pl.Float64(), _share, _estimate)}
)
"""The share of a field's values that are below zero: a measure that nothing else knows of."""

BEFORE = """
revision = 1
name = "small"

[sources.flights]
topic = "flights.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["origin"]
fields = {origin = "string", carrier = "string", delay = "int", late = "bool"}

[layers.hour]
source = "flights"
events = ["flight.*"]
key = ["origin", "carrier"]
window = "1h"
measures = ["count"]
allowed_lateness = "1h"

[layers.day]
from = "hour"
key = ["carrier"]
window = "1d"
"""
ADDED = BEFORE.replace('["count"]', '["count", "negative(delay)"]').replace("= 1\n", "= 2\n", 1)


@pytest.fixture
def added() -> Iterator[Map]:
    """Add the measure, in the one place; give a map that names it."""
    register(NEGATIVE)
    yield parse_map(ADDED, "added.toml")
    del MEASURES[NEGATIVE.name], ACCUMULATORS[BELOW.name, "int"]


@pytest.fixture(params=["tuples", "frames"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have events and cells be few, or too many for tuples."""
    if request.param == "frames":
        monkeypatch.setattr("agents.fold.small.FEW_EVENTS_MAX", -1)
        use_frames(monkeypatch)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[EmbeddedArchive]:
    """Return an archive that has tables of the map without the measure; it is closed."""
    made = EmbeddedArchive(tmp_path / "archive")
    await made.open(parse_map(BEFORE, "before.toml"))
    await made.close()
    yield made
    await made.close()


@pytest.mark.usefixtures("_form")
async def test_a_new_measure_goes_all_the_way(
    added: Map, archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """From map file and events to state, layer topic, archive and answers, through kills.

    No module but the registry knows of it.
    """
    day = added.layer("day")
    await archive.open(added)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", added)
    events = fill(house.log, 7)
    known: dict[tuple[str, int], list[int]] = defaultdict(list)
    for at, _, carrier, delay in events:
        if delay is not None:
            known[carrier, at // DAY_MS * DAY_MS].append(delay)
    wanted = {place: _below(delays) / len(delays) for place, delays in known.items()}
    await house.work_and_die({RAW: 80, added.input_topic(day): 5}, 7, keep_state=True)
    await house.settle()
    cells = await archived(house, "day")
    places = list(zip(cells["key_carrier"], cells["window_start"], strict=True))
    shares = [measures["negative_delay"] for measures in measures_of(day, cells)]
    assert dict(zip(places, shares, strict=True)) == wanted
    assert measure_columns(day, cells)[1].dtype == pl.Float64()

    reader = Reader(
        added, Owned(house), ArchiveCache(archive, 100_000), Limits(), lambda: 10 * DAY_MS
    )
    range_ = [("from", "0"), ("to", str(4 * DAY_MS))]
    words = [*range_, ("step", "1d"), ("group", "carrier"), ("measures", "negative_delay")]
    query = parse_family_query(added, "hour", words, Limits())
    rows = (await reader.answer(query)).rows
    places = list(zip(rows["key_carrier"], rows["window_start"], strict=True))
    shares = [measures["negative_delay"] for measures in measures_of(query.rows, rows)]
    assert dict(zip(places, shares, strict=True)) == wanted

    top = parse_top_query(added, "day", [*range_, ("by", "negative_delay"), ("n", "1")], Limits())
    first = top_rows(top, in_order((await reader.answer(top.query)).rows, ["key_carrier"]))
    by_carrier: dict[str, list[int]] = defaultdict(list)
    for (carrier, _), delays in known.items():
        by_carrier[carrier] += delays
    most = max(by_carrier, key=lambda name: _below(by_carrier[name]) / len(by_carrier[name]))
    assert first["key_carrier"].to_list() == [most]
    await house.kill()


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("negative(late)", "cannot measure negative.late.: .*; got bool; want int;"),
        ("negative", "got 'negative'; want count, .*, variance.field. or negative.field.;"),
        ("positive(delay)", "got 'positive.delay.'; want count, .* or negative.field.;"),
    ],
)
def test_the_map_file_says_what_a_new_measure_takes(text: str, problem: str) -> None:
    """Messages name all measures there are, and the types of fields."""
    with pytest.raises(MapError, match=problem):
        parse_map(ADDED.replace("negative(delay)", text), "added.toml")


@pytest.mark.usefixtures("added")
def test_a_measure_is_added_once() -> None:
    """Two of one name, or two accumulators, would share columns."""
    for name in ("negative", "other_share"):
        with pytest.raises(AssertionError):
            register(MeasureKind(name, NEGATIVE.forms))
    other = AccumulatorKind("below", pl.Int64(), _below_column, _below)
    with pytest.raises(AssertionError):
        register(
            MeasureKind("other", {"int": MeasureForm((other,), pl.Int64(), _share, _estimate)})
        )
