"""One process of a load: writes its part when it is due and says how far it is.

parent                         process
  |  <-------------- None -------|     connected, words made
  |-------- begin (monotonic) -->|
  |  <---------- Progress -------|     again and again
  |-------- anything ----------->|     asks it to stop; so does the parent's end
  |  <- PartResult, GenerateError |
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from app.config.connections import client_options
from app.config.settings import Settings
from app.kafka.batch_producer import BatchProducer
from app.load.events import EventMaker
from app.load.plan import (
    STEP_EVENTS_MAX,
    GenerateError,
    LoadSpec,
    Part,
    Step,
    schedule,
    step_seconds,
)
from app.load.records import RecordMaker
from app.load.truth import PartitionTruth
from app.load.vocabulary import Words, words_of
from app.load.writers import record_events_max
from app.mapfile.load import load_map
from tables.model.clock import wall_clock_ms
from tables.model.errors import TreasureMapError

_UNPACED_EVENTS = STEP_EVENTS_MAX // 2
_REPORT_SECONDS = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """The events that a process has written, and its delay behind its schedule."""

    part: int
    events: int
    behind_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class PartResult:
    """The events that one process has written; all of them are acknowledged.

    ``behind_ms_max`` is the longest delay of a step behind its due time. ``stopped`` says that it
    ended before its time.
    """

    part: Part
    partitions: dict[int, PartitionTruth]
    bad: dict[str, int]
    events: int
    behind_ms_max: int
    seconds: float
    cpu_seconds: float
    stopped: bool


class PartWriter:
    """Writes one part of a load."""

    def __init__(self, plan: LoadSpec, part: Part, words: Words) -> None:
        self._plan = plan
        self._part = part
        self._events = EventMaker(words, plan, part)
        self._records = RecordMaker(words, plan, part)
        self._behind_ms = 0
        self._behind_ms_max = 0

    async def write(
        self,
        feed: BatchProducer,
        begin_s: float,
        stop: asyncio.Event,
        report: Callable[[Progress], None] | None = None,
    ) -> PartResult:
        """Write until the time is up or ``stop`` is set, and return when all is acknowledged.

        Args:
            feed: an open feed of the source's topic.
            begin_s: when the load begins, by ``time.monotonic``.
            stop: set to end early, between two steps.
            report: called with the progress a few times a second.
        """
        cpu_s, reported_s = time.process_time(), 0.0
        async with contextlib.aclosing(self._steps(begin_s, stop)) as steps:
            async for step in steps:
                self._add(feed, step)
                await feed.flush()
                now_s = time.monotonic()
                if report is not None and now_s - reported_s >= _REPORT_SECONDS:
                    reported_s = now_s
                    report(Progress(self._part.number, self._records.events, self._behind_ms))
        await feed.drain()
        return PartResult(
            part=self._part,
            partitions=self._records.truth.partitions,
            bad=dict(self._records.bad),
            events=self._records.events,
            behind_ms_max=self._behind_ms_max,
            seconds=time.monotonic() - begin_s,
            cpu_seconds=time.process_time() - cpu_s,
            stopped=stop.is_set(),
        )

    def _add(self, feed: BatchProducer, step: Step) -> None:
        """Hand over the records of a step, and the heartbeat that follows them."""
        now_ms = wall_clock_ms()
        if step.events:
            for pack in self._records.make(self._events.make(step), now_ms):
                feed.add(pack.partition, pack.keys, pack.values, pack.headers)
        if step.heartbeat:
            time_ms = self._plan.time_ms(step.end_s)
            feed.heartbeat(time_ms, self._part.partitions)
            self._records.truth.note_heartbeat(time_ms)

    async def _steps(self, begin_s: float, stop: asyncio.Event) -> AsyncGenerator[Step]:
        """Yield the steps when they are due; none is left out, however late it is."""
        seconds = self._plan.seconds
        if not self._plan.rate:
            steps = _unpaced(seconds, begin_s)
        else:
            events = self._part.events(self._plan.events)
            batch = record_events_max(self._plan.format, self._plan.batch)
            length_s = step_seconds(events / seconds, len(self._part.partitions), batch)
            steps = schedule(events, seconds, length_s)
        for step in steps:
            await _pause(stop, begin_s + step.end_s - time.monotonic())
            if stop.is_set():
                return
            if self._plan.rate:
                self._behind_ms = int((time.monotonic() - begin_s - step.end_s) * 1_000)
                self._behind_ms_max = max(self._behind_ms_max, self._behind_ms)
            yield step


def _unpaced(seconds: float, begin_s: float) -> Iterable[Step]:
    """Yield steps as fast as they are consumed; events are due over the time of the last step."""
    last_s = 0.0
    while (now_s := max(0.0, time.monotonic() - begin_s)) < seconds:
        yield Step(last_s, now_s, _UNPACED_EVENTS)
        last_s = now_s


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but no longer than until ``stop`` is set."""
    if seconds <= 0:
        # The broker's answers are read even when the load is behind.
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def run_process(plan: LoadSpec, part: Part, parent: Connection, login: Settings | None) -> None:
    """Write one part as a process of its own; the parent's end stops it in order."""
    # Ctrl-C reaches the whole group; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = asyncio.run(_run(plan, part, parent, client_options(login)))
    except (TreasureMapError, EOFError) as error:
        parent.send(GenerateError(f"cannot continue: {str(error) or 'the parent is gone'}"))
    else:
        parent.send(result)


async def _run(
    plan: LoadSpec, part: Part, parent: Connection, options: dict[str, Any]
) -> PartResult:
    themap = load_map(plan.map_file)
    source = themap.source(plan.source)
    words = words_of(themap, source, keys=plan.keys, skew=plan.skew, types=plan.types)
    writer = PartWriter(plan, part, words)
    stop = asyncio.Event()
    async with BatchProducer(plan.brokers, source.topic, options=options) as feed:
        if feed.partitions != source.partitions:
            raise GenerateError(
                f"cannot write to {source.topic}: it is not the map's topic; got {feed.partitions}"
                f" partitions; want {source.partitions}; use the map that it was made for"
            )
        parent.send(None)
        begin_s = await asyncio.to_thread(parent.recv)
        asyncio.get_running_loop().add_reader(parent.fileno(), stop.set)
        try:
            return await writer.write(feed, begin_s, stop, parent.send)
        finally:
            asyncio.get_running_loop().remove_reader(parent.fileno())
