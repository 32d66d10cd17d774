"""Repeated: a step that is done again and again while a body runs, such as to show its progress."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from agents import tasks

PAUSE_S = 0.5
"""The time between two steps."""


@contextlib.asynccontextmanager
async def repeated(step: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do a step now and then while the body runs.

    An error of a step ends the body, and is raised instead.
    """
    body = asyncio.current_task()
    assert body is not None
    failures: list[Exception] = []

    async def work() -> None:
        try:
            while True:
                await step()
                await asyncio.sleep(PAUSE_S)
        except Exception as error:  # noqa: BLE001  # whatever it is, the body raises it
            failures.append(error)
            body.cancel()

    task = asyncio.create_task(work())
    try:
        yield
    except asyncio.CancelledError:
        if failures:
            body.uncancel()
            raise failures[0] from None
        raise
    finally:
        await tasks.end(task)
