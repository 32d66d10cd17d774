"""Top: the first keys by a measure are those that sorting all of them gives."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import polars as pl
import pytest

import tables.query.top
from tables.model.errors import QueryError
from tables.model.layer import Layer
from tables.query.cell_query import Limits, UnknownLayerError
from tables.query.top import TopQuery, parse_top_query, top_rows
from tables.state.cell import cell_schema, measures_of
from tests.support.common import DAY_MS, accumulators, dataclasses_replace, small_map
from tests.support.web_support import stored

MAP = small_map()
RANGE = [("from", "0"), ("to", str(DAY_MS))]


def ask(by: str, n: int = 3, order: str = "desc", layer: str = "hour") -> TopQuery:
    """Return a request for the top of a day."""
    words = [*RANGE, ("by", by), ("n", str(n)), ("order", order)]
    return parse_top_query(MAP, layer, words, Limits())


def some_rows(rng: random.Random, top: TopQuery, delays: list[int]) -> pl.DataFrame:
    """Return rows of different keys, in order, some of them equal in the measure."""
    rows = []
    for number in range(40):
        events = rng.choices(delays, k=rng.randint(1, 4))
        row: dict[str, Any] = stored(f"{number:02d}", delays=events)
        if rng.random() < 0.2:
            row |= {"n_delay": 0, "sum_delay": 0, "min_delay": None, "max_delay": None,
                    "sqlo_delay": 0, "sqhi_delay": 0}  # fmt: skip
        rows.append(row)
    return pl.DataFrame(rows, schema=cell_schema(top.query.rows), orient="row")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize(
    "by", ["count", "sum_delay", "min_delay", "max_delay", "mean_delay", "variance_delay"]
)
def test_the_first_are_those_of_all_in_order(
    by: str, order: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near ties are told apart exactly; equal keys are in their own order; nulls come last.

    Rows come in any order, and are ranked all at once, or a few at a time.
    """
    if seed > 1:
        monkeypatch.setattr(tables.query.top, "SMALL_ROWS_MAX", 0)
        monkeypatch.setattr(tables.query.top, "PART_ROWS_MAX", 7)
    rng = random.Random(seed)
    top = ask(by, rng.choice([1, 5, 100]), order)
    rows = some_rows(rng, top, [2**53, 2**53 + 1, -(2**60), 7, 8, 0] if seed % 2 else [1, 2, 3])
    measured: list[tuple[Any, int]] = [
        (measure[by], at)
        for at, measure in enumerate(measures_of(top.query.rows, rows))
        if measure[by] is not None
    ]
    best = [at for _, at in sorted(measured, key=lambda pair: pair[0], reverse=order == "desc")]
    best += sorted(set(range(rows.height)) - set(best))
    expected = [rows["key_origin"][at] for at in best[: top.n]]
    mixed = rows.sample(fraction=1, shuffle=True, seed=seed)
    assert top_rows(top, mixed)["key_origin"].to_list() == expected


@pytest.mark.parametrize("by", ["count", "sum_delay", "variance_delay"])
def test_of_many_equal_keys_few_are_computed(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Equal values give equal measures; keys of other values are not left out."""
    top = ask(by, 5)
    found = []

    def counted(layer: Layer, frame: pl.DataFrame) -> list[dict[str, Any]]:
        found.append(frame.height)
        return measures_of(layer, frame)

    monkeypatch.setattr(tables.query.top, "measures_of", counted)
    few = [stored("9", delays=[3, 5, 70]), stored("8", delays=[4, 4, 71])]
    many = [stored(f"{number:06d}", delays=[3, 4]) for number in range(30_000)]
    rows = pl.DataFrame([*many, *few], schema=cell_schema(top.query.rows), orient="row")
    first = top_rows(top, rows.sample(fraction=1, shuffle=True, seed=1))["key_origin"].to_list()
    assert first == ["8", "9", "000000", "000001", "000002"]
    assert sum(found) <= 20


@pytest.mark.parametrize("keys", [7, 300])
@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("by", ["sum_delay", "mean_delay", "variance_delay", "min_delay"])
def test_what_is_no_finite_number_comes_last(by: str, order: str, keys: int) -> None:
    """It does in either order, for any number of keys; each of them is answered as null."""
    top = ask(by, 1, order)
    layer = dataclasses_replace(top.query.rows, accumulators=accumulators("delay", "float"))
    query = dataclasses.replace(top.query, rows=layer)
    top = dataclasses.replace(top, query=query)
    least = math.inf if by == "variance_delay" else -math.inf
    odd = {0: math.inf, 1: least, 2: math.nan, 3: None}
    rows = pl.DataFrame(
        [
            (f"{number:03d}", "UA", 0, 1, 0 if odd.get(number, 0) is None else 1,
             *[odd.get(number, float(number))] * 4, 1)
            for number in range(keys)
        ],
        schema=cell_schema(query.rows), orient="row",
    )  # fmt: skip
    numbers = [f"{number:03d}" for number in range(4, keys)]
    whole = (numbers[::-1] if order == "desc" else numbers) + ["000", "001", "002", "003"]
    for n in (1, 2, keys - 4, keys - 2, keys, keys + 5):
        found = top_rows(dataclasses.replace(top, n=n), rows)["key_origin"].to_list()
        assert found == whole[:n], n


def test_a_request_is_one_to_the_layers_family() -> None:
    """It asks for all keys of the layer over the whole range, with its own measures."""
    top = ask("sum_delay", layer="day")
    assert (top.query.family.name, top.layer.name) == ("hour", "day")
    assert [field.name for field in top.query.rows.key] == ["carrier"]
    assert (top.query.step, top.n) == (None, 3)


def test_what_is_wrong_is_told_at_once() -> None:
    """A measure is needed; parameters that would change the ranked rows are refused."""
    with pytest.raises(QueryError) as caught:
        parse_top_query(
            MAP, "day", [*RANGE, ("step", "1h"), ("key.origin", "JFK"), ("n", "0")], Limits()
        )
    text = str(caught.value)
    for part in (
        "by: missing; want one of count",
        "step: no such",
        "key.origin: no such",
        "n: got",
    ):
        assert part in text
    with pytest.raises(UnknownLayerError):
        parse_top_query(MAP, "week", RANGE, Limits())
