"""A measure is added in one place, and goes from map file and events to every answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import polars as pl
import pytest

from agents.query.reader import Reader
from app.mapfile.load import parse_map
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.measures.kind import AccumulatorKind, MeasureForm, MeasureKind, Values
from tables.measures.registry import ACCUMULATORS, MEASURES, register
from tables.measures.sum import N
from tables.model.errors import MapError
from tables.model.layer import Map
from tables.query.cell_query import Limits, measure_columns
from tables.query.family import parse_family_query
from tables.query.top import parse_top_query, top_rows
from tables.state.cell import in_order, measures_of
from tests.support.common import DAY_MS, MemoryLog
from tests.support.general_way import use_frames
from tests.support.local_worker import RAW, LocalWorker, archived, fill
from tests.support.owned import Owned


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
        monkeypatch.setattr("agents.fold.small.SMALL_EVENTS_MAX", -1)
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
    """It goes from map file and events to state, layer topic, archive and answers, through kills.

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
