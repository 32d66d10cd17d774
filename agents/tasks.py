"""Ending tasks whose awaits are not all our own, and waits that have an end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_AGAIN_SECONDS = 0.5

Result = TypeVar("Result")


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` until it has ended; its result or error is the caller's to take.

    Once does not always do: ``asyncio.wait_for`` loses a cancellation that arrives together with
    its awaitable (before Python 3.12), and clients of brokers are full of it.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of ``work``, which is cancelled until it has ended if that takes too long.

    Unlike ``asyncio.wait_for`` and ``asyncio.timeout``, which cancel once: see :func:`end`.

    Raises:
        TimeoutError: it took longer, and ended without a result.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        in_time = task.done()
        await end(task)
    if not in_time and (task.cancelled() or task.exception() is not None):
        raise TimeoutError(f"no answer within {seconds:g} s") from _error(task)
    return task.result()


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
