"""Struct events: the events of records that are decoded one by one, and their faults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agents.decode.event_batch import RECORD_SPAN
from agents.decode.json_events import EventFault
from agents.decode.record_format import RunResults


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
