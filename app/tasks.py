"""Ending tasks whose awaits are not all our own."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_SECONDS = 0.5


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` until it has ended; its result or error is the caller's to take.

    Once does not always do: ``asyncio.wait_for`` loses a cancellation that arrives together with
    what it waits for (before Python 3.12), and clients of brokers are full of it.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)
