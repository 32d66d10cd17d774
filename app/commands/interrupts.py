"""Interrupts: a command's work ends in order, with all its children, when it is asked to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from agents import tasks

Result = TypeVar("Result")


async def until_interrupted(body: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of ``body``; Ctrl-C, or being asked to terminate, cancels it.

    Raises:
        asyncio.CancelledError: it was interrupted.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)
    whole = asyncio.create_task(body)
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({whole, waiting}, return_when=asyncio.FIRST_COMPLETED)
    await tasks.end(waiting)
    await tasks.end(whole)
    return await whole
