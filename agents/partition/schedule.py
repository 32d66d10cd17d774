"""The time at which something is due, and a task that sleeps until then.

Moments are seconds of a clock that never goes back; ``NOW`` is before all of them, ``NEVER`` after.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

NOW = -math.inf
NEVER = math.inf


def loop_time() -> float:
    """Return the seconds of the running event loop's clock, which never goes back."""
    return asyncio.get_running_loop().time()


class Schedule:
    """Lets one task sleep until something is ``due``, and wakes it if news makes it due earlier."""

    def __init__(self, due: Callable[[], float], clock: Callable[[], float] = loop_time) -> None:
        self._due = due
        self._clock = clock
        self._woken = asyncio.Event()
        # None while the task does the due work, or waits for its retry.
        self._asleep_until: float | None = NEVER

    def check(self) -> None:
        """Wake the task if something is due before it would wake by itself.

        While the task does the due work, this does nothing, because it checks again afterwards.
        """
        until = self._asleep_until
        if until is not None and ((due := self._due()) < until or due <= self._clock()):
            self._woken.set()

    async def sleep(self) -> None:
        """Return once something is due."""
        while True:
            self._woken.clear()
            due, now_s = self._due(), self._clock()
            if due <= now_s:
                self._asleep_until = None
                return
            self._asleep_until = due
            # Not wait_for: before Python 3.12 it swallows a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due == NEVER else due - now_s):
                    await self._woken.wait()
