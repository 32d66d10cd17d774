"""Columns of values as they were read: whether they are sound, and as times, texts and floats."""

from __future__ import annotations

from typing import Any

from app.verify.records import INT64_MAX, INT64_MIN, text_time_ms

MISSING = type(None)
SOUND: dict[str, frozenset[type]] = {
    "string": frozenset({str, MISSING}),
    "int": frozenset({int, MISSING}),
    "bool": frozenset({bool, MISSING}),
    "float": frozenset({float, int, MISSING}),
}


def times_of(column: list[Any], unit_ms: int) -> list[Any]:
    """Return times in milliseconds; what is no time is something else."""
    types = set(map(type, column))
    if types == {int}:
        return column if unit_ms == 1 else [time * unit_ms for time in column]
    if types == {str}:
        minutes = _Minutes()
        return [minutes.time_ms(text) for text in column]
    return [
        time * unit_ms if type(time) is int else text_time_ms(time) if type(time) is str else None
        for time in column
    ]


class _Minutes(dict[str, int | None]):
    """Texts of times, of which those of one minute begin alike."""

    def __missing__(self, start: str) -> int | None:
        """Read a minute."""
        found = self[start] = text_time_ms(start + "00Z")
        return found

    def time_ms(self, text: str) -> int | None:
        """Return the milliseconds of a text; None for no time."""
        seconds, fraction = text[17:19], text[20:-1]
        if (
            text[-1:] == "Z"
            and text[16:17] == ":"
            and seconds < "60"
            and seconds.isdecimal()
            and text.isascii()
            and len(text) in (20, 24)
            and (not fraction or (text[19] == "." and fraction.isdecimal()))
        ):
            minute_ms = self[text[:17]]
            return None if minute_ms is None else minute_ms + int(seconds + (fraction or "000"))
        return text_time_ms(text)


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
