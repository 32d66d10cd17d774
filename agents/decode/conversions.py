"""Conversions: values of another type than a field's, which its map takes for the field.

docs/formats/map.md has the rules. JSON converts a value at a time, formats of columns a column at
once; both take the same values, and give the same reasons for all others.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import polars as pl

from tables.model.layer import Field
from tables.model.limits import INT64_MAX, INT64_MIN

COLUMNS: dict[str, pl.DataType] = {
    "string": pl.String(),
    "int": pl.Int64(),
    "bool": pl.Boolean(),
    "float": pl.Float64(),
}
"""The type of a frame's column by the type of its field."""

INT_TEXT = r"[+-]?[0-9]+"
FLOAT_TEXT = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
"""The whole text of a number; each text of an integer is one of a float too."""

_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT, _FLOAT = re.compile(INT_TEXT), re.compile(FLOAT_TEXT)
_INT_DIGITS_MAX = 19
"""Digits of the greatest integer, without zeros before them."""


class NotConvertibleError(ValueError):
    """A value that a field does not take; the message has the words of msgspec."""


@dataclasses.dataclass(slots=True, frozen=True)
class Converted:
    """A column of a field's type, null for values that it does not take.

    ``faults`` has reasons of docs/formats/records.md, each with a mask of rows; no row has two.
    """

    values: pl.Series
    faults: tuple[tuple[str, pl.Series], ...] = ()


NULLED = object()
"""Stands in an event for a wrong value that its field takes as null."""


def cast_column(column: pl.Series, kind: str) -> Converted:
    """Return a column as the type of a field that converts nothing."""
    if not (column.dtype == pl.Null or _TAKES[kind](column.dtype)):
        values = pl.repeat(None, column.len(), dtype=COLUMNS[kind], eager=True)
        is_empty = column.null_count() == column.len()
        return Converted(values, () if is_empty else (("wrong_type", column.is_not_null()),))
    values = column.cast(COLUMNS[kind], strict=False)
    if kind == "int" and values.null_count() != column.null_count():
        return Converted(values, (("out_of_range", column.is_not_null() & values.is_null()),))
    # All terms of a finite sum are finite; a sum that is not finite may still have good terms.
    if kind == "float" and not math.isfinite(values.sum()):
        return Converted(values, (("not_finite", ~values.is_finite().fill_null(value=True)),))
    return Converted(values)


def convert_column(column: pl.Series, field: Field) -> Converted:
    """Return a column as the type of a field, with the conversions that it declares."""
    if field.text and is_text(column.dtype):
        return parse_texts(column.cast(pl.String), field.type, whole=field.whole)
    if field.whole and column.dtype.is_float():
        return _whole(column.cast(pl.Float64))
    if field.digits and column.dtype.is_integer():
        found = cast_column(column, "int")
        return Converted(found.values.cast(pl.String), found.faults)
    return cast_column(column, field.type)


def parse_texts(texts: pl.Series, kind: str, *, whole: bool = False) -> Converted:
    """Return the numbers or booleans of texts.

    Args:
        texts: a column of texts (String); null stays null.
        kind: ``int``, ``float`` or ``bool``.
        whole: an ``int`` is also taken from the text of a float without fraction, as ``12.0``.
    """
    if kind == "bool":
        values = texts.replace_strict(_BOOLS, default=None, return_dtype=pl.Boolean)
        return Converted(values, (("wrong_type", texts.is_not_null() & values.is_null()),))
    pattern = FLOAT_TEXT if kind == "float" else INT_TEXT
    is_number = texts.str.contains(f"^(?:{pattern})$").fill_null(value=False)
    numbers = texts.set(~is_number, None)
    if kind == "float":
        values = numbers.cast(pl.Float64)
        beyond = values.is_infinite().fill_null(value=False)
        values = values.set(beyond, None)
    else:
        values = numbers.cast(pl.Int64, strict=False)
        beyond = numbers.is_not_null() & values.is_null()
    if not whole:
        no_number = texts.is_not_null() & ~is_number
        return Converted(values, (("wrong_type", no_number), ("out_of_range", beyond)))
    floats = parse_texts(texts.set(is_number, None), "float")
    found = _whole(floats.values)
    faults = (*floats.faults, *found.faults, ("out_of_range", beyond))
    return Converted(values.zip_with(values.is_not_null(), found.values), faults)


