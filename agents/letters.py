"""Letters of what is set aside: written to the side topics before their offsets are passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agents.batch import SetAside
from agents.emit import Log
from tables.chunk import Run
from tables.layer import Map
from tables.letter import LETTER_BYTES_MAX, Letter, index_of

PartOf = Callable[[Run, SetAside], tuple[bytes, str]]
"""Returns the value of what is set aside, and its content type."""

WAITING_MAX = 1_000
"""Letters on their way at once; more wait, so that a flood of them holds no memory."""


async def send_letters(
    to: Log, themap: Map, runs: Sequence[Run], aside: Sequence[SetAside], part_of: PartOf
) -> None:
    """Write letters, and return when all are acknowledged.

    A repeat after a failure carries the same position in its headers and can be recognised by it.

    Raises:
        OutcomeUnknownError: some may or may not have been taken.
    """
    for first in range(0, len(aside), WAITING_MAX):
        sends = []
        for item in aside[first : first + WAITING_MAX]:
            run = runs[item.run]
            value, headers = letter_of(run, item, part_of)
            target = run.partition % themap.side_partitions
            sends.append(to.append(themap.side_topic(item.kind), target, value, headers))
        await asyncio.gather(*sends)


def letter_of(
    run: Run, item: SetAside, part_of: PartOf
) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Return a letter's value and headers."""
    value, content_type = part_of(run, item)
    fault = run.faults.get(item.record)
    size = max(len(value), fault.size if fault is not None else 0)
    letter = Letter(
        topic=run.topic,
        partition=run.partition,
        offset=run.offsets[item.record],
        index=index_of(item.events or ()),
        events=len(item.events or ()),
        reason=item.reason,
        detail=item.detail,
        content_type=content_type,
        layer=item.layer,
        lateness_ms=item.lateness_ms,
        cut=size if size > LETTER_BYTES_MAX else 0,
    )
    return value[:LETTER_BYTES_MAX], letter.headers()


def whole_record(run: Run, item: SetAside) -> tuple[bytes, str]:
    """Return the whole value of the record; it is of no form that others know."""
    return run.values[item.record] or b"", ""
