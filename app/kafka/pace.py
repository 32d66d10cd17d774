"""The pace of one lane: when its next chunk is due, and how large it may be.

A cycle has a price whatever it holds. While the worker is quiet a chunk is handed over as soon as
there is a record; the busier it is, the longer records are gathered first, so that the same load
needs fewer cycles. Behind a backlog a chunk is full at once and nothing waits. A full chunk is as
large as the agent handles in ``CYCLE_SECONDS``: larger ones would only hold up queries.

    busy share   0 ... 0.7 ........ 0.95 ... 1
    gathers         0 ms   rises to   gather_seconds_max
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

BUSY_FROM, BUSY_TO = 0.7, 0.95
"""Shares of one core that the process uses: from the first on records are gathered, at the
second for longest."""

SHARE_SECONDS = 1.0
"""The time over which the share is averaged."""

CYCLE_SECONDS = 0.25
"""How long a cycle should take at most."""

CHUNK_BYTES_MIN = 256 << 10
"""Smaller chunks cost noticeably more for each event, measured with 100 bytes an event."""

_MEASURED_BYTES_MIN = 64 << 10
"""A smaller chunk does not show how fast many records are handled."""

_WEIGHT = 0.2


@dataclasses.dataclass(eq=False)
class Pace:
    """Follows the load of one lane.

    Attributes:
        busy_share: CPU seconds per second, averaged.
        gather_seconds: how long records are gathered now.
        chunk_bytes: how many bytes of values a chunk may have now.
    """

    gather_seconds_max: float = 0.0
    chunk_bytes_max: int = 8 << 20
    _: dataclasses.KW_ONLY
    clock: Callable[[], float] = time.perf_counter
    cpu_clock: Callable[[], float] = time.process_time

    def __post_init__(self) -> None:
        self._at, self._cpu = self.clock(), self.cpu_clock()
        self._bytes_per_second = 0.0
        self.busy_share = 0.0
        self.gather_seconds = 0.0
        self.chunk_bytes = self.chunk_bytes_max

    def wait_seconds(self, waiting_bytes: int) -> float:
        """Return the time after the last cycle at which the next chunk is due."""
        return (
            0.0
            if waiting_bytes >= min(_MEASURED_BYTES_MIN, self.chunk_bytes)
            else self.gather_seconds
        )

    def done(self, handled_bytes: int, seconds: float) -> None:
        """Learn from a cycle that has just ended: its size and its time."""
        now, cpu = self.clock(), self.cpu_clock()
        passed = now - self._at
        if passed > 0:
            weight = 1 - math.exp(-passed / SHARE_SECONDS)
            self.busy_share += weight * ((cpu - self._cpu) / passed - self.busy_share)
            self._at, self._cpu = now, cpu
        share = (self.busy_share - BUSY_FROM) / (BUSY_TO - BUSY_FROM)
        self.gather_seconds = self.gather_seconds_max * min(1.0, max(0.0, share))
        if handled_bytes >= _MEASURED_BYTES_MIN and seconds > 0:
            speed = handled_bytes / seconds
            known = self._bytes_per_second or speed
            self._bytes_per_second = known + _WEIGHT * (speed - known)
            wanted = int(self._bytes_per_second * CYCLE_SECONDS)
            self.chunk_bytes = min(self.chunk_bytes_max, max(CHUNK_BYTES_MIN, wanted))
