"""Struct events: the events of records that are decoded one by one, and their faults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from agents.decode.event_batch import RECORD_SPAN
from agents.decode.json_events import EventFault, JsonEvents
from agents.decode.record_format import RunResults


@dataclasses.dataclass(frozen=True, slots=True)
class Instant:
    """A time of a format that has such a type.

    Attributes:
        written: the value for fields that are not the time.
        time_ms: its milliseconds, cut off towards the past.
    """

    written: Any
    time_ms: int


NotFinite = type("number that is not finite", (), {})
"""Errors show this name as the type of the value that was found."""


def plain_value(events: JsonEvents, kind: str, value: Any) -> Any:
    """Return a value of a declared type, ``time`` among them, as JSON would have it."""
    if isinstance(value, Instant):
        return events.instant(value.time_ms) if kind == "time" else value.written
    if kind == "float" and type(value) is float and not math.isfinite(value):
        return NotFinite()
    return value


def varint(number: int) -> bytes:
    """Return the zigzag varint of a whole number that is not negative."""
    number *= 2
    data = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def add_structs(run: RunResults, index: int, events: Iterable[Any]) -> list[int]:
    """Add the events of a record to a run, of which some may be an :class:`EventFault`.

    Return the indexes of the events without a fault, which the caller has to add too.
    """
    indexes: list[int] = []
    faults: dict[str, tuple[list[int], str]] = {}
    number = -1
    for number, event in enumerate(events):
        if isinstance(event, EventFault):
            faults.setdefault(event.reason, ([], event.detail))[0].append(number)
        else:
            run.events.structs.append(event)
            indexes.append(index * RECORD_SPAN + number)
    run.ledger.add_decoded(1, number + 1)
    for reason, (at, detail) in faults.items():
        run.refuse_events(index, tuple(at), reason, detail)
    return indexes
