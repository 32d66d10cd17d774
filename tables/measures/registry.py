"""Registry: the measures there are, by name, and the accumulators that they are computed from.

The order is that of messages, and by it the order of columns in cells: a new measure comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tables.measures.count import COUNT
from tables.measures.extreme import MAX, MIN
from tables.measures.kind import AccumulatorKind, MeasureForm, MeasureKind
from tables.measures.mean import MEAN
from tables.measures.sum import SUM
from tables.measures.variance import VARIANCE
from tables.model.layer import EVENTS, Accumulator, FieldType, Layer, Measure

MEASURES: dict[str, MeasureKind] = {}
ACCUMULATORS: dict[tuple[str, str], AccumulatorKind] = {}
"""Kinds by name and type of field."""

_OTHER_COLUMNS = frozenset({"key", "window", "version", "source"})
"""First words of the other columns of cells."""


def register(kind: MeasureKind) -> None:
    """Add a measure, and the accumulators of it that no measure before it has."""
    assert kind.name.isalnum(), f"{kind.name}_field would not separate name and field"
    assert kind.name not in MEASURES, f"there are two measures {kind.name}"
    for number, form in kind.forms.items():
        for stored in form.stored:
            assert stored.name.isalnum(), f"{stored.name}_field would not separate them"
            assert stored.name not in _OTHER_COLUMNS, f"cells have columns {stored.name}_..."
            known = ACCUMULATORS.setdefault((stored.name, number), stored)
            assert known is stored, f"there are two accumulators {stored.name} of {number}"
    MEASURES[kind.name] = kind


for _kind in (COUNT, SUM, MIN, MAX, MEAN, VARIANCE):
    register(_kind)


def kind_of(accumulator: Accumulator) -> AccumulatorKind:
    """Return how an accumulator is made."""
    return ACCUMULATORS[accumulator.kind, accumulator.type]


def merge_columns(accumulator: Accumulator) -> list[str]:
    """Return the columns that the steps which merge an accumulator take, its own first."""
    beside = kind_of(accumulator).beside
    return [accumulator.column, *(f"{name}_{accumulator.field}" for name in beside)]


def form_of(layer: Layer, measure: Measure) -> MeasureForm:
    """Return how a measure of a layer is computed."""
    number = next(acc.type for acc in layer.accumulators if acc.field == measure.field)
    return MEASURES[measure.kind].forms[number]


def stored_for(layer: Layer, measure: Measure) -> list[str]:
    """Return the columns of a layer's cells that a measure is computed from, in its order."""
    columns = {acc.kind: acc.column for acc in layer.accumulators if acc.field == measure.field}
    return [columns[stored.name] for stored in form_of(layer, measure).stored]


def accumulators_of(
    measures: Iterable[Measure], types: Mapping[str, FieldType]
) -> tuple[Accumulator, ...]:
    """Return a cell's accumulators for ``measures``: events, then by field in order of first use.

    Measures of fields without an entry in ``types`` are left out: they have been noted.
    """
    needed: dict[str, set[str]] = {}
    for measure in measures:
        if measure.field is not None and measure.field in types:
            form = MEASURES[measure.kind].forms[types[measure.field]]
            needed.setdefault(measure.field, set()).update(one.name for one in form.stored)
    return EVENTS, *(
        Accumulator(name, field, "float" if number == "float" else "int")
        for field, names in needed.items()
        for name, number in ACCUMULATORS
        if number == types[field] and name in names
    )


def is_accumulator(column: str) -> bool:
    """Return whether a column of cells is an accumulator's, of whatever field."""
    name, _, field = column.partition("_")
    return column == EVENTS.column or (field != "" and any(name == one for one, _ in ACCUMULATORS))
