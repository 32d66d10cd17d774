"""Top: the keys of a layer with the greatest, or least, of one measure over a range.

Every key of the range is added up before any is ranked, so the answer is exact however the key is
spread over windows and partitions. Ranking compares columns first and computes measures, with
Python's exact integers, only of keys that may be among the first.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import polars as pl

from tables.measures.registry import form_of, stored_for
from tables.model.errors import QueryError
from tables.model.layer import Layer, Map, Measure, Scalar
from tables.query.cell_query import Limits, find_layer
from tables.query.family import FamilyQuery, family_of, family_parameters, parse_family_query
from tables.query.parameters import Parameter, read_parameters
from tables.state.cell import first_in_order, in_order, in_parts, measures_of
from tables.state.small_merge import SMALL_ROWS_MAX

N_DEFAULT = 10

CLOSE = 1e-9
"""Relative error of a measure that is computed from columns of floats, with a wide margin."""

PART_ROWS_MAX = 20_000
"""Keys whose measures are computed, and ranked, at a time: many keys may be equal."""

_NOT_OURS = frozenset({"step", "group", "measures", "limit", "cursor"})


@dataclasses.dataclass(frozen=True, slots=True)
class TopQuery:
    """A checked request: ``query`` gives one row a key, of which the first ``n`` are wanted."""

    query: FamilyQuery
    layer: Layer
    by: Measure
    n: int
    descending: bool


@functools.lru_cache(1_024)
def top_parameters(themap: Map, layer: Layer, limits: Limits) -> tuple[Parameter, ...]:
    """Return the parameters of a request for the top keys of a layer."""
    names = {"", *(field.name for field in layer.key)}
    theirs = family_parameters(family_of(themap, layer.name), limits)
    return (
        Parameter.choice(
            "by", "The measure that keys are ranked by.",
            [measure.name for measure in layer.measures], required=True,
        ),
        Parameter.whole("n", f"How many keys; left out, {N_DEFAULT}.", 1, limits.limit_max),
        Parameter.choice(
            "order", "desc, the greatest first, or asc; left out, desc.", ["desc", "asc"]
        ),
        *(
            parameter
            for parameter in theirs
            if parameter.name not in _NOT_OURS and parameter.name.partition(".")[2] in names
        ),
    )  # fmt: skip


def parse_top_query(
    themap: Map,
    layer_name: str,
    parameters: Iterable[tuple[str, str]],
    limits: Limits,
    now_ms: int = 0,
) -> TopQuery:
    """Check the parameters of a request for the top keys of a layer.

    ``now_ms`` is the wall clock, which relative times refer to.

    Raises:
        UnknownLayerError: the map has no such layer.
        QueryError: some parameters cannot be used; the message names all of them.
    """
    layer = find_layer(themap, layer_name)
    given = list(parameters)
    problems: list[str] = []
    known = top_parameters(themap, layer, limits)
    values = read_parameters(known, given, problems)
    if problems:
        raise QueryError(f"cannot read the top of {layer_name}: {'; '.join(problems)}")
    mine = {"by", "n", "order"}
    rest = [(name, text) for name, text in given if name not in mine]
    rest += [("group", field.name) for field in layer.key] or [("group", "-")]
    rest += [("measures", measure.name) for measure in layer.measures]
    query = parse_family_query(themap, layer_name, rest, limits, now_ms)
    by = next(measure for measure in layer.measures if measure.name == values["by"])
    query = dataclasses.replace(query, ranked=by)
    return TopQuery(
        query, layer, by, values.get("n", N_DEFAULT), values.get("order", "desc") == "desc"
    )


def top_rows(top: TopQuery, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the first keys, in order of rank; equal ones in order of their key.

    ``rows`` are those of ``top.query``. Keys without the measure, and those whose measure is not a
    finite number, which is answered as null too, come last in either order.
    """
    if rows.height > SMALL_ROWS_MAX:
        rows = _candidates(top, rows)
    if rows.height > PART_ROWS_MAX:
        rows = _some_of_each(top, rows)
    found = rows.clear()
    for part in rows.iter_slices(PART_ROWS_MAX):
        found = _first(top, pl.concat([found, part]))
    return found


def _first(top: TopQuery, rows: pl.DataFrame) -> pl.DataFrame:
    ranked = in_order(rows, ["window_start", *top.query.rows.key_columns])
    values = [one[top.by.name] for one in measures_of(top.query.rows, ranked)]
    numbers = {at: value for at, value in enumerate(values) if _is_number(value)}
    order = sorted(numbers, key=numbers.__getitem__, reverse=top.descending)  # type: ignore[arg-type]
    order += [at for at in range(len(values)) if at not in numbers]
    return ranked[order[: top.n]]


def _is_number(value: Scalar | None) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _candidates(top: TopQuery, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that may be among the first."""
    value, scale = _estimate(top.by, top.query.rows)
    measured = rows.select(value.alias("value"), (CLOSE * scale.abs()).alias("error"))
    ranks = measured["value"] if top.descending else -measured["value"]
    error = measured["error"]
    is_number = ranks.is_finite().fill_null(value=False)
    numbers = ranks.filter(is_number)
    if len(numbers) < top.n:
        keys = ["window_start", *top.query.rows.key_columns]
        others = first_in_order(rows.filter(~is_number), keys, top.n - len(numbers))
        return pl.concat([rows.filter(is_number), others])
    last = (ranks - error).filter(is_number).top_k(top.n).min()
    assert isinstance(last, float), "there are at least n"
    return rows.filter(is_number & (ranks + error >= last))


def _some_of_each(top: TopQuery, rows: pl.DataFrame) -> pl.DataFrame:
    """Return, of rows whose measure comes from the same values, those of the first keys alone."""
    values = stored_for(top.query.rows, top.by)
    keys = ["window_start", *top.query.rows.key_columns]
    rank = pl.int_range(pl.len()).over(values)
    return in_parts(rows, values, lambda part: in_order(part, keys).filter(rank < top.n))


def _estimate(measure: Measure, layer: Layer) -> tuple[pl.Expr, pl.Expr]:
    """Return a measure in floats, and the magnitude that its relative error CLOSE refers to."""
    form = form_of(layer, measure)
    columns = [pl.col(name).cast(pl.Float64) for name in stored_for(layer, measure)]
    value = form.estimate(*columns)
    return value, value if form.magnitude is None else form.magnitude(*columns)
