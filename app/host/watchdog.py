"""The watchdog: ends a process whose event loop stands still, and shows the code that was running.

By then the group has given the worker's partitions to others, and its journal fences whatever it
may still do. So it has to end, and a supervisor starts it again.

    event loop   beat . beat . beat . [ long call ...............................
    thread         tick   tick   tick   +1   +1   +1   +1  > limit: last words, end

A thread counts the time that passes without a beat of the loop. Python code that never returns to
the loop lets the thread run. Native code that keeps the interpreter's lock does not; a timer of the
kernel ends that. It counts the CPU time of the process, and the thread resets it at every tick. A
process that was stopped (a debugger, a suspended machine) does not count as stuck:
docs/decisions/0005-watchdog.md.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75
"""How a stuck process ends: EX_TEMPFAIL of sysexits.h, "try again"."""

LEAVE_SECONDS_MAX = 30.0
"""Seconds in which a process ends after its loop has ended: threads that hang in a disk or a driver
would keep it for ever."""

TICKS = 10
"""Ticks of the thread in the time that the loop may stand still."""

STDERR = 2
"""The descriptor itself: Faust's command line replaces ``sys.stderr`` by a log."""

WRITE_SECONDS_MAX = 2.0
"""Seconds for the last words: a full pipe that nobody reads must not keep the process."""


class Watchdog:
    """Watches one event loop, which may stand still for a bounded time, until the process ends."""

    def __init__(self, stall_seconds_max: float) -> None:
        self._limit_s = stall_seconds_max
        self._tick_s = stall_seconds_max / TICKS
        self._stalled_s = 0.0
        self._leaving = False
        self._last_words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._written = threading.Event()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch ``loop``, which must be that of the main thread."""
        if sys.platform != "win32":
            # The handler is C and needs no lock of the interpreter: it writes all stacks, then the
            # default of the signal ends the process.
            faulthandler.register(signal.SIGPROF, STDERR, chain=True)
        self._beat(loop)
        # Python 3.12 starts no thread while it ends, so the one that writes has to wait for it.
        threading.Thread(target=self._write, name="watchdog writes", daemon=True).start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def leave(self) -> None:
        """Note that the loop has ended: from now on the process has a bounded time to end."""
        self._leaving = True
        self._limit_s = LEAVE_SECONDS_MAX
        self._stalled_s = 0.0

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stalled_s = 0.0
        loop.call_later(self._tick_s, self._beat, loop)

    def _watch(self) -> None:
        try:
            self._count()
            # A loop that resumes at this very moment is too late: show its stack.
            self._last_words.put(self._reason(self._stalled_s))
            self._written.wait(WRITE_SECONDS_MAX)
        finally:
            os._exit(EXIT_CODE)

    def _count(self) -> None:
        """Count the seconds without a beat, until they are more than the limit."""
        before_s = time.monotonic()
        while self._stalled_s <= self._limit_s:
            if sys.platform != "win32":
                # Twice, because native threads use CPU beside the one that keeps the lock.
                signal.setitimer(signal.ITIMER_PROF, 2 * self._limit_s)
            time.sleep(self._tick_s)
            now_s = time.monotonic()
            # A longer tick counts as two at most: in the rest of it this thread did not run either,
            # so the process was stopped, and the loop gets time to beat before the next tick.
            self._stalled_s += min(now_s - before_s, 2 * self._tick_s)
            before_s = now_s

    def _write(self) -> None:
        reason = self._last_words.get()
        # Not by faulthandler, which would keep the interpreter's lock while a full pipe blocks,
        # and not through a stream, whose lock the main thread may hold.
        os.write(STDERR, f"{''.join(_stacks())}error: {reason}\n".encode())
        self._written.set()

    def _reason(self, stalled_s: float) -> str:
        if self._leaving:
            return (
                f"cannot end: threads still run {stalled_s:.1f} s after the worker stopped; "
                f"want less than {LEAVE_SECONDS_MAX:.0f} s; the stacks above show what they wait "
                "for; check the disks of state_folder and archive_folder"
            )
        return (
            f"cannot stay in the group: the event loop stands still at {_location()}; got "
            f"{stalled_s:.1f} s; want at most session_timeout_ms, {self._limit_s:g} s; the "
            "stacks are above; give the worker a core of its own, or smaller chunks "
            "(chunk_records_max)"
        )


def _stacks() -> Iterator[str]:
    """Yield the stack of every thread but this module's, the main thread's last."""
    frames = _frames()
    threads = [thread for thread in threading.enumerate() if "watchdog" not in thread.name]
    for thread in reversed(threads):
        if thread.ident in frames:
            yield f"{thread.name} (most recent call last):\n"
            yield from traceback.format_stack(frames[thread.ident])


def _frames() -> dict[int | None, FrameType]:
    """Return the frame that each thread is in, by its identifier."""
    return dict(sys._current_frames().items())  # noqa: SLF001 - documented, for all its name


def _location() -> str:
    """Return the location of the main thread: file, line and function."""
    frame = _frames()[threading.main_thread().ident]
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"