def _whole(floats: pl.Series) -> Converted:
    """Return the integers that floats are; those with a fraction, and NaN, are of another type."""
    is_whole = (floats.floor() == floats).fill_null(value=False) & floats.is_finite()
    is_whole = is_whole.fill_null(value=False)
    # Both bounds are floats; the greatest integer is not.
    fits = ((floats >= -(2.0**63)) & (floats < 2.0**63)).fill_null(value=False)
    values = floats.set(~(is_whole & fits), None).cast(pl.Int64)
    faults = (("wrong_type", floats.is_not_null() & ~is_whole), ("out_of_range", is_whole & ~fits))
    return Converted(values, faults)


def value_converter(field: Field) -> Callable[[Any], Any]:
    """Return the function that converts one JSON value of a field that is not absent.

    It returns ``NULLED`` for a wrong value if the field takes that as null; else it raises
    :class:`NotConvertibleError`.
    """
    convert = {"string": _to_string, "int": _to_int, "bool": _to_bool, "float": _to_float}
    to_type = convert[field.type]

    def converted(value: Any) -> Any:
        try:
            return to_type(value, field)
        except NotConvertibleError:
            if field.null_on_error:
                return NULLED
            raise

    return converted


def text_number(text: str, *, whole: bool) -> int | float | None:
    """Return the number that a text is; None for another text, or a float if ``whole``."""
    if _INT.fullmatch(text):
        # Python refuses to read very many digits, also if most of them are zeros before a number.
        digits = text.lstrip("+-").lstrip("0") or "0"
        size = int(digits) if len(digits) <= _INT_DIGITS_MAX else INT64_MAX + 2
        return -size if text.startswith("-") else size
    if whole or not _FLOAT.fullmatch(text):
        return None
    return float(text)


def is_text(kind: pl.DataType) -> bool:
    """Return whether a column is of texts, written out or by number."""
    return isinstance(kind, pl.String | pl.Categorical | pl.Enum)


def _to_int(value: Any, field: Field) -> int:
    number = value
    if field.text and type(value) is str:
        number = text_number(value, whole=not field.whole)
    if field.whole and type(number) is float and number.is_integer():
        number = int(number)
    elif type(number) is float and math.isinf(number):
        raise _out_of_range()
    if type(number) is not int:
        raise _wrong_type(value, field)
    return _fitting(number)


def _to_float(value: Any, field: Field) -> float:
    number = value
    if field.text and type(value) is str:
        if not _FLOAT.fullmatch(value):
            raise _wrong_type(value, field)
        number = float(value)
    if type(number) not in (int, float):
        raise _wrong_type(value, field)
    try:
        number = float(number)
    except OverflowError:
        raise _out_of_range() from None
    if not math.isfinite(number):
        raise _out_of_range()
    return float(number)


def _to_bool(value: Any, field: Field) -> bool:
    found = _BOOLS.get(value) if field.text and type(value) is str else value
    if type(found) is not bool:
        raise _wrong_type(value, field)
    return found


def _to_string(value: Any, field: Field) -> str:
    if field.digits and type(value) is int:
        return str(_fitting(value))
    if type(value) is not str:
        raise _wrong_type(value, field)
    return value


def _fitting(number: int) -> int:
    if not INT64_MIN <= number <= INT64_MAX:
        raise _out_of_range()
    return number


def _wrong_type(value: object, field: Field) -> NotConvertibleError:
    if field.text and type(value) is str:
        return NotConvertibleError(f"Expected `{field.type}` or its text, got another text")
    names: dict[type, str] = {type(None): "null", dict: "object", list: "array"}
    got = names.get(type(value), type(value).__name__)
    return NotConvertibleError(f"Expected `{field.type}`, got `{got}`")


def _out_of_range() -> NotConvertibleError:
    return NotConvertibleError("Number out of range")


_WIDE = (pl.Int128, pl.UInt128)
_TAKES: dict[str, Callable[[pl.DataType], bool]] = {
    "string": is_text,
    "int": lambda kind: kind.is_integer() and not isinstance(kind, _WIDE),
    "bool": lambda kind: isinstance(kind, pl.Boolean),
    "float": lambda kind: kind.is_float() or kind.is_integer(),
}
