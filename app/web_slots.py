"""Slots: how many queries are answered at once, each until it is done or late."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from app.web_guard import BusyError, DeadlineError

Result = TypeVar("Result")


class Slots:
    """Runs at most so many queries, each for at most so long.

    Args:
        count: how many at once.
        deadline_ms: how long each.
    """

    def __init__(self, count: int, deadline_ms: int) -> None:
        self._count = count
        self._deadline_ms = deadline_ms
        self._running: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Give up what still runs."""
        for task in self._running:
            task.cancel()

    async def run(
        self, query: Coroutine[Any, Any, Result], deadline_ms: int | None = None
    ) -> Result:
        """Run a query in a slot until it is done or late; a late one is cancelled.

        Raises:
            BusyError: all slots are taken.
            DeadlineError: it was late.
        """
        if len(self._running) >= self._count:
            query.close()
            raise BusyError(
                f"cannot read cells: {len(self._running)} queries are being answered;"
                " want no more at once (query_concurrency_max); ask again later"
            )
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self._running.add(task)
        most_ms = min(deadline_ms or self._deadline_ms, self._deadline_ms)
        try:
            async with asyncio.timeout(most_ms / 1_000) as scope:
                return await query
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._running.discard(task)
        named = "query_deadline_ms" if most_ms == self._deadline_ms else "deadline_ms"
        raise DeadlineError(
            f"cannot read cells: not done after {most_ms} ms ({named});"
            " ask for a shorter range or fewer keys, or again later"
        )
