"""The disorder of a sample: how far events come behind later ones, in the order of its partitions.

It is the distance that a map's ``max_out_of_orderness`` and ``allowed_lateness`` have to cover.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

SHARE_IN_TIME = 0.999
"""The share of events for which windows stay open; later ones change a closed window."""

_STEPS_MS = [
    100, 250, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000,
    *(60_000 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3_600_000 * hours for hours in (1, 2, 3, 6, 12)),
    *(86_400_000 * days for days in (1, 2, 3, 7, 14, 30)),
]  # fmt: skip
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_DAYS_MAX = 36_500


@dataclasses.dataclass(slots=True, frozen=True)
class Disorder:
    """The disorder of events, in milliseconds.

    ``events_behind`` counts those that come behind at all. ``most_ms`` covers ``SHARE_IN_TIME`` of
    all events, ``max_ms`` each. ``is_unsorted``: the sample has no order of time, so that nothing
    follows from it for a stream.
    """

    events_behind: int
    most_ms: int
    max_ms: int
    is_unsorted: bool


def disorder_of(times_ms: Sequence[int], starts: Sequence[int]) -> Disorder:
    """Return the disorder of events, each partition for itself.

    Args:
        times_ms: the times of all events.
        starts: the index of the first event of each partition.
    """
    behind: list[int] = []
    for start, stop in itertools.pairwise([*starts, len(times_ms)]):
        stream_ms: int | None = None
        for time_ms in times_ms[start:stop]:
            stream_ms = time_ms if stream_ms is None else max(stream_ms, time_ms)
            behind.append(stream_ms - time_ms)
    behind.sort()
    most_ms = behind[min(len(behind) - 1, int(len(behind) * SHARE_IN_TIME))]
    span_ms = max(times_ms) - min(times_ms)
    is_unsorted = most_ms > _HOUR_MS and 4 * most_ms > span_ms
    return Disorder(sum(map(bool, behind)), most_ms, behind[-1], is_unsorted)


def rounded_up(duration_ms: int) -> str:
    """Return a round duration of the map file that is at least as long."""
    if duration_ms <= 0:
        return "0s"
    ms = next((step for step in _STEPS_MS if step >= duration_ms), 0)
    if not ms:
        return f"{min(_DAYS_MAX, -(-duration_ms // _DAY_MS))}d"
    for unit, unit_ms in (("d", _DAY_MS), ("h", _HOUR_MS), ("m", 60_000), ("s", 1_000)):
        if ms % unit_ms == 0:
            return f"{ms // unit_ms}{unit}"
    return f"{ms}ms"
