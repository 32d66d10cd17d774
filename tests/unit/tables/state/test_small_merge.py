"""Few cells: plain Python gives the same rows as queries over frames."""

from __future__ import annotations

import random
from typing import Any

import polars as pl
import pytest

from tables.query.cell_query import Limits
from tables.query.top import parse_top_query, top_rows
from tables.state.block import encode_block
from tables.state.cell import cell_schema
from tables.state.layer_table import FoldTable, LayerTable
from tables.state.rollup_table import RollupTable, rollup_schema
from tests.support.common import HOUR_MS, accumulators, dataclasses_replace, small_map
from tests.support.general_way import use_frames

HOURS, DAYS = small_map().layers
INTS = (HOURS, DAYS)
FLOATS = tuple(
    dataclasses_replace(layer, accumulators=accumulators("delay", "float")) for layer in INTS
)


def some_rows(rng: random.Random, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Return some rows of a few keys and windows; their values need not be of real events."""

    def value(name: str, kind: pl.DataType) -> Any:
        if name.startswith("key_"):
            return rng.choice(["AA", "B6", "UA"])
        if name in ("window_start", "fine_start"):
            is_settled = name == "fine_start" and rng.random() < 0.2
            return None if is_settled else rng.randrange(5) * HOUR_MS
        if name.startswith(("min_", "max_")) and rng.random() < 0.3:
            return None
        number = rng.randrange(2 if name == "source_partition" else 5)
        if kind == pl.Int128():
            return number * 2**70
        return number / 4 if kind == pl.Float64() else number

    rows = [tuple(value(*column) for column in schema.items()) for _ in range(rng.randint(1, 8))]
    return pl.DataFrame(rows, schema=schema, orient="row")


def check_same(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """Assert that both have the same rows in any order, but for the last bits of floats."""
    assert one.schema == other.schema
    order = [name for name, kind in one.schema.items() if not kind.is_float()]
    one, other = one.sort(order), other.sort(order)
    assert one.select(order).rows() == other.select(order).rows()
    for name in set(one.columns) - set(order):
        assert one[name].to_list() == pytest.approx(other[name].to_list(), abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("layers", [INTS, FLOATS], ids=["int", "float"])
def test_tables_answer_the_same(layers: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial cells add up; the latest contribution counts, beside the settled cells."""
    rng = random.Random(seed)
    hours, days = layers
    tables: list[tuple[LayerTable, dict[str, pl.DataType]]] = [
        (FoldTable(hours), cell_schema(hours)), (RollupTable(days, hours), rollup_schema(days)),
    ]  # fmt: skip
    for table, schema in tables:
        for version in range(1, rng.randint(2, 6)):
            rows = some_rows(rng, schema).drop("version")
            if isinstance(table, RollupTable):
                # A delta has one value of a contribution.
                rows = rows.unique(table.contribution).with_columns(
                    contributed=pl.lit(version, pl.Int64)
                )
            table.load(version, version, encode_block(rows))
        # A range and a key that have cells.
        some = rng.choice(table.cells().rows(named=True))
        key = rng.choice([{}, {"key_carrier": some["key_carrier"]}])
        start = some["window_start"]
        stop = start + rng.randint(1, 3) * HOUR_MS
        small = table.collect_in(start, stop, key)()
        assert small.height
        parts = (
            table.collect_parts_in(start, stop, key)() if isinstance(table, RollupTable) else small
        )
        with monkeypatch.context() as patch:
            use_frames(patch)
            check_same(small, table.collect_in(start, stop, key)())
            if isinstance(table, RollupTable):
                check_same(parts, table.collect_parts_in(start, stop, key)())


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("seed", range(10))
def test_the_first_are_the_same(seed: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same too if some keys have no value to be ranked by."""
    words = [("by", "mean_delay"), ("n", "3"), ("order", order), ("from", "0"), ("to", "3600000")]
    top = parse_top_query(small_map(), "hour", words, Limits())
    rows = some_rows(random.Random(seed), cell_schema(top.query.rows))
    small = top_rows(top, rows)
    use_frames(monkeypatch)
    assert small.rows() == top_rows(top, rows).rows()


def near_ties(seed: int) -> pl.DataFrame:
    """Return rows of nine keys whose means are one float; computed from columns, they are not."""
    rng = random.Random(seed)
    schema = cell_schema(HOURS)
    base, rows = rng.getrandbits(70) | 1, []
    for at in range(9):
        n = rng.randint(1, 7)
        row = dict.fromkeys(schema, 0) | {"events": n, "n_delay": n, "sum_delay": base * n}
        rows.append(row | {"key_origin": f"A{at}", "key_carrier": "UA"})
    return pl.DataFrame(rows, schema=schema)


def test_keys_that_are_equal_but_for_rounding_are_ranked_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both ways agree, because the general one leaves a margin; without it, it would drop some."""
    words = [("by", "mean_delay"), ("n", "3"), ("from", "0"), ("to", "3600000")]
    top = parse_top_query(small_map(), "hour", words, Limits())
    found = [near_ties(seed) for seed in range(20)]
    want = [top_rows(top, rows).rows() for rows in found]
    use_frames(monkeypatch)
    assert [top_rows(top, rows).rows() for rows in found] == want
    monkeypatch.setattr("tables.query.top.CLOSE", 0.0)
    assert [top_rows(top, rows).rows() for rows in found] != want
