"""Schedules: a task that sleeps until a moment comes or news brings it."""

from __future__ import annotations

import asyncio

from agents.partition.schedule import NEVER, NOW, Schedule


class Clock:
    """A clock that the test puts forward."""

    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        """Return the seconds that it shows."""
        return self.now_s


class Sleeper:
    """A task that sleeps on a schedule; the test says when something is due."""

    def __init__(self) -> None:
        self.due: float = NEVER
        self.asked = 0
        self.clock = Clock()
        self.schedule = Schedule(self._due, self.clock)
        self.task = asyncio.create_task(self.schedule.sleep())

    def _due(self) -> float:
        self.asked += 1
        return self.due

    @property
    def is_woken(self) -> bool:
        """Whether the task has been woken and has not checked yet."""
        return self.schedule._woken.is_set()

    async def turns(self) -> None:
        """Let the task do all that it can do now."""
        for _ in range(10):
            await asyncio.sleep(0)


async def test_news_wakes_a_task_only_if_something_is_due_earlier() -> None:
    """A task finds a due time by itself if its own next look is before that."""
    sleeper = Sleeper()
    await sleeper.turns()
    sleeper.schedule.check()
    assert not sleeper.is_woken
    sleeper.due = 3_600.0
    sleeper.schedule.check()
    assert sleeper.is_woken
    await sleeper.turns()
    assert not sleeper.is_woken
    assert not sleeper.task.done()
    sleeper.due = 7_200.0
    sleeper.schedule.check()
    assert not sleeper.is_woken
    sleeper.due = NOW
    sleeper.schedule.check()
    await sleeper.task


async def test_a_task_wakes_when_the_time_comes() -> None:
    """It wakes by itself, and by news if the clock was put forward meanwhile."""
    sleeper = Sleeper()
    sleeper.due = 5.01
    await sleeper.turns()
    assert not sleeper.task.done()
    sleeper.clock.now_s = 6.0
    async with asyncio.timeout(20):
        await sleeper.task
    sleeper = Sleeper()
    sleeper.due = 3_600.0
    await sleeper.turns()
    sleeper.clock.now_s = 3_600
    sleeper.schedule.check()
    async with asyncio.timeout(20):
        await sleeper.task


async def test_nothing_is_looked_through_while_a_task_does_what_was_due() -> None:
    """The waiting cells grow with every delta while an archive is away."""
    sleeper = Sleeper()
    sleeper.due = NOW
    await sleeper.task
    asked = sleeper.asked
    sleeper.schedule.check()
    assert sleeper.asked == asked
    assert not sleeper.is_woken
