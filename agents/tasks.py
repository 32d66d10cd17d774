"""Tasks: cancel one until it has ended, and await one with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_AGAIN_SECONDS = 0.5

Result = TypeVar("Result")


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` until it has ended; the caller reads its result or error.

    One cancel is not always enough: before Python 3.12 ``asyncio.wait_for``, which clients of
    brokers use a lot, loses one that arrives together with the result of its awaitable.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of ``work``; cancel it until it has ended if it takes too long.

    ``asyncio.wait_for`` and ``asyncio.timeout`` cancel only once: see :func:`end`.

    Raises:
        TimeoutError: it took longer, or was cancelled by somebody else: there is no result.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        in_time = task.done()
        await end(task)
    error = None if task.cancelled() else task.exception()
    if task.cancelled() or (not in_time and error is not None):
        raise TimeoutError(f"no answer within {seconds:g} s") from error
    return task.result()
