"""The report of a trial: durations that a map takes as they are."""

from __future__ import annotations

import random

import pytest

from app.demo.own_report import duration
from tables.model.window import parse_duration_ms


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [(1, "1ms"), (1_500, "1500ms"), (1_000, "1s"), (59_500, "60s"), (3_600_000, "1h"),
     (3_540_000, "59m"), (180_000_000, "50h"), (86_400_000, "1d")],
)  # fmt: skip
def test_a_duration_is_short(length_ms: int, text: str) -> None:
    """People copy it into their map."""
    assert duration(length_ms) == text


def test_a_duration_is_never_too_short() -> None:
    """Nor a tenth longer than is needed."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(2_000):
        length_ms = int(10 ** chance.uniform(0, 11))
        taken_ms = parse_duration_ms(duration(length_ms))
        assert length_ms <= taken_ms <= length_ms * 1.1, f"seed {seed}, {length_ms} ms"
