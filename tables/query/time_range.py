"""Time ranges of requests: their words, and the whole windows that answer them.

    asked     10:20 .................. 12:03      an instant, now-1h, today, or nothing
    answered  10:00 .................. 13:00      rounded outwards to windows of an hour

``now`` is the wall clock of the worker that answers. Stream time would differ from partition to
partition, and stand still while no events come.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from tables.model.window import (
    DAY_MS,
    SECONDS_IN_MS_MAX,
    START_MS_MIN,
    TIME_MS_MAX,
    TIME_MS_MIN,
    Window,
    parse_duration_ms,
)

# RFC 3339 with at most milliseconds, so that no digit is dropped in silence; a date is its midnight
# in UTC.
_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d([Tt]\d\d:\d\d:\d\d(\.\d{1,3})?([Zz]|[+-]\d\d:\d\d))?", re.ASCII
)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_RELATIVE = re.compile(r"(now|today|yesterday)?(?:([+-])(\d{1,12}(?:ms|s|m|h|d)))?", re.ASCII)
TEXT_PATTERN = f"^({_RFC_3339.pattern}|(now|today|yesterday)?([+-][0-9]{{1,12}}(ms|s|m|h|d))?)$"
"""The pattern of a time that is not an integer, for schemas."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_TIME = (
    "want epoch milliseconds, RFC 3339 with at most milliseconds like 2013-01-01T00:00:00Z, a date,"
    " or now, today or yesterday with an offset like now-1h, or the offset alone like -1h"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """A time: ``ms`` since the epoch, or after the anchor ``now`` or ``today``, midnight in UTC."""

    ms: int
    anchor: str = ""

    def at(self, now_ms: int) -> int:
        """Return its epoch milliseconds, by a clock.

        Raises:
            ValueError: no window can start or end then: outside the years 1 to 9999, but for the
                windows of the first and the last event time.
        """
        anchors = {"": 0, "now": now_ms, "today": now_ms - now_ms % DAY_MS}
        time_ms = anchors[self.anchor] + self.ms
        if not START_MS_MIN <= time_ms <= TIME_MS_MAX + 1:
            raise ValueError(f"outside the years 1 to 9999; got {time_ms}; {_TIME}")
        return time_ms


@dataclasses.dataclass(frozen=True, slots=True)
class TimeRange:
    """A range of whole windows, ``[from_ms, to_ms)``, and the instants that were asked for.

    ``asked_from_ms`` or ``asked_to_ms`` is None for an open end: all there is. ``moves`` says that
    the same words mean another range later; ``now_ms`` is the clock by which they were read.
    """

    from_ms: int
    to_ms: int
    asked_from_ms: int | None
    asked_to_ms: int | None
    moves: bool = False
    now_ms: int = 0

    @property
    def is_open(self) -> bool:
        """Whether an end is open."""
        return self.asked_from_ms is None or self.asked_to_ms is None

    @property
    def instants(self) -> tuple[int, ...]:
        """The instants that were asked for."""
        both = (self.asked_from_ms, self.asked_to_ms)
        return tuple(time_ms for time_ms in both if time_ms is not None)

    def fixed(self, from_ms: int, to_ms: int) -> TimeRange:
        """Return the range of these ends, for the same question, wherever the clock stands."""
        return dataclasses.replace(self, from_ms=from_ms, to_ms=to_ms)

    def bounded(self, first_ms: int | None, end_ms: int | None) -> TimeRange:
        """Return the range with open ends at the first start and the last end of the windows there.

        They are None if there is no window: an open end is the other end then, or both are now.
        """
        from_ms, to_ms = self.from_ms, self.to_ms
        if self.asked_from_ms is None:
            other_ms = self.now_ms if self.asked_to_ms is None else to_ms
            from_ms = other_ms if first_ms is None else min(first_ms, to_ms)
        if self.asked_to_ms is None:
            to_ms = from_ms if end_ms is None else max(from_ms, end_ms)
        return self.fixed(from_ms, to_ms)


def range_of(
    values: Mapping[str, Any], window: Window, now_ms: int, problems: list[str]
) -> TimeRange:
    """Return the range of the values of ``from`` and ``to``, rounded to windows; note faults."""
    times: dict[str, int] = {}
    for name in ("from", "to"):
        if name in values:
            try:
                times[name] = values[name].at(now_ms)
            except ValueError as error:
                problems.append(f"{name}: {error}")
    from_ms, to_ms = times.get("from"), times.get("to")
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        hint = seconds_hint(from_ms, to_ms)
        ending = f"; {hint}" if hint else ""
        problems.append(
            f"to: an empty range; got {to_ms}, with from {from_ms}; want a time after from{ending}"
        )
    return TimeRange(
        window.start(TIME_MS_MIN if from_ms is None else from_ms),
        window.first_start(TIME_MS_MAX + 1 if to_ms is None else to_ms),
        from_ms,
        to_ms,
        moves=any(name not in values or values[name].anchor for name in ("from", "to")),
        now_ms=now_ms,
    )


def seconds_hint(*times: int) -> str:
    """Return a hint for requests of times of 1970 to 1973, empty for others."""
    small = any(0 < time < SECONDS_IN_MS_MAX for time in times)
    return "are these seconds instead of milliseconds?" if small else ""


def parse_time(text: str) -> Moment:
    """Return the moment of a time's text.

    It is ``"1356998400000"``, ``"2013-01-01T00:00:00Z"``, a date, or ``"now"``, ``"today"`` or
    ``"yesterday"`` with or without an offset, ``"now-1h"``; an offset alone is one from now.

    Raises:
        ValueError: the text has another form, or names a time outside the years 1 to 9999.
    """
    if _INTEGER.fullmatch(text):
        moment = Moment(int(text))
    elif text and (match := _RELATIVE.fullmatch(text)):
        word, sign, offset = match.groups()
        offset_ms = parse_duration_ms(offset) * (-1 if sign == "-" else 1) if offset else 0
        if word == "yesterday":
            word, offset_ms = "today", offset_ms - DAY_MS
        return Moment(offset_ms, word or "now")
    elif _RFC_3339.fullmatch(text):
        full = text if len(text) > len("2013-01-01") else f"{text}T00:00:00Z"
        try:
            time = dt.datetime.fromisoformat(full.upper())
            moment = Moment((time - _EPOCH) // dt.timedelta(milliseconds=1))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{error}; got {text!r}; {_TIME}") from error
    else:
        hint = "; write a plus in a URL as %2B" if " " in text else ""
        raise ValueError(f"not a time; got {text!r}; {_TIME}{hint}")
    moment.at(0)
    return moment
