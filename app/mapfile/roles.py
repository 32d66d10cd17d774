"""The roles of values in events: which of them is the time, the type and the id.

Names are a hint, values decide: each role has rules that every event of the sample must keep.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import polars as pl

from agents.decode.times import parse_times
from agents.fold.layers import KEY_BYTES_MAX
from app.host.printable import printable
from app.mapfile.profile import Values
from app.mapfile.sample import SampleError
from tables.model.path import path_text

TYPES_MAX = 200
"""Distinct types of events; a text of more is not a type because of its name."""

IDS_MIN = 20
"""Distinct values that prove nothing about an id if there are fewer."""

MS_FROM, MS_TO = 10**11, 42 * 10**11
"""Milliseconds of the years 1973 to 2103: other numbers are seldom as large."""

S_FROM, S_TO = 10**8, 42 * 10**8
"""Seconds of the same years; many other numbers are as large, so that names have to say it."""

_TIME_NAMES = {"time", "timestamp", "ts", "at", "datetime", "date", "when"}
_TIME_WORDS = _TIME_NAMES | {"ms", "epoch", "millis", "seconds", "on"}
_OTHER_TIMES = {"received", "ingested", "updated", "expires", "expiry", "processed", "until", "end"}
_TYPE_WORDS = {"type", "kind", "event", "action"}
_ID_WORDS = {"id", "uuid", "guid"}
_ID_OF = {"event", "message", "msg", "record", "transaction", "trace", "entry"}
_LOOKS_LIKE_TIME = re.compile(r"\d{4}-\d\d-\d\d|\d\d?[/.]\d\d?[/.]\d{4}|\d\d?:\d\d")

Unit = Literal["text", "ms", "s"]


@dataclasses.dataclass(slots=True, frozen=True)
class Time:
    """The time of events: its values, the unit of numbers, and milliseconds by event.

    ``options`` are those that the source's time needs.
    """

    values: Values
    unit: Unit
    times_ms: list[int]
    options: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True, frozen=True)
class Roles:
    """The values that are the time, type and id of events; ``is_typed``: by more than need."""

    time: Time
    type: Values
    is_typed: bool
    id: Values | None


def roles_of(values: Sequence[Values], events: int) -> Roles:
    """Return the roles of a sample's values.

    Args:
        values: those that fit one type of field.
        events: the number of events.

    Raises:
        SampleError: no value could be the time, or the type; it says how events should be.
    """
    everywhere = [one for one in values if len(one.rows) == events]
    times = [found for one in everywhere if (found := _time(one)) is not None]
    if not times:
        raise SampleError(_no_time(values, events))
    time = min(times, key=lambda found: (-_time_score(found), len(found.values.path)))
    rest = [one for one in everywhere if one is not time.values]
    id_ = _id(rest, events)
    kind, is_typed = _type([one for one in rest if one is not id_])
    if kind is None:
        # An id that is the only text is of more use as the type.
        kind, is_typed = _type(rest)
        id_ = None
    if kind is None:
        raise SampleError(
            "cannot propose a map: the type of events is not known; got no text that is in"
            " every event beside its time; want a text that says the kind of event, such as"
            ' "type": "reading"; have producers add it, or for a try:'
            """ jq -c '. + {type: "reading"}' FILE > typed.ndjson"""
        )
    return Roles(time, kind, is_typed, id_)


def is_time_like(values: Values) -> bool:
    """Return whether values are times, whatever they are called: of no use as key or measure."""
    return _time(values, by_name=True) is not None


def _time(values: Values, *, by_name: bool = False) -> Time | None:
    """Return the time if all values are times; seconds need a name that says it, and floats."""
    if values.type == "string":
        texts = pl.Series(values.scalars, dtype=pl.String)
        for offset in ("", "Z"):
            times = parse_times(texts, offset)
            if not times.null_count():
                return Time(values, "text", times.to_list(), ("zone",) if offset else ())
        return None
    if values.type not in ("int", "float") or "whole" in values.options:
        return None
    low, high = min(values.scalars), max(values.scalars)
    is_named = bool(_TIME_WORDS & set(values.words))
    options = values.options + (("fraction",) if values.type == "float" else ())
    is_sure = values.type == "int" and not by_name
    if low >= MS_FROM and high < MS_TO and (is_named or is_sure):
        return Time(values, "ms", _milliseconds(values.scalars, 1), options)
    if low >= S_FROM and high < S_TO and is_named:
        return Time(values, "s", _milliseconds(values.scalars, 1_000), options)
    return None


def _milliseconds(numbers: Sequence[float], unit_ms: int) -> list[int]:
    return [
        unit_ms * number if isinstance(number, int) else round(number * unit_ms * 1e3) // 1_000
        for number in numbers
    ]


def _time_score(time: Time) -> int:
    words = time.values.words
    score = 2 if words[-1:] and words[-1] in _TIME_WORDS else 0
    if "_".join(words) in (_TIME_NAMES | {"event_time", "occurred_at"}):
        score = 4
    return score + (time.unit == "text") - 2 * bool(_OTHER_TIMES & set(words))


def _type(values: Sequence[Values]) -> tuple[Values | None, bool]:
    """Return the text that is most likely the type, and whether its name or values say so."""
    texts = [
        one
        for one in values
        if one.type == "string" and not one.options
        and max(len(text.encode()) for text in one.scalars) <= KEY_BYTES_MAX
    ]  # fmt: skip
    if not texts:
        return None, False

    def score(one: Values) -> int:
        if one.distinct > TYPES_MAX or not one.words or one.words[-1] not in _TYPE_WORDS:
            return 0
        return 2 if "_".join(one.words) in ("type", "event_type") else 1

    # A text that is a time has no types.
    best = min(texts, key=lambda one: (-score(one), is_time_like(one), one.distinct, len(one.path)))
    return best, score(best) > 0


def _id(values: Sequence[Values], events: int) -> Values | None:
    """Return the identity of events: it has an id's name, and is distinct in all of them."""
    found = [
        one
        for one in values
        if one.type in ("string", "int")
        and events >= IDS_MIN
        and one.words[-1:]
        and one.words[-1] in _ID_WORDS
        and (len(one.words) == 1 or _ID_OF & set(one.words))
        and one.distinct == events
        and len({str(value) for value in one.scalars}) == events
        and "" not in one.scalars
    ]
    return min(found, key=lambda one: len(one.path), default=None)


def _no_time(values: Sequence[Values], events: int) -> str:
    near = []
    for one in values:
        name = printable(path_text(one.path))
        if one.type == "string" and all(map(_LOOKS_LIKE_TIME.search, one.scalars[:100])):
            example = printable(repr(one.scalars[0][:40]))
            if is_time_like(one):
                near.append(f"{name} is in {len(one.rows)} of {events} events")
            else:
                near.append(f"{name} has {example}, without the form or the offset")
        elif one.type == "int" and _time(one) is not None:
            near.append(f"{name} is in {len(one.rows)} of {events} events")
    got = "; ".join(near[:5]) or "nothing like it"
    return (
        f"cannot propose a map: there is no time that every event has; got {got}; want in each"
        " event a text of RFC 3339 with offset, such as 2024-03-31T08:00:00Z, or a whole number of"
        " milliseconds or seconds since 1970 (seconds in a field that is called time, ts or the"
        " like); have producers add it, or convert a file: docs/trying.md, Times of other forms"
    )
