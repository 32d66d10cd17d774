"""Families: a base layer with all layers that descend from it, asked as one.

A reader names the family, a time range and the shape of the rows; which layers the answer comes
from is the planner's business (``tables.query.planner``). Fields that are neither grouped by nor
named are added up over.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from tables.measures.registry import stored_for
from tables.model.errors import QueryError
from tables.model.layer import EVENTS, Accumulator, Layer, Map, Measure, Scalar
from tables.model.window import Window
from tables.query.cell_query import (
    LIMIT_DEFAULT,
    Limits,
    Position,
    decode_cursor,
    find_layer,
)
from tables.query.parameters import Parameter, filter_parameters, read_parameters
from tables.query.time_range import TimeRange, range_of

NO_FIELD = "-"
"""The only ``group`` of a request that adds everything up; no field can have this name."""


@dataclasses.dataclass(frozen=True, slots=True)
class KeyFilter:
    """The keys that are asked for: for each named field, some values, or those with a prefix."""

    values: Mapping[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> KeyFilter:
        """Return the filter of parameters like ``key.<field>`` and ``prefix.<field>``."""
        return cls(_named(values, "key."), _named(values, "prefix."))

    @property
    def fields(self) -> frozenset[str]:
        """The names of the fields that are restricted."""
        return frozenset(self.values) | frozenset(self.prefixes)

    @property
    def single(self) -> dict[str, Scalar]:
        """The fields that can have one value only, with it."""
        return {name: values[0] for name, values in self.values.items() if len(values) == 1}

    @property
    def is_single(self) -> bool:
        """Whether :attr:`single` is the whole filter."""
        return not self.prefixes and all(len(values) == 1 for values in self.values.values())

    def keys_of(self, layer: Layer, most: int) -> list[dict[str, Scalar]] | None:
        """Return all keys of a layer that pass, None if they are not known or too many."""
        choices = [self.values.get(field.name, ()) for field in layer.key]
        if not 0 < math.prod(len(values) for values in choices) <= most:
            return None
        names = [field.name for field in layer.key]
        return [dict(zip(names, key, strict=True)) for key in itertools.product(*choices)]


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """Layers that descend from one base layer, which is the first; finer ones before coarser."""

    layers: tuple[Layer, ...]

    @property
    def base(self) -> Layer:
        """The layer that folds events."""
        return self.layers[0]

    @property
    def name(self) -> str:
        """The base layer's name."""
        return self.base.name


@dataclasses.dataclass(frozen=True, slots=True)
class FamilyQuery:
    """A checked request to a family.

    Rows are cells of ``rows``, a layer of no map: its key are the fields that rows keep.
    ``asked`` is the range of all pages, ``from_ms`` and ``to_ms`` that of this one.
    ``step`` is the windows that they are of, None for the whole range as one. ``layers`` are those
    of the family that rows can be made from, the base first. ``ranked`` is the measure that rows
    are ranked by, of which all must be known then.
    """

    family: Family
    asked: TimeRange
    from_ms: int
    to_ms: int
    step: Window | None
    keys: KeyFilter
    rows: Layer
    layers: tuple[Layer, ...]
    limit: int
    after: Position | None = None
    deadline_ms: int | None = None
    max_staleness_ms: int | None = None
    partial: Literal["allow", "refuse"] = "allow"
    explain: bool = False
    ranked: Measure | None = None

    @property
    def is_unbounded(self) -> bool:
        """Whether an end is open; the cursor of a later page has both ends."""
        return self.asked.is_open and self.after is None


def family_of(themap: Map, name: str) -> Family:
    """Return the family that layer ``name`` is in, the base layer or any other of it.

    Raises:
        UnknownLayerError: the map has no such layer.
    """
    layer = find_layer(themap, name)
    while layer.finer is not None:
        layer = themap.layer(layer.finer)
    found = [layer]
    for one in found:
        found += themap.coarser(one.name)
    return Family(tuple(found))


