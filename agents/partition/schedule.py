"""When something is due, and a task that sleeps until then.

NOW   <   at(t)   <   NEVER        the earlier moment is the smaller one
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class When:
    """A moment: ``NOW``, ``NEVER`` or one that :func:`at` returns."""

    _at_s: float

    def is_due(self, now_s: float) -> bool:
        """Return whether the moment has come."""
        return self._at_s <= now_s

    def wait_s(self, now_s: float) -> float | None:
        """Return the seconds until the moment, None if it never comes."""
        return None if self is NEVER else self._at_s - now_s


NOW = When(-math.inf)
NEVER = When(math.inf)


def at(time_s: float) -> When:
    """Return a moment of a clock, in seconds."""
    return When(time_s)


def loop_time() -> float:
    """Return the seconds of the running event loop's clock, which never goes back."""
    return asyncio.get_running_loop().time()


class Schedule:
    """Lets one task sleep until something is due, and wakes it if news makes it due earlier.

    Args:
        due: returns when something is due, as of now.
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, due: Callable[[], When], clock: Callable[[], float] = loop_time) -> None:
        self._due = due
        self._clock = clock
        self._news = asyncio.Event()
        # None while the task does the due work, or waits for its retry.
        self._asleep_until: When | None = NEVER

    @property
    def is_woken(self) -> bool:
        """Whether the task has been woken and has not checked yet."""
        return self._news.is_set()

    def look(self) -> None:
        """Wake the task if something is due before it would wake by itself.

        While the task does the due work, this does nothing, because it checks again afterwards.
        """
        until = self._asleep_until
        if until is not None and ((due := self._due()) < until or due.is_due(self._clock())):
            self._news.set()

    async def sleep(self) -> None:
        """Return once something is due."""
        while True:
            self._news.clear()
            due, now_s = self._due(), self._clock()
            if due.is_due(now_s):
                self._asleep_until = None
                return
            self._asleep_until = due
            # Not wait_for: before Python 3.12 it swallows a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due.wait_s(now_s)):
                    await self._news.wait()
