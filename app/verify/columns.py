"""Columns of values as they were read: whether they are sound, and as texts and floats."""

from __future__ import annotations

from typing import Any

import polars as pl

from app.verify.records import INT64_MAX, INT64_MIN

COLUMN_TYPES: dict[str, tuple[pl.DataType, str]] = {
    "string": (pl.String(), "VARCHAR"), "int": (pl.Int64(), "BIGINT"),
    "bool": (pl.Boolean(), "BOOLEAN"), "float": (pl.Float64(), "DOUBLE"),
}  # fmt: skip
"""By declared type, those of a frame and of a table."""

MISSING = type(None)
SOUND: dict[str, frozenset[type]] = {
    "string": frozenset({str, MISSING}),
    "int": frozenset({int, MISSING}),
    "bool": frozenset({bool, MISSING}),
    "float": frozenset({float, int, MISSING}),
}


def unsound(column: list[Any], sound: frozenset[type]) -> set[int]:
    """Return the rows of a column whose values are of no type that is sound, or out of range."""
    types = set(map(type, column))
    if not types <= sound:
        return {row for row, value in enumerate(column) if not _is_sound(value, sound)}
    if int not in types or float in sound:
        return set()
    numbers = [one for one in column if type(one) is int] if len(types) > 1 else column
    if min(numbers) >= INT64_MIN and max(numbers) <= INT64_MAX:
        return set()
    return {row for row, value in enumerate(column) if not _is_sound(value, sound)}


def _is_sound(value: Any, sound: frozenset[type]) -> bool:
    kind = type(value)
    return kind in sound and (kind is not int or float in sound or INT64_MIN <= value <= INT64_MAX)


def as_texts(ids: list[Any]) -> list[str | None]:
    """Return ids as texts."""
    if set(map(type, ids)) <= {str, MISSING}:
        return ids
    return [None if one is None else str(one) for one in ids]


def as_floats(column: list[Any]) -> list[float | None]:
    """Return numbers as floats."""
    if int not in set(map(type, column)):
        return column
    return [None if value is None else float(value) for value in column]
