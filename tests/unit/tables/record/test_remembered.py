"""The memory of producers' texts is bounded, and answers stay right after forgetting."""

from __future__ import annotations

import pytest

from tables.record.remembered import ENTRY_SIZE, LENGTH_MAX, SIZE_MAX, Remembered


def test_an_answer_is_found_once() -> None:
    """An answer of zero is found once too."""
    asked: list[str] = []

    def length(text: str) -> int:
        asked.append(text)
        return len(text)

    answers: Remembered[str, int] = Remembered(length)
    assert [answers(text) for text in ("a", "", "a", "")] == [1, 0, 1, 0]
    assert asked == ["a", ""]


@pytest.mark.parametrize("length", [10, 20_000, LENGTH_MAX, LENGTH_MAX + 1])
def test_all_together_stay_within_a_bound(length: int) -> None:
    """Number bounds short texts, length bounds long ones; the longest are not kept."""
    answers: Remembered[bytes, bytes] = Remembered(lambda text: text[:8])
    most = 0
    for number in range(2 * SIZE_MAX // (length + ENTRY_SIZE)):
        text = b"%08d" % number + b"x" * (length - 8)
        assert answers(text) == text[:8]
        most = max(most, answers.size)
    assert most <= SIZE_MAX
    assert (most == 0) == (length > LENGTH_MAX)


def test_what_cannot_be_found_is_raised_each_time() -> None:
    """Errors are not remembered."""

    def find(text: str) -> int:
        return int(text)

    answers = Remembered(find)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            answers("x")