@functools.lru_cache(1_024)
def family_parameters(family: Family, limits: Limits) -> tuple[Parameter, ...]:
    """Return the parameters of a request to a family."""
    base = family.base
    fields = [field.name for field in base.key]
    return (
        Parameter.time("from", "The start of the range; left out, that of the first window."),
        Parameter.time("to", "The end of the range, not in it; left out, that of the last window."),
        Parameter.window("step", "One row for each of these; left out, one for the whole range."),
        *filter_parameters(base),
        Parameter.choice(
            "group",
            f"The key fields that rows keep; the others are added up over. {NO_FIELD} keeps none;"
            " left out, those named by key and prefix are kept.",
            [*fields, NO_FIELD], many=True,
        ),
        Parameter.choice(
            "measures", "The measures of the rows; left out, all.",
            [measure.name for measure in base.measures], many=True,
        ),
        Parameter.whole("limit", "Most rows of the page.", 1, limits.limit_max),
        Parameter("cursor", "That of the page before, unchanged.", str, {"type": "string"}),
        Parameter.whole("deadline_ms", "How long the answer may take.", 1, limits.deadline_ms_max),
        Parameter.whole(
            "max_staleness_ms", "How old the answer's data may be.", 1, limits.deadline_ms_max
        ),
        Parameter.choice(
            "partial", "Whether an answer that lacks an owner is wanted.", ["allow", "refuse"]
        ),
        Parameter.choice(
            "explain", "Whether to return the plan and not run it.", ["true", "false"]
        ),
    )  # fmt: skip


def parse_family_query(
    themap: Map,
    name: str,
    parameters: Iterable[tuple[str, str]],
    limits: Limits,
    now_ms: int = 0,
) -> FamilyQuery:
    """Check the parameters of a request to the family of layer ``name``.

    ``now_ms`` is the wall clock, which relative times refer to.

    Raises:
        UnknownLayerError: the map has no such layer.
        QueryError: some parameters cannot be used; the message names all of them.
    """
    family = family_of(themap, name)
    name = family.name
    problems: list[str] = []
    values = read_parameters(family_parameters(family, limits), parameters, problems)
    asked = range_of(values, family.base.window, now_ms, problems)
    keys = KeyFilter.of(values)
    both = sorted(keys.values.keys() & keys.prefixes.keys())
    problems += [f"prefix.{field}: key.{field} is given too; want one of them" for field in both]
    group = _group(keys, values.get("group"), problems)
    if problems:
        raise QueryError(f"cannot read family {name}: {'; '.join(problems)}")
    wanted = values.get("measures")
    measures = [one for one in family.base.measures if wanted is None or one.name in wanted]
    rows = msgspec.structs.replace(
        family.base,
        key=tuple(field for field in family.base.key if field.name in group),
        measures=tuple(measures),
        accumulators=_accumulators(family.base, measures),
    )
    after: Position | None = None
    if "cursor" in values:
        try:
            after, asked = decode_cursor(themap, rows, values["cursor"], asked)
        except QueryError as error:
            raise QueryError(f"cannot read family {name}: cursor: {error}") from error
    return FamilyQuery(
        family=family,
        asked=asked,
        # No row before that of the position is wanted any more.
        from_ms=asked.from_ms if after is None else max(asked.from_ms, after[0]),
        to_ms=asked.to_ms,
        step=values.get("step"),
        keys=keys,
        rows=rows,
        layers=tuple(layer for layer in family.layers if _serves(layer, rows, keys)),
        limit=values.get("limit", min(LIMIT_DEFAULT, limits.limit_max)),
        after=after,
        deadline_ms=values.get("deadline_ms"),
        max_staleness_ms=values.get("max_staleness_ms"),
        partial=values.get("partial", "allow"),
        explain=values.get("explain") == "true",
    )


def _accumulators(base: Layer, measures: Iterable[Measure]) -> tuple[Accumulator, ...]:
    """Return those of a layer's accumulators that measures are computed from."""
    wanted = {name for measure in measures for name in stored_for(base, measure)}
    return tuple(
        accumulator
        for accumulator in base.accumulators
        if accumulator == EVENTS or accumulator.column in wanted
    )


def _serves(layer: Layer, rows: Layer, keys: KeyFilter) -> bool:
    """Return whether rows like those of ``rows`` can be made from cells of a layer."""
    fields = {field.name for field in layer.key}
    wanted = keys.fields | {field.name for field in rows.key}
    return wanted <= fields and set(rows.accumulators) <= set(layer.accumulators)


def _named(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def _group(keys: KeyFilter, given: tuple[str, ...] | None, problems: list[str]) -> frozenset[str]:
    """Return the fields that rows keep."""
    if given is None:
        return keys.fields
    if NO_FIELD in given and len(given) > 1:
        problems.append(f"group: {NO_FIELD} is given with fields; want it alone")
    return frozenset(given) - {NO_FIELD}
