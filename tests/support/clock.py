"""A clock that a test moves."""

from __future__ import annotations


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s
