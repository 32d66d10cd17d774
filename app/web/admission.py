"""Admission: how many queries are answered at once, each until it is done or late."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from app.web.guard import BusyError, DeadlineError

Result = TypeVar("Result")


class QueryAdmission:
    """Runs a bounded number of queries, each for a bounded time.

    A query that was given up has its slot until all that it began has ended: a thread cannot be
    stopped, and a read of the archive may still be under way.
    """

    def __init__(self, count: int, deadline_ms: int) -> None:
        self._count = count
        self._deadline_ms = deadline_ms
        self._running: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Cancel the queries that still run."""
        for task in self._running:
            task.cancel()

    async def run(
        self, query: Coroutine[Any, Any, Result], deadline_ms: int | None = None
    ) -> Result:
        """Run a query in a slot until it is done or late; a late one is cancelled.

        Raises:
            BusyError: all slots are in use.
            DeadlineError: it was late.
        """
        if len(self._running) >= self._count:
            query.close()
            raise BusyError(
                f"cannot read cells: {len(self._running)} queries are being answered;"
                " want no more at once (query_concurrency_max); ask again later"
            )
        task = asyncio.create_task(query)
        self._running.add(task)
        task.add_done_callback(self._ended)
        most_ms = min(deadline_ms or self._deadline_ms, self._deadline_ms)
        try:
            await asyncio.wait({task}, timeout=most_ms / 1_000)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            return task.result()
        task.cancel()
        named = "query_deadline_ms" if most_ms == self._deadline_ms else "deadline_ms"
        raise DeadlineError(
            f"cannot read cells: not done after {most_ms} ms ({named});"
            " ask for a shorter range or fewer keys, or again later"
        )

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Whoever gave it up does not ask for its result.
            task.exception()
