"""The event loop of the simulation: one seed decides which callback runs next; no time is waited.

The clock stands still while anything can run, and jumps to the next timer when nothing can. Every
callback belongs to a simulated process: the one in whose context it was scheduled. Which process
goes on is drawn; within one process callbacks run in the order of any asyncio loop, and the answers
of its log and archive come in random order by random delays.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import heapq
import inspect
import random
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any


class Process:
    """A simulated process: its callbacks that may run."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready: deque[asyncio.Handle] = deque()
        self.alive = True
        self.paused = False

    def kill(self) -> None:
        """End at once, as with SIGKILL: nothing of it runs again, and its locks are free."""
        self.alive = False


OUTSIDE = Process(-1)
"""The process of all that is not a worker: the network, the clock, whoever kills workers."""

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process", default=OUTSIDE)


class NothingLeftError(Exception):
    """Nothing can run any more, and no timer is set."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """An asyncio loop of many processes without threads, sockets or real time.

    Args:
        rng: decides which process goes on.
        youth: how strongly younger processes are preferred; old ones are then slow zombies.
    """

    _scheduled: list[Any]

    def __init__(self, rng: random.Random, youth: float) -> None:
        super().__init__()
        self.steps = 0
        self.trace = 0
        self.processes: list[Process] = [OUTSIDE]
        self._rng = rng
        self._youth = youth
        self._now = 0.0
        # Tasks of dead processes stay referenced: if Python closed a coroutine, its `finally` would
        # run, which a killed process never does.
        self._tasks: list[asyncio.Task[Any]] = []
        OUTSIDE.ready.clear()
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        """Return the virtual clock, in seconds."""
        return self._now

    def create_process(self) -> tuple[Process, contextvars.Context]:
        """Return a new process, and a context in which to create its tasks."""
        process = Process(len(self.processes))
        self.processes.append(process)
        context = contextvars.Context()
        context.run(PROCESS.set, process)
        return process, context

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """Create a task, and keep it to the end of the run."""
        task = super().create_task(coro, **options)
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: object, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run the work of threads as a step of its process, which may die before."""
        del executor
        done = self.create_future()

        def run() -> None:
            try:
                result = function(*args)
                settle = functools.partial(done.set_result, result)
            except Exception as error:  # noqa: BLE001 - carried to who waits
                settle = functools.partial(done.set_exception, error)
            if not done.cancelled():
                settle()

        self.call_soon(run)
        return done

    def later(self, delay_s: float, act: Callable[[], object]) -> None:
        """Do something from outside, whatever becomes of the process that asked for it."""
        self.call_later(delay_s, act, context=contextvars.Context())

    def note(self, *facts: int) -> None:
        """Add facts to the trace that two runs of one seed must share."""
        self.trace = zlib.crc32(repr(facts).encode(), self.trace)

    def forget(self) -> None:
        """Drop all tasks at the end of the run, without a word about those that still wait."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            _close_unstarted(coroutine)
        self._tasks.clear()
        self._scheduled.clear()
        for process in self.processes:
            process.ready.clear()

    def _check_closed(self) -> None:
        """Let Python's clean-up after a run schedule anything: nothing runs any more."""

    def _call_soon(
        self, callback: Any, args: Any, context: contextvars.Context | None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(PROCESS, OUTSIDE)  # type: ignore[attr-defined]
        if process.alive:
            process.ready.append(handle)

    def _run_once(self) -> None:
        self._expire()
        able = self._able()
        while not able:
            if not self._scheduled:
                raise NothingLeftError("nothing is left to run")
            self._now = max(self._now, self._scheduled[0]._when)
            self._expire()
            able = self._able()
        chosen = len(able) - 1
        if chosen:
            chosen -= min(int(self._rng.expovariate(self._youth)), chosen)
        process = able[chosen]
        handle = process.ready.popleft()
        self.steps += 1
        self.note(process.number)
        if not handle._cancelled:
            handle._run()

    def _able(self) -> list[Process]:
        return [p for p in self.processes if p.alive and p.ready and not p.paused]

    def _expire(self) -> None:
        while self._scheduled and self._scheduled[0]._when <= self._now:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                self._enqueue(handle)

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the run with an error that nobody caught."""
        raise context.get("exception") or RuntimeError(context["message"])


def _close_unstarted(coroutine: Any) -> None:
    """Close a coroutine that never began, and those that it was given to await."""
    if inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED:
        return
    given = [value for value in coroutine.cr_frame.f_locals.values() if inspect.iscoroutine(value)]
    coroutine.close()
    for one in given:
        _close_unstarted(one)
