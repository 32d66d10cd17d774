"""Windows: half-open ``[start, end)`` spans of integer milliseconds since the epoch, UTC.

A window is either a fixed length aligned to the epoch (Flink's tumbling window without offset) or a
calendar month or year in UTC. A day is the fixed length of 86,400,000 ms: UTC has no other days.

Columns and integers agree for all years from 1 to 9999, the range of event times, and far beyond:
the last window of year 9999 ends, and the first fixed window of year 1 starts, outside them.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TypeVar

import msgspec
import polars as pl

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DAY_MS = _UNITS_MS["d"]
TIME_MS_MIN = -62_135_596_800_000
"""The start of year 1; together with the next, the years that every calendar here can compute."""

TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of year 9999."""

SECONDS_IN_MS_MAX = 100_000_000_000
"""A number of milliseconds below this is of 1970 to 1973, and more likely one of seconds."""

LENGTH_MS_MAX = 36_500 * DAY_MS
"""A century, the longest fixed length; keeps every sum of times far inside int64."""

START_MS_MIN = TIME_MS_MIN - LENGTH_MS_MAX
"""No window of a time starts before this."""

NEVER_MS = -(2**62)
"""Minus infinity among times: before any event."""

NEVER_ENDS_MS = 2**62
"""Plus infinity: after any window."""

_CYCLE_MS = 146_097 * DAY_MS
"""The calendar repeats every 400 years; so dates that ``datetime`` does not have are computed."""

_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()

Column = TypeVar("Column", pl.Expr, pl.Series)


def time_text(time_ms: int) -> str:
    """Return a time as RFC 3339, or as milliseconds if that has no such year."""
    if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
        return str(time_ms)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (epoch + dt.timedelta(milliseconds=time_ms)).isoformat().replace("+00:00", "Z")


def parse_duration_ms(text: str) -> int:
    """Return the milliseconds of ``"250ms"``, ``"5s"``, ``"10m"``, ``"1h"`` or ``"7d"``.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text)
    if match is None:
        raise ValueError(
            f"got {text!r}; want a whole number and a unit: ms, s, m, h or d, like '5s'"
        )
    return int(match[1]) * _UNITS_MS[match[2]]


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """The size of a layer's windows.

    Attributes:
        length_ms: above zero, or 0 for windows of the calendar.
        months: of a window of the calendar, its months: 1, or 12 from January on. The default is
            left out when a window is encoded, so that a map's digest is that of its meaning.
    """

    length_ms: int
    months: int = 1

    def __post_init__(self) -> None:
        assert self.length_ms >= 0
        assert self.months in ((1,) if self.length_ms else (1, 12))

    @classmethod
    def parse(cls, text: str) -> Window:
        """Return the window for a duration, ``"day"``, ``"month"`` or ``"year"``.

        Raises:
            ValueError: no such form, or a length of zero.
        """
        if text in _NAMED:
            return _NAMED[text]
        length_ms = parse_duration_ms(text)
        if length_ms == 0:
            raise ValueError("got a window of zero length; want at least 1ms")
        return cls(length_ms)

    def __str__(self) -> str:
        if self.is_calendar:
            return "month" if self.months == 1 else "year"
        for unit in ("d", "h", "m", "s"):
            if self.length_ms % _UNITS_MS[unit] == 0:
                return f"{self.length_ms // _UNITS_MS[unit]}{unit}"
        return f"{self.length_ms}ms"

    @property
    def is_calendar(self) -> bool:
        """Whether windows are months or years, whose lengths differ."""
        return self.length_ms == 0

    @property
    def nominal_ms(self) -> int:
        """The length as people count it: 30 days a month, 365 a year. For sizes only."""
        return self.length_ms or (30 if self.months == 1 else 365) * DAY_MS

    @property
    def longest_ms(self) -> int:
        """The length of the longest window, for bounds that must not be too short."""
        return self.length_ms or (31 if self.months == 1 else 366) * DAY_MS

    @property
    def shortest_ms(self) -> int:
        """The length of the shortest window, for bounds that must not be too long."""
        return self.length_ms or (28 if self.months == 1 else 365) * DAY_MS

    def start(self, time_ms: int) -> int:
        """Return the start of the window that holds ``time_ms``."""
        if self.length_ms:
            return time_ms - time_ms % self.length_ms
        cycles, rest_ms = divmod(time_ms, _CYCLE_MS)
        date = dt.date.fromordinal(_EPOCH_DAY + rest_ms // DAY_MS)
        first = date.replace(month=date.month - (date.month - 1) % self.months, day=1)
        return cycles * _CYCLE_MS + (first.toordinal() - _EPOCH_DAY) * DAY_MS

    def end(self, start_ms: int) -> int:
        """Return the end of the window that starts at ``start_ms``: the start of the next one."""
        if self.length_ms:
            return start_ms + self.length_ms
        return self.start(start_ms + self.longest_ms)

    def first_start(self, time_ms: int) -> int:
        """Return the start of the first window that starts at or after ``time_ms``."""
        start = self.start(time_ms)
        return start if start == time_ms else self.end(start)

    def count(self, from_ms: int, to_ms: int) -> int:
        """Return how many windows there are between two starts of windows."""
        if self.length_ms:
            return (to_ms - from_ms) // self.length_ms
        return (_month(to_ms) - _month(from_ms)) // self.months

    def starts(self, time: Column) -> Column:
        """Return :meth:`start` of an Int64 column of milliseconds, an expression or a series."""
        if self.length_ms:
            return time - time % self.length_ms
        dates = pl.from_epoch(time, time_unit="ms")
        return dates.dt.truncate(f"{self.months}mo").dt.epoch("ms")

    def ends(self, start: Column) -> Column:
        """Return :meth:`end` of an Int64 column of window starts, an expression or a series."""
        if self.length_ms:
            return start + self.length_ms
        dates = pl.from_epoch(start, time_unit="ms")
        return dates.dt.offset_by(f"{self.months}mo").dt.epoch("ms")

    def nests_in(self, coarser: Window) -> bool:
        """Return whether every window of this size lies inside one window of ``coarser``.

        Months and years start at midnight, with nothing else in common, so windows that nest in
        them divides a day. No fixed length holds them: only multiples of the calendar's 400 years
        do, which is more than ``LENGTH_MS_MAX``.
        """
        if self.is_calendar:
            return coarser.is_calendar and coarser.months % self.months == 0
        return (coarser.length_ms or DAY_MS) % self.length_ms == 0


def _month(start_ms: int) -> int:
    """Return the number of the month that starts there, counted from year 0."""
    cycles, rest_ms = divmod(start_ms, _CYCLE_MS)
    date = dt.date.fromordinal(_EPOCH_DAY + rest_ms // DAY_MS)
    return cycles * 4_800 + date.year * 12 + date.month - 1


MONTH = Window(0)
YEAR = Window(0, months=12)
_NAMED = {"day": Window(DAY_MS), "month": MONTH, "year": YEAR}
