"""Threads and turns of queries: nothing is given up that still runs, and others have their turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tables.threads import TURN_S, Threads, Turns, gathered
from tests.support.waiting import until


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Return one thread."""
    made = Threads(1, "test")
    yield made
    made.close()


async def test_a_result_or_an_error_comes_back(threads: Threads) -> None:
    """The caller gets it as if the call had been made at once."""
    assert await threads.run(max, 3, 5) == 5
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 1, 0)


async def test_who_is_cancelled_waits_until_the_thread_ends(threads: Threads) -> None:
    """A call that has not begun is dropped at once; one that runs is told to stop."""
    began, stop, go = threading.Event(), threading.Event(), threading.Event()
    called: list[int] = []

    def call() -> None:
        began.set()
        go.wait()

    running = asyncio.create_task(threads.run(call, stop=stop))
    waiting = asyncio.create_task(threads.run(called.append, 1))
    await asyncio.to_thread(began.wait)
    waiting.cancel()
    await asyncio.wait({waiting})
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not running.done()
    assert stop.is_set()
    go.set()
    await asyncio.wait({running})
    assert running.cancelled()
    assert waiting.cancelled()
    await threads.run(int)
    assert called == []


async def test_jobs_run_side_by_side_but_not_all_at_once() -> None:
    """Their results are in order."""
    running = most = 0

    async def job(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    jobs = [lambda number=number: job(number) for number in range(20)]
    assert await gathered(jobs, 3) == list(range(20))
    assert most == 3
    assert await gathered([], 3) == []


async def test_the_first_error_ends_the_other_jobs() -> None:
    """Nothing of them goes on."""
    ended = []

    async def fails() -> None:
        raise ValueError("the first")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    with pytest.raises(ValueError, match="the first"):
        await gathered([waits, waits, fails, waits], 3)
    assert ended == [1, 1]


async def test_others_have_a_turn_between_short_steps() -> None:
    """They do, though no step waits for anything."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    loop = asyncio.get_running_loop()
    mine = Turns()
    stop = loop.time() + 20 * TURN_S

    async def is_over() -> bool:
        await mine.give()
        return loop.time() > stop

    while not await is_over():
        pass
    assert turns > 2
    task.cancel()
    await until(task.done)
