"""The wake-up of one waiter, by whoever has work for it, or by the clock."""

from __future__ import annotations

import asyncio
import math


class Wakeup:
    """Wakes one waiter. One timer serves every caller that wants it woken by a time."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._timer: asyncio.Handle | None = None
        self._at = math.inf

    def ring(self) -> None:
        """Wake the waiter now, or at its next wait."""
        self._event.set()

    def ring_in(self, seconds: float) -> None:
        """Wake the waiter after a while at the latest."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if at < self._at:
            if self._timer is not None:
                self._timer.cancel()
            self._at, self._timer = at, loop.call_at(at, self._timed_out)

    async def wait(self) -> None:
        """Wait until it rings."""
        await self._event.wait()
        self._event.clear()

    def _timed_out(self) -> None:
        self._at = math.inf
        self._event.set()
