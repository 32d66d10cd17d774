"""Background work: it runs for as long as the worker does, and cannot die unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mode import Service

from agents.supervised import supervised
from agents.tasks import end

Work = Callable[[], Coroutine[Any, Any, None]]


class Background(Service):  # type: ignore[misc]  # mode comes without types
    """Does each work beside the others; ``failed`` gets an error that ends one."""

    def __init__(self, failed: Callable[[BaseException], None], *work: Work, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._failed = failed
        self._work = work
        self._running: list[asyncio.Task[None]] = []

    async def on_start(self) -> None:
        """Begin."""
        self._running = [asyncio.create_task(supervised(one(), self._failed)) for one in self._work]

    async def on_stop(self) -> None:
        """End."""
        await asyncio.gather(*(end(task) for task in self._running))
