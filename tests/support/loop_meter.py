"""Measures how long an event loop is held, and by which frames, in a test and in a worker process.

A hold is how long the loop has no turn for others. Machines are slow, and crowded: the measure is
the CPU time of the loop's thread in one turn, and how much longer the loop stood than a thread
beside it, which only ever sleeps.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Self

from tests.support.waiting import beats, until

TURN_S = 0.001
SEEN_S = 0.03
"""A hold of this length or more is sampled for the frame of the loop's thread."""

WORK_S = 0.03
"""The CPU time of :func:`work_s` on the machine for which limits of holds are told."""


class Loop:
    """Measures the loop it runs in, and a thread that sleeps beside it.

    Attributes:
        cpu_s, wall_s: the most that one turn of the loop took, of its thread's time and of all.
        beside_s: the longest that the thread beside overslept.
        places: the innermost calls of the loop's thread, and of those of queries, in holds.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._beats = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the measures."""
        self.cpu_s = self.wall_s = self.beside_s = 0.0
        self.places: list[str] = []
        self._beat_at = time.perf_counter()

    def start(self) -> None:
        """Begin, in the loop's thread."""
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._sleep, daemon=True)
        self._thread.start()
        self._task = asyncio.create_task(self._beat())

    def _sleep(self) -> None:
        seen = 0.0
        while not self._stop.is_set():
            at = time.perf_counter()
            self._stop.wait(TURN_S)
            self.beside_s = max(self.beside_s, time.perf_counter() - at - TURN_S)
            if seen != self._beat_at and time.perf_counter() - self._beat_at > SEEN_S:
                seen = self._beat_at
                frames = sys._current_frames()
                places = [_place(frames[self._main])]
                places += [
                    _place(frames[thread.ident])
                    for thread in threading.enumerate()
                    if thread.name.startswith("query") and thread.ident in frames
                ]
                self.places.append(" | ".join(places))

    async def _beat(self) -> None:
        cpu, self._beat_at = time.thread_time(), time.perf_counter()
        async for number in beats(lambda: TURN_S):
            if number:
                self.cpu_s = max(self.cpu_s, time.thread_time() - cpu)
                self.wall_s = max(self.wall_s, time.perf_counter() - self._beat_at - TURN_S)
                self._beats += 1
            cpu, self._beat_at = time.thread_time(), time.perf_counter()

    async def beats(self, count: int) -> None:
        """Wait until so many turns have been measured."""
        stop = self._beats + count
        await until(lambda: self._beats >= stop)

    async def __aenter__(self) -> Self:
        self.start()
        await self.beats(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.beats(2)
        self._task.cancel()
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

    @property
    def held_s(self) -> float:
        """How long the loop was held, as far as the machine is not to blame."""
        return max(self.cpu_s, self.wall_s - self.beside_s)


def _place(frame: FrameType) -> str:
    """Return the innermost calls of a frame, the last one first."""
    calls = traceback.extract_stack(frame)[-6:]
    return " < ".join(f"{Path(c.filename).name}:{c.lineno} {c.name}" for c in reversed(calls))


def work_s() -> float:
    """Return the CPU time of a known piece of work, of which the fastest run counts."""
    found = []
    for _ in range(5):
        at = time.thread_time()
        sum(number * number for number in range(400_000))
        found.append(time.thread_time() - at)
    return min(found)


def resident(name: str) -> int:
    """Return the memory of this process in bytes: ``VmRSS``, or ``VmHWM``, the most since reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1_024
    raise LookupError(name)


def reset_peak() -> None:
    """Have ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
