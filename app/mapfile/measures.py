"""Texts of a layer, checked: event patterns, conditions, measures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import cast, get_args

from app.mapfile.section import Section, nearest, shown
from tables.measures.registry import MEASURES
from tables.model.layer import Condition, FieldType, Measure, Operator, Scalar
from tables.model.limits import INT64_MAX, INT64_MIN

_MEASURE = re.compile(r"(\w+)(?:\(([^()\s]+)\))?")
_PATTERN = re.compile(r"(?:[A-Za-z0-9_-]+|\*)(?:\.(?:[A-Za-z0-9_-]+|\*))*(?:\.\*\*)?|\*\*")
_PYTHON_TYPES: dict[str, type] = {"string": str, "int": int, "bool": bool, "float": float}
_EXACT_INT_MAX = 2**53  # up to here every integer is a float


def read_events(section: Section) -> tuple[str, ...]:
    """Return the event patterns of a base layer; bad ones are noted."""
    patterns = section.texts("events", required=True) or ()
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            section.note(
                "events",
                f"not an event pattern; got {pattern!r}; want levels of letters, digits, '_' or "
                "'-' between dots, '*' for any one level, '**' at the end for any depth; change it",
            )
    return patterns


def read_conditions(
    section: Section, declared: Mapping[str, FieldType | None], source: str
) -> tuple[Condition, ...]:
    """Return the conditions of a base layer's ``where``; bad ones are noted."""
    conditions = []
    for item in section.items("where"):
        field = item.text("field", required=True)
        op = item.text("op", required=True)
        value = item.raw("value")
        item.finish()
        if op is not None and op not in get_args(Operator):
            item.note("op", f"unknown operator; got {op!r}; want one of {_listed(Operator)}")
            op = None
        if value is None:
            item.note("value", "missing; want the value to compare with; add it")
        if field is not None and field not in declared:
            item.note("field", undeclared(field, declared, source))
        kind = declared.get(field) if field is not None else None
        if field is None or op is None or value is None or kind is None:
            continue
        checked = _condition_value(item, op, kind, value)
        if checked is not None:
            conditions.append(Condition(field, cast("Operator", op), checked))
    return tuple(conditions)


def read_measures(section: Section, *, required: bool) -> tuple[Measure, ...] | None:
    """Return the measures that the section names, or None if they are missing or bad."""
    texts = section.texts("measures", required=required)
    if texts is None:
        return None
    measures: list[Measure] = []
    for text in texts:
        match = _MEASURE.fullmatch(text)
        kind = MEASURES.get(match[1]) if match is not None else None
        if match is not None and kind is not None and kind.has_field == (match[2] is not None):
            measures.append(Measure(kind.name, match[2]))
            continue
        *some, last = (
            f"{one.name}(field)" if one.has_field else one.name for one in MEASURES.values()
        )
        section.note(
            "measures",
            f"unknown measure; got {text!r}; want {', '.join(some)} or {last}; change it",
        )
    return tuple(measures) if len(measures) == len(texts) else None


def measured_types(
    section: Section,
    measures: Iterable[Measure],
    declared: Mapping[str, FieldType | None],
    source: str,
) -> dict[str, FieldType]:
    """Return the type of every field that is measured; fields that cannot be are noted."""
    types: dict[str, FieldType] = {}
    for measure in measures:
        field = measure.field
        if field is None:
            continue
        kind, forms = declared.get(field), MEASURES[measure.kind].forms
        if field not in declared:
            section.note("measures", undeclared(field, declared, source))
        elif kind is not None and kind in forms:
            types[field] = kind
        elif kind is not None:
            section.note(
                "measures",
                f"cannot measure {measure.kind}({field}): the field has the wrong type; "
                f"got {kind}; want {' or '.join(forms)}; measure another field or change its type",
            )
    return types


def undeclared(field: str, declared: Mapping[str, FieldType | None], source: str) -> str:
    """Return the note about a field that its source does not declare."""
    return (
        f"unknown field {field!r}; {nearest(field, declared)}; correct it or declare it in "
        f"sources.{source}.fields"
    )


def _condition_value(
    item: Section, op: str, kind: FieldType, value: object
) -> Scalar | tuple[Scalar, ...] | None:
    """Return the value in the field's type, a tuple for ``in``; None if a fault was noted."""
    if kind == "bool" and op not in ("==", "!=", "in"):
        item.note("op", f"cannot order a bool; got {op!r}; want ==, != or in; change it")
        return None
    if op != "in":
        return _scalar(item, kind, value)
    if not isinstance(value, list) or not value:
        item.note("value", f"got {shown(value)}; want a list of at least one {kind}; change it")
        return None
    scalars = [_scalar(item, kind, one) for one in value]
    if None in scalars:
        return None
    return tuple(cast("list[Scalar]", scalars))


def _scalar(item: Section, kind: FieldType, value: object) -> Scalar | None:
    if kind == "float" and type(value) is int and abs(value) <= _EXACT_INT_MAX:
        value = float(value)
    # `type is`, not isinstance: a TOML true is not a number.
    if type(value) is not _PYTHON_TYPES[kind]:
        item.note("value", f"wrong type; got {shown(value)}; want {kind}; change the value")
        return None
    if isinstance(value, float) and not math.isfinite(value):
        item.note("value", f"compares with no number; got {value}; want a finite one; change it")
        return None
    if type(value) is int and not INT64_MIN <= value <= INT64_MAX:
        item.note("value", f"out of range; got {value}; want 64 bits; no event has such a value")
        return None
    return cast("Scalar", value)


def _listed(literal: object) -> str:
    return ", ".join(str(choice) for choice in get_args(literal))
