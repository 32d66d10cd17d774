"""Threads for long steps of a query, and turns between short ones: the event loop stays free.

A thread cannot be stopped. A caller that is cancelled while it waits for one waits until it ends: a
query that was given up counts against the number of queries until nothing of it runs any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

THREADS = 4
"""The default number of threads."""

TURN_S = 0.005
"""The time that short steps run before others have a turn."""

T = TypeVar("T")


class Threads:
    """A number of threads.

    Args:
        count: how many.
        name: their purpose.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, name)

    def close(self) -> None:
        """Take no more calls, and drop those that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def finish(self) -> None:
        """Take no more calls, and block until all that there are have ended."""
        self._pool.shutdown()

    async def run(
        self, call: Callable[..., T], *arguments: Any, stop: threading.Event | None = None
    ) -> T:
        """Return the result of a call made in a thread.

        If the caller is cancelled, a call that has not begun is dropped; one that runs is waited
        for, after ``stop`` was set, which it may check.
        """
        work = self._pool.submit(call, *arguments)
        future = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            if not work.cancel():
                await ended(future)
            raise


async def ended(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, however often the waiting is cancelled; forget its result."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future})
    if not future.cancelled():
        future.exception()


class Turns:
    """Lets others have the event loop while many short steps follow each other without waiting."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    async def give(self) -> None:
        """Let others run, if the steps since the last turn took long."""
        if self._loop.time() - self._since >= TURN_S:
            await asyncio.sleep(0)
            self._since = self._loop.time()


async def gathered(jobs: Iterable[Callable[[], Awaitable[T]]], width: int) -> list[T]:
    """Return the results of jobs in their order, of which at most ``width`` run at once.

    The first error ends all of them.
    """
    numbered = list(enumerate(jobs))
    if len(numbered) == 1:
        return [await numbered[0][1]()]
    found: dict[int, T] = {}
    waiting = iter(numbered)

    async def lane() -> None:
        turns = Turns()
        for number, job in waiting:
            found[number] = await job()
            await turns.give()

    lanes = [asyncio.create_task(lane()) for _ in range(min(width, len(numbered)))]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await ended(asyncio.gather(*lanes, return_exceptions=True))
    return [found[number] for number, _ in numbered]
