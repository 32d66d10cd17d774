"""The plan of a load: its options, the times of its events, and the writer of each partition.

The load is open loop: the schedule alone says when events are due, never the broker's answers.

    begin_s        end_s
      | e  e  e  e  e |          a step: its events are spread evenly over it, sent at its end
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence

from app.load.replay import settled_ms
from app.load.writers import events_per_process
from tables.model.errors import TreasureMapError
from tables.model.layer import Map, Source
from tables.model.window import time_text

MAP_FILE = pathlib.Path(__file__).with_name("default_map.toml")
SOURCE = "shop"

STEP_SECONDS_MIN = 0.05
STEP_SECONDS_MAX = 1.0
STEP_EVENTS_MAX = 50_000
"""Bounds the memory of one step, and the time for which the sender waits for it."""

HEARTBEAT_SECONDS = 1


class GenerateError(TreasureMapError):
    """A load that cannot be written as asked."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """A load as asked for; the fields are the options of ``python -m app generate``.

    ``rate`` is in events a second over all processes, 0 for as fast as possible. ``late``, ``bad``
    and ``duplicates`` are shares of all events. ``format`` is one of ``writers.names()``, and
    ``batch`` the most events of a record. Event time starts at ``start_ms`` and runs at ``speed``
    times real time.
    """

    map_file: str
    source: str
    brokers: str
    rate: float
    seconds: float
    keys: int
    skew: float
    types: int
    late: float = 0.0
    bad: float = 0.0
    format: str = "json"
    batch: int = 1
    seed: int = 1
    start_ms: int
    speed: float = 1.0
    duplicates: float = 0.0

    @property
    def events(self) -> int:
        """The number of all events; 0 for as many as possible."""
        return math.floor(round(self.rate * self.seconds, 6))

    @property
    def end_ms(self) -> int:
        """The event time at which the load ends."""
        return self.time_ms(self.seconds)

    def time_ms(self, seconds: float) -> int:
        """Return the event time at ``seconds`` after the load's start."""
        return self.start_ms + int(self.speed * seconds * 1_000)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The part of a load that one process writes: its partitions and its share.

    ``before`` is the share of the parts before it, so that together they write every event.
    """

    number: int
    partitions: tuple[int, ...]
    before: float
    share: float

    def events(self, total: int) -> int:
        """Return how many of ``total`` events are this part's."""
        # Rounded first, because shares add up to a little less than 1, or more.
        stop = math.floor(round(total * (self.before + self.share), 6))
        return stop - math.floor(round(total * self.before, 6))


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Events that fall due in ``[begin_s, end_s)``, in seconds since the load's start."""

    begin_s: float
    end_s: float
    events: int

    @property
    def heartbeat(self) -> bool:
        """Whether a whole number of heartbeat intervals ends in this step."""
        return self.end_s // HEARTBEAT_SECONDS > self.begin_s // HEARTBEAT_SECONDS


def step_seconds(rate: float, partitions: int, batch: int) -> float:
    """Return how long a step is, so that its events fill about one record a partition.

    Args:
        rate: events a second of the process.
        partitions: how many the process writes.
        batch: the most events of a record.
    """
    if not rate:
        return STEP_SECONDS_MAX
    fill = batch * partitions / rate
    most = min(STEP_SECONDS_MAX, STEP_EVENTS_MAX / rate)
    return min(max(STEP_SECONDS_MIN, fill), most)


def schedule(events: int, seconds: float, step_s: float) -> Iterator[Step]:
    """Yield the steps of ``events`` events, evenly over ``seconds``, ``step_s`` each."""
    done, begin_s = 0, 0.0
    for number in range(1, math.ceil(seconds / step_s) + 1):
        end_s = min(number * step_s, seconds)
        # Rounded first, so that 0.1 s of 30,000 events in 1 s are 3,000 and not 2,999.
        due = math.floor(round(events * (end_s / seconds), 6))
        yield Step(begin_s, end_s, due - done)
        done, begin_s = due, end_s


def parts_of(weights: Sequence[float], processes: int) -> list[Part]:
    """Share partitions out to processes, the heaviest first and each to the lightest process.

    Args:
        weights: the share of the load that each partition gets.
        processes: at most as many as there are partitions.
    """
    groups: list[list[int]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for partition in sorted(range(len(weights)), key=lambda one: -weights[one]):
        lightest = min(range(processes), key=lambda one: (loads[one], len(groups[one])))
        groups[lightest].append(partition)
        loads[lightest] += weights[partition]
    before = itertools.accumulate(loads, initial=0.0)
    return [
        Part(number, tuple(sorted(group)), earlier, load)
        for number, (group, load, earlier) in enumerate(zip(groups, loads, before, strict=False))
    ]


def processes_for(rate: float, form: str, partitions: int, cores: int) -> int:
    """Return how many processes ``--processes auto`` starts: one for each core at most."""
    wanted = math.ceil(rate / events_per_process(form)) if rate else cores
    return max(1, min(wanted, cores, partitions))


def default_start_ms(themap: Map, source: Source, now_ms: int, seconds: float, speed: float) -> int:
    """Return the latest start at which no event and no last heartbeat is too far in the future.

    That is now if the map's windows and ``future_skew`` allow it and ``speed`` is at most 1.
    """
    length_ms = int(seconds * speed * 1_000)
    end_ms = now_ms + min(length_ms, int(seconds * 1_000))
    limit_ms = now_ms + source.future_skew_ms
    while (settled := settled_ms(themap, source.name, end_ms, margin_ms=0)) > limit_ms:
        # Back by as much as is missing of the window: twice as far whenever that was not enough.
        end_ms -= settled - end_ms
    return end_ms - length_ms


def check_times(themap: Map, source: Source, plan: LoadSpec, now_ms: int, *, settle: bool) -> None:
    """Check that a worker accepts all times that the load needs.

    Raises:
        GenerateError: events or the last heartbeat would be too far in the future.
    """
    limit_ms = now_ms + source.future_skew_ms
    if plan.end_ms > limit_ms + int(plan.seconds * 1_000):
        raise GenerateError(
            f"cannot generate events for {source.name}: their times run past the source's"
            f" future_skew; got an end at {plan.end_ms}; want at most {limit_ms}; give an earlier"
            " --start or a lower --speed"
        )
    settled = settled_ms(themap, source.name, plan.end_ms, margin_ms=0)
    if settle and settled > limit_ms:
        raise GenerateError(
            f"cannot settle {source.name}: the last heartbeat would be past the source's"
            f" future_skew; got {settled}; want at most {limit_ms}; give an earlier --start, or"
            " --no-settle"
        )


def start_after(
    themap: Map, source: Source, plan: LoadSpec, last_ms: int, now_ms: int, *, settle: bool
) -> LoadSpec:
    """Return a load whose events come after a heartbeat.

    Raises:
        GenerateError: then they, or the last heartbeat, would be too far in the future.
    """
    if last_ms <= plan.start_ms:
        return plan
    later = dataclasses.replace(plan, start_ms=last_ms)
    try:
        check_times(themap, source, later, now_ms, settle=settle)
    except GenerateError as error:
        raise GenerateError(
            f"cannot append to {source.topic}: events before its last heartbeat come too late, and"
            f" later ones run past the source's future_skew; got {time_text(last_ms)}; give"
            " --no-settle, wait, or raise future_skew in the map"
        ) from error
    return later
