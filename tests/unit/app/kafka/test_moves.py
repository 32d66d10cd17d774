"""Restores begin again: soon as a rule, ever more seldom if each try leaves a claim behind."""

from __future__ import annotations

import asyncio

from app.kafka.moves import DOUBLED_MAX, Moves
from tables.model.errors import FencedError, JournalUnreadError, OutcomeUnknownError
from tests.support.waiting import until

HOUR_S = 3_600.0
CLAIM_BYTES = 1_000


class FailingOwners:
    """Owners whose restores fail with these errors, one after the other, and then succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Fail, or return the offset to read on from."""
        del topic, partition, generation
        if self.errors:
            raise self.errors.pop(0)
        return 7

    async def release(self, partitions: set[tuple[str, int]]) -> None:
        """Have nothing to let go."""

    def held(self) -> set[tuple[str, int]]:
        """Hold nothing."""
        return set()


class NotedMoves(Moves):
    """Notes how often the wait was to be doubled, and does not wait."""

    noted: list[int]

    def retry_delay(self, unread: int = 0) -> float:
        """Return no wait."""
        self.noted.append(unread)
        return 0.0


async def test_tries_that_leave_a_claim_each_become_rare() -> None:
    """Others do not, and one of them ends the row."""
    unread, unknown = JournalUnreadError("unread"), OutcomeUnknownError("unknown")
    owners = FailingOwners(unknown, unread, unread, unread, FencedError("fenced"), unread)
    live: list[int] = []
    failed: list[BaseException] = []
    moves = NotedMoves(
        owners, (1.0, 3.0), stands=lambda _: True,
        live=lambda _tp, _generation, position: live.append(position), failed=failed.append,
    )  # fmt: skip
    moves.noted = []
    moves.restore(("t", 0), 1)

    async def restored() -> bool:
        await asyncio.sleep(0)
        return bool(live)

    await until(restored)
    assert live == [7]
    assert failed == []
    assert moves.noted == [0, 1, 2, 3, 0, 1]


def test_a_journal_that_cannot_be_read_grows_by_little() -> None:
    """Claims with the shapes of many layers add less than a megabyte a day and partition."""
    moves = Moves(
        FailingOwners(), (1.0, 3.0), stands=lambda _: True,
        live=lambda _tp, _generation, _position: None, failed=lambda _: None,
    )  # fmt: skip
    assert 1.0 <= moves.retry_delay() <= 3.0
    waits = [moves.retry_delay(unread) for unread in range(1, 1_000)]
    assert all(low <= wait <= 3 * low for low, wait in zip((2, 4, 8, 16), waits, strict=False))
    assert max(waits) <= 3 * 2**DOUBLED_MAX
    a_day = 24 * HOUR_S / (2**DOUBLED_MAX)
    assert a_day * CLAIM_BYTES < 1 << 20
