"""Waits that end, though anything may lose a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from agents.tasks import end, within


async def stubborn(times: int, done: list[str]) -> str:
    """Lose that many cancellations, as ``asyncio.wait_for`` does before Python 3.12."""
    for _ in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            done.append("lost")
    await asyncio.Event().wait()
    return "never"


async def test_a_task_that_loses_cancellations_is_ended() -> None:
    """It is cancelled until it has ended."""
    lost: list[str] = []
    task = asyncio.create_task(stubborn(2, lost))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await end(task)
    assert task.cancelled()
    assert lost == ["lost", "lost"]


async def test_what_takes_too_long_is_ended_and_what_does_not_gives_its_result() -> None:
    """A result that comes after the deadline, while it is ended, is a result."""
    lost: list[str] = []
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
            await within(0.01, stubborn(1, lost))
    assert lost == ["lost"]
    assert await within(10, asyncio.sleep(0, "at once")) == "at once"

    async def late() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        return "never"

    assert await within(0.01, late()) == "late"


async def test_work_that_somebody_else_cancels_has_no_result() -> None:
    """Clients of brokers cancel tasks of their own while they close; who waits is not cancelled."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(TimeoutError):
        await within(60, cancelled())


async def test_errors_come_through() -> None:
    """A call that ends in time keeps its own result or error."""

    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await within(10, fails())


async def test_who_is_cancelled_ends_what_it_waits_for() -> None:
    """Nothing is left behind."""
    lost: list[str] = []
    waiting = asyncio.create_task(within(10, stubborn(1, lost)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert lost == ["lost"]
