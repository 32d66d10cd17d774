"""Pages of Cassandra: rows count as they come, and a sent request counts until it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from tables.archive.cassandra.cql import Row
from tables.archive.cassandra.pages import Pages
from tables.model.errors import ArchiveAwayError
from tests.support.waiting import until

PAGE = [(1,)] * 5_000


class Answer:
    """The driver's answer: so many pages, each from another thread once it is asked for."""

    def __init__(self, pages: int, gate: threading.Event) -> None:
        self.pages = pages
        self.given = 0
        self._gate = gate

    @property
    def has_more_pages(self) -> bool:
        """Return whether there is another."""
        return self.given < self.pages

    def add_callbacks(self, page: Any, error: Any) -> None:
        """Give the first page."""
        self._page, self._error = page, error
        self.start_fetching_next_page()

    def start_fetching_next_page(self) -> None:
        """Give another page, or the error of an answer that has none."""
        threading.Thread(target=self._give).start()

    def _give(self) -> None:
        self._gate.wait()
        self.given += 1
        if self.pages:
            self._page(PAGE)
        else:
            self._error(OSError("away"))


class Session:
    """Executes statements, which are numbers of pages."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.answers: list[Answer] = []

    def execute_async(self, statement: int) -> Answer:
        """Return the answer."""
        self.answers.append(Answer(statement, self.gate))
        return self.answers[-1]


def pages(session: Session, statement: int, permits: asyncio.Semaphore) -> Pages:
    """Return a statement of so many pages."""
    return Pages(session, "read", statement, permits, 20.0)


async def test_pages_are_taken_one_after_the_other() -> None:
    """The next one is asked for once the one before was taken; an error comes through."""
    session, permits = Session(), asyncio.Semaphore(1)
    rows: list[Row] = []
    await pages(session, 3, permits).read(rows.extend)
    assert len(rows) == 15_000
    with pytest.raises(ArchiveAwayError, match="cannot read: OSError: away"):
        await pages(session, 0, permits).read(rows.extend)
    assert not permits.locked()


async def test_who_has_enough_asks_for_no_more() -> None:
    """At most a page more of each statement is held."""
    session, permits = Session(), asyncio.Semaphore(1)
    rows: list[Row] = []

    def take(page: list[Row]) -> None:
        rows.extend(page)
        if len(rows) > 12_000:
            raise OverflowError

    with pytest.raises(OverflowError):
        await pages(session, 1_000, permits).read(take)
    assert len(rows) == 15_000
    assert session.answers[0].given == 3
    assert not permits.locked()


async def test_what_was_sent_has_its_permit_until_it_is_answered() -> None:
    """The permit stays if nobody waits for the answer any more."""
    session, permits = Session(), asyncio.Semaphore(1)
    session.gate.clear()
    rows: list[Row] = []
    task = asyncio.create_task(pages(session, 2, permits).read(rows.extend))
    await until(lambda: bool(session.answers))
    task.cancel()
    await asyncio.wait({task})
    assert permits.locked()
    session.gate.set()
    await until(lambda: not permits.locked())
    assert rows == []
    assert session.answers[0].given == 1


async def test_an_error_that_comes_with_the_cancellation_is_not_left_unread() -> None:
    """A worker that stops while writes are refused would end with tracebacks of asyncio."""

    class Held:
        has_more_pages = False

        def add_callbacks(self, page: Any, error: Any) -> None:
            del page
            self.fail = error

    class Holding(Session):
        def execute_async(self, statement: int) -> Any:
            del statement
            self.held: Any = Held()
            return self.held

    session, permits = Holding(), asyncio.Semaphore(1)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    asked = Pages(session, "write", 1, permits, 1.0)
    gone = weakref.ref(asked)
    task = asyncio.create_task(asked.read(lambda _: None))
    await until(lambda: hasattr(session, "held"))
    session.held.fail(OSError("refused"))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not permits.locked()
    session.held = None
    del task, asked
    await until(lambda: gc.collect() >= 0 and gone() is None)
    assert told == []
