"""Waits with a deadline, and loads at a pace: the only place of tests that lets time pass."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

Condition = Callable[[], bool] | Callable[[], Awaitable[bool]]
LOOK_S = 0.01
"""Seconds between two looks at a condition."""


async def until(condition: Condition, deadline_s: float = 20, what: str = "") -> None:
    """Return when ``condition`` holds.

    Raises:
        TimeoutError: it does not within ``deadline_s``; ``what`` names the thing that never came.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    while not await _holds(condition):
        if loop.time() > deadline:
            raise TimeoutError(f"{what or condition} did not come within {deadline_s} s")
        await asyncio.sleep(LOOK_S)


async def stays(condition: Condition, seconds: float) -> None:
    """Return when ``condition`` has held at every look for so long; fail when it does not.

    For a state that a fault would end soon, and that nothing else ends.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        assert await _holds(condition), f"{condition} did not stay so for {seconds} s"
        await asyncio.sleep(LOOK_S)


async def beats(every_s: float | Callable[[], float]) -> AsyncIterator[int]:
    """Give the pace to a load: number its steps, of which the first is now, without an end.

    A function gives the pause after each step. A fixed pace makes up for steps that take long.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in itertools.count():
        yield number
        if callable(every_s):
            await asyncio.sleep(every_s())
        else:
            await asyncio.sleep(max(0.0, begun + (number + 1) * every_s - loop.time()))


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Return when ``condition`` holds, outside of an event loop.

    Raises:
        TimeoutError: it does not within ``deadline_s``; ``what`` names the thing that never came.
    """
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {deadline_s:g} s")
        time.sleep(LOOK_S)


def wait_gone(pid: int) -> None:
    """Wait until no process has ``pid``, or it is only waiting to be collected."""
    wait_until(lambda: set(thread_states(pid)) <= {"X", "Z"}, 20, f"the end of process {pid}")


def thread_states(pid: int) -> list[str]:
    """Return the letter that the kernel has for the state of each thread; T is stopped."""
    found = []
    for folder in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        # A thread may end between the listing and the look.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append((folder / "stat").read_text().rpartition(")")[2].split()[0])
    return found


async def _holds(condition: Condition) -> bool:
    found = condition()
    return await found if inspect.isawaitable(found) else found
