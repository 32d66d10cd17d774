"""Windows: half-open ``[start, end)`` spans of integer milliseconds since the epoch, UTC.

A window is either a fixed length aligned to the epoch (Flink's tumbling window without offset) or a
calendar month in UTC. A calendar day is the fixed length of 86,400,000 ms: UTC has no other days.
"""

from __future__ import annotations

import calendar
import datetime as dt
import re

import msgspec
import polars as pl

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DAY_MS = _UNITS_MS["d"]
TIME_MS_MIN = -62_135_596_800_000
"""The start of year 1; together with the next, the years that every calendar here can compute."""

TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of year 9999."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


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


class Window(msgspec.Struct, frozen=True):
    """The size of a layer's windows: ``length_ms`` > 0, or a calendar month where it is 0."""

    length_ms: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """Return the window for a duration, ``"day"`` or ``"month"``.

        Raises:
            ValueError: neither form, or a length of zero.
        """
        if text == "month":
            return cls(0)
        if text == "day":
            return cls(DAY_MS)
        length_ms = parse_duration_ms(text)
        if length_ms == 0:
            raise ValueError("got a window of zero length; want at least 1ms")
        return cls(length_ms)

    def __str__(self) -> str:
        if self.length_ms == 0:
            return "month"
        for unit in ("d", "h", "m", "s"):
            if self.length_ms % _UNITS_MS[unit] == 0:
                return f"{self.length_ms // _UNITS_MS[unit]}{unit}"
        return f"{self.length_ms}ms"

    def start(self, time_ms: int) -> int:
        """Return the start of the window that holds ``time_ms``."""
        if self.length_ms:
            return time_ms - time_ms % self.length_ms
        day = _EPOCH + dt.timedelta(milliseconds=time_ms)
        return _ms(day.year, day.month)

    def end(self, start_ms: int) -> int:
        """Return the end of the window that starts at ``start_ms``."""
        if self.length_ms:
            return start_ms + self.length_ms
        day = _EPOCH + dt.timedelta(milliseconds=start_ms)
        return start_ms + calendar.monthrange(day.year, day.month)[1] * DAY_MS

    def start_expr(self, time: pl.Expr) -> pl.Expr:
        """Return the expression of :meth:`start` over an Int64 column of milliseconds."""
        if self.length_ms:
            return time - time % self.length_ms
        return pl.from_epoch(time, time_unit="ms").dt.truncate("1mo").dt.epoch("ms")

    def end_expr(self, start: pl.Expr) -> pl.Expr:
        """Return the expression of :meth:`end` over an Int64 column of window starts."""
        if self.length_ms:
            return start + self.length_ms
        return pl.from_epoch(start, time_unit="ms").dt.offset_by("1mo").dt.epoch("ms")

    def nests_in(self, coarser: Window) -> bool:
        """Tell whether every window of this size lies inside one window of ``coarser``."""
        if self.length_ms == 0:
            return coarser.length_ms == 0
        if coarser.length_ms == 0:
            return DAY_MS % self.length_ms == 0
        return coarser.length_ms % self.length_ms == 0


def _ms(year: int, month: int) -> int:
    return (dt.date(year, month, 1) - dt.date(1970, 1, 1)).days * DAY_MS
