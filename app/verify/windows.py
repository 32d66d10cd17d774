"""Windows recomputed: start and end in milliseconds, in plain integers.

Months and years are those of the proleptic Gregorian calendar in UTC, by counting days from the
first of March, so that the leap day is a year's last.
"""

from __future__ import annotations

import functools

from tables.model.layer import Layer

_DAY_MS = 86_400_000
_ERA_DAYS = 146_097
"""Days of 400 years, after which the calendar repeats."""

_ERA_START_DAYS = 719_468
"""Days from the first of March of year 0 to the epoch."""


def window_start(layer: Layer, time_ms: int) -> int:
    """Return the start of the layer's window that holds ``time_ms``."""
    length = layer.window.length_ms
    if length:
        return time_ms // length * length
    return _calendar_window(time_ms // _DAY_MS, layer.window.months)[0]


def window_end(layer: Layer, start_ms: int) -> int:
    """Return the end of the layer's window that starts at ``start_ms``."""
    length = layer.window.length_ms
    if length:
        return start_ms + length
    return _calendar_window(start_ms // _DAY_MS, layer.window.months)[1]


def first_window(layer: Layer, time_ms: int) -> int:
    """Return the start of the layer's first window that starts at or after ``time_ms``."""
    start_ms = window_start(layer, time_ms)
    return start_ms if start_ms == time_ms else window_end(layer, start_ms)


def window_nominal_ms(layer: Layer) -> int:
    """Return a window's length as archives count it: a month has 30 days, a year 365."""
    return layer.window.length_ms or (30 if layer.window.months == 1 else 365) * _DAY_MS


@functools.lru_cache(65_536)
def _calendar_window(day: int, months: int) -> tuple[int, int]:
    """Return start and end of the window of ``months`` that holds a day since the epoch."""
    year, month = _year_and_month(day)
    first = (month - 1) // months * months + 1
    after = first + months
    return (
        _days(year, first) * _DAY_MS,
        _days(year + (after - 1) // 12, (after - 1) % 12 + 1) * _DAY_MS,
    )


def _year_and_month(day: int) -> tuple[int, int]:
    era, day_of_era = divmod(day + _ERA_START_DAYS, _ERA_DAYS)
    # Every 4th, but not every 100th year before has a leap day.
    year = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153 + 3
    return era * 400 + year + (month > 12), month - 12 * (month > 12)  # noqa: PLR2004 - months


def _days(year: int, month: int) -> int:
    """Return the days from the epoch to the first of a month."""
    year -= month < 3  # noqa: PLR2004 - before March, where its years begin
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month - 3) % 12) + 2) // 5
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * _ERA_DAYS + day_of_era - _ERA_START_DAYS
