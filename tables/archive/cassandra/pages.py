"""Pages: the answer of one statement to Cassandra, page after page, without blocking the loop.

The driver answers in threads of its own. A page is asked for once the one before was taken, so that
a reader that has enough holds no more than one of each statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable

from cassandra.cluster import ResponseFuture, Session
from cassandra.query import Statement

from tables.archive.cassandra.cql import Row
from tables.archive.cassandra.driver import driver


@dataclasses.dataclass(eq=False)
class Pages:
    """One statement, and whether something of it is on its way; ``verb`` is its purpose.

    It holds a permit while something of it is on its way: a caller that gives it up leaves the
    permit with the request, on which Cassandra works all the same. Each page has the driver's own
    deadline; no answer within ``patience_s`` means that the driver will never report one.
    """

    session: Session
    verb: str
    statement: Statement
    permits: asyncio.Semaphore
    patience_s: float

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._page: asyncio.Future[list[Row]] = self._loop.create_future()
        self._is_over = False
        self._has_permit = False

    async def read(self, take: Callable[[list[Row]], None]) -> None:
        """Hand over each page as it comes; an error, also of ``take``, ends it.

        Raises:
            ArchiveError: has the driver's message, or says that it gave none.
        """
        await self.permits.acquire()
        self._has_permit = True
        is_given_up = False
        try:
            with driver(self.verb):
                answer = self.session.execute_async(self.statement)
                answer.add_callbacks(self._on_page, lambda error: self._on_page(None, error))
                await self._take_pages(answer, take)
        except asyncio.CancelledError:
            is_given_up = not self._page.done()
            if is_given_up:
                # The driver may never report it.
                self._loop.call_later(self.patience_s, self._free)
            raise
        finally:
            self._is_over = True
            if self._page.done():
                # One that came together with the cancellation. Nobody needs its error,
                # and asyncio would log it if nobody read it.
                self._page.exception()
            if not is_given_up:
                self._free()

    def _free(self) -> None:
        """Give the permit back, once."""
        if self._has_permit:
            self._has_permit = False
            self.permits.release()

    async def _take_pages(self, answer: ResponseFuture, take: Callable[[list[Row]], None]) -> None:
        while True:
            await asyncio.wait({self._page}, timeout=self.patience_s)
            if not self._page.done():
                raise TimeoutError(f"the driver reported nothing within {self.patience_s:g} s")
            take(self._page.result())
            if not answer.has_more_pages:
                return
            self._page = self._loop.create_future()
            answer.start_fetching_next_page()

    def _on_page(self, page: list[Row] | None, error: BaseException | None = None) -> None:
        # The loop may be gone when an answer comes after a cancelled run; nobody waits for it then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived, list(page or ()), error)

    def _arrived(self, rows: list[Row], error: BaseException | None) -> None:
        if self._is_over:
            self._free()
        elif error is not None:
            self._page.set_exception(error)
        else:
            self._page.set_result(rows)
