"""Letters of set-aside records and events: written to side topics before the owner advances."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Iterator, Sequence

from agents.decode.event_batch import SetAside
from agents.ports import Log
from tables.model.layer import Map
from tables.model.limits import LETTER_BYTES_MAX, LETTER_INDEX_BYTES_MAX
from tables.record.chunk import Headers, Run
from tables.record.letter import Letter, index_of

PartOf = Callable[[Run, SetAside], tuple[bytes, str]]
"""Returns the part of a record that is set aside, and its content type."""

WAITING_MAX = 1_000
"""Letters in flight at once; more wait, so that a flood of them does not fill the memory."""

WAITING_BYTES_MAX = 32 << 20
"""Bytes of letters in flight at once; one more letter may exceed them."""


async def send_letters(
    to: Log, themap: Map, runs: Sequence[Run], aside: Sequence[SetAside], part_of: PartOf
) -> None:
    """Append letters, and return when all are acknowledged.

    A repeat after a failure carries the same position in its headers and can be recognised by it.

    Raises:
        OutcomeUnknownError: some may or may not have landed.
    """
    sends: list[Coroutine[None, None, int]] = []
    held = 0
    for item in aside:
        run = runs[item.run]
        target = run.partition % themap.side_partitions
        for value, headers in letters_of(run, item, part_of):
            sends.append(to.append(themap.side_topic(item.kind), target, value, headers))
            held += len(value)
            if len(sends) == WAITING_MAX or held > WAITING_BYTES_MAX:
                await asyncio.gather(*sends)
                sends, held = [], 0
    await asyncio.gather(*sends)


def letters_of(run: Run, item: SetAside, part_of: PartOf) -> Iterator[tuple[bytes, Headers]]:
    """Yield values and headers: one letter, or several if one record cannot hold all events."""
    events = item.events or ()
    index = index_of(events)
    if len(index) <= LETTER_INDEX_BYTES_MAX:
        value, content_type = part_of(run, item)
        if len(value) <= LETTER_BYTES_MAX or len(events) <= 1:
            yield value[:LETTER_BYTES_MAX], _letter(run, item, index, value, content_type)
            return
    middle = len(events) // 2
    for some in (events[:middle], events[middle:]):
        yield from letters_of(run, dataclasses.replace(item, events=some), part_of)


def _letter(run: Run, item: SetAside, index: str, value: bytes, content_type: str) -> Headers:
    fault = run.faults.get(item.record)
    # A record that was cut off while it was inflated has only its beginning here.
    size = max(len(value), fault.size if fault is not None else 0)
    return Letter(
        topic=run.topic,
        partition=run.partition,
        offset=run.offsets[item.record],
        index=index,
        events=len(item.events or ()),
        reason=item.reason,
        detail=item.detail,
        content_type=content_type,
        layer=item.layer,
        lateness_ms=item.lateness_ms,
        cut=size if size > LETTER_BYTES_MAX else 0,
    ).headers()


def whole_record(run: Run, item: SetAside) -> tuple[bytes, str]:
    """Return the whole value of the record, without a content type."""
    return run.values[item.record] or b"", ""
