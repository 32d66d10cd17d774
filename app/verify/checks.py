"""Checks of JSON values by the types and options of fields, one at a time, by docs/formats/map.md.

They share no code with ``agents/decode/conversions.py``, whose results they check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from tables.model.layer import Field

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_NUMBER = re.compile(r"[+-]?(?P<whole>[0-9]*)(?P<point>\.[0-9]*)?(?P<power>[eE][+-]?[0-9]+)?")
_DIGITS_MAX = 19
"""Digits, without zeros before them, of the greatest integer."""

Faults = frozenset[str]
Checked = tuple[Any, Faults]
GOOD: Faults = frozenset()
JSON, MISSING, TYPE, RANGE = (
    frozenset({reason}) for reason in ("json", "missing", "wrong_type", "out_of_range")
)


NOT_FINITE = object()
"""A float that is not a number, or infinite, of a format that has such floats."""


def wrong(value: object) -> Faults:
    """Return the faults of a value of another type than declared."""
    return TYPE | RANGE if type(value) is float and math.isinf(value) else TYPE


def number_of(text: str, *, fraction: bool) -> int | float | None:
    """Return the number that a text is; None for other texts.

    ``fraction`` takes texts with a point or an exponent too, as floats.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or not (match["whole"] or len(match["point"] or "") > 1):
        return None
    if match["point"] is None and match["power"] is None:
        digits = match["whole"].lstrip("0") or "0"
        size = int(digits) if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX
        return -size if text[0] == "-" else size
    return float(text) if fraction else None


def check_of(field: Field) -> Callable[[object], Checked]:
    """Return the check of a field: a value's own one, and why the field does not take it."""
    if field.type == "bool":
        return _text_bool if field.text else _bool
    if field.type == "string":
        return _digits if field.digits else check_text
    if not (field.text or field.whole):
        return check_int if field.type == "int" else _float

    def check_number(value: object) -> Checked:
        number: object = value
        if field.text and type(value) is str:
            number = number_of(value, fraction=field.whole or field.type == "float")
            if number is None:
                return value, TYPE
            number = float(value) if field.type == "float" else number
            if type(number) is float and math.isinf(number):
                return value, RANGE
        if field.type == "float":
            return _float(number)
        if field.whole and type(number) is float and math.isfinite(number):
            number = int(number) if number == math.floor(number) else number
        return check_int(number)

    return check_number


def check_text(value: object) -> Checked:
    """Check a value that has to be a text."""
    return value, GOOD if type(value) is str else wrong(value)


def check_int(value: object) -> Checked:
    """Check a value that has to be a whole number of 64 bits."""
    if type(value) is not int:
        return value, wrong(value)
    return value, GOOD if INT64_MIN <= value <= INT64_MAX else RANGE


def check_id(value: object) -> Checked:
    """Check the id of a source that does not declare it as a field."""
    return check_text(value) if type(value) is not int else check_int(value)


def _digits(value: object) -> Checked:
    if type(value) is not int:
        return check_text(value)
    return str(value), check_int(value)[1]


def _bool(value: object) -> Checked:
    return value, GOOD if type(value) is bool else wrong(value)


def _text_bool(value: object) -> Checked:
    if type(value) is str and value in (value.lower(), value.upper(), value.title()):
        value = {"true": True, "false": False}.get(value.lower(), value)
    return _bool(value)


def _float(value: object) -> Checked:
    if type(value) is int:
        try:
            return float(value), GOOD
        except OverflowError:
            return value, RANGE
    if value is NOT_FINITE:
        return value, frozenset({"not_finite"})
    if type(value) is not float:
        return value, wrong(value)
    return value, GOOD if math.isfinite(value) else RANGE
