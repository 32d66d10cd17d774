"""Times of events: numbers and texts as milliseconds, cut off towards the past."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from agents.decode.conversions import NotConvertibleError, parse_texts, text_number
from tables.model.layer import Source
from tables.model.window import TIME_MS_MAX, TIME_MS_MIN

_LOCAL = r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?"
_RFC3339 = rf"^{_LOCAL}([Zz]|[+-]\d\d:\d\d)$"
_MICROS_MAX = 1e18
"""Microseconds beyond all years, and within 64 bits."""


def parse_times(texts: pl.Series, offset: str = "") -> pl.Series:
    """Return the milliseconds of RFC 3339 texts, cut off towards the past; null for others.

    Args:
        texts: a column of texts (String).
        offset: that of texts without one, as RFC 3339 has it; empty if those are no times.
    """
    if offset:
        is_local = texts.str.contains(f"^{_LOCAL}$").fill_null(value=False)
        texts = (texts + offset).zip_with(is_local, texts)
    micros = texts.str.to_datetime("%+", time_unit="us", strict=False).cast(pl.Int64)
    times = micros // 1_000
    # The parser accepts more than RFC 3339: signs, single digits, spaces.
    strict = texts.str.contains(_RFC3339) & times.is_between(TIME_MS_MIN, TIME_MS_MAX)
    return times.set(~strict.fill_null(value=False), None)


class TimeReader:
    """Reads the times of a source that are not integers, or RFC 3339 texts with offset.

    A float is rounded to the nearest microsecond, of two to the even one, and cut off to
    milliseconds: floats of seconds seldom are the decimal number that was written.
    """

    def __init__(self, source: Source) -> None:
        self._unit_ms = source.time_unit_ms
        self._micros = source.time_unit_ms * 1_000.0
        self._source = source

    def value(self, value: Any) -> int | str:
        """Return the milliseconds of a JSON value, or a text that is not a number.

        Raises:
            NotConvertibleError: it is not a time.
        """
        number = value
        if type(value) is str:
            number = None
            if self._source.time_text:
                number = text_number(value, whole=not self._source.time_fraction)
            if number is None:
                return value
        if type(number) is float and self._source.time_fraction:
            micros = number * self._micros
            in_range = math.isfinite(micros) and abs(micros) < _MICROS_MAX
            time_ms = round(micros) // 1_000 if in_range else TIME_MS_MAX + 1
        elif type(number) is int:
            time_ms = number * self._unit_ms
        else:
            got = "null" if value is None else type(value).__name__
            raise NotConvertibleError(f"Expected `int | str`, got `{got}`")
        if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
            raise NotConvertibleError("Number out of range")
        return time_ms

    def integers(self, numbers: pl.Series) -> pl.Series:
        """Return the milliseconds of integers of any type; null for times of no year."""
        low, high = -(-TIME_MS_MIN // self._unit_ms), TIME_MS_MAX // self._unit_ms
        times = numbers.cast(pl.Int64, strict=False)
        usable = times.is_between(low, high).fill_null(value=False)
        return times.set(~usable, None) * self._unit_ms

    def floats(self, numbers: pl.Series) -> pl.Series:
        """Return the milliseconds of floats; null for times of no year."""
        micros = (numbers.cast(pl.Float64) * self._micros).round(mode="half_to_even")
        usable = micros.is_between(-_MICROS_MAX, _MICROS_MAX).fill_null(value=False)
        times = micros.set(~usable, None).cast(pl.Int64) // 1_000
        return times.set(~times.is_between(TIME_MS_MIN, TIME_MS_MAX).fill_null(value=False), None)

    def texts(self, texts: pl.Series) -> pl.Series:
        """Return the milliseconds of texts; null for texts that are not times."""
        source = self._source
        times = parse_times(texts, source.time_offset)
        if source.time_text:
            rest = texts.set(times.is_not_null(), None)
            integers = parse_texts(rest, "int").values
            times = times.zip_with(integers.is_null(), self.integers(integers))
            if source.time_fraction:
                rest = rest.set(integers.is_not_null(), None)
                floats = self.floats(parse_texts(rest, "float").values)
                times = times.zip_with(floats.is_null(), floats)
        return times
