"""Counts of a transport."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class Statistics:
    """Counts of one transport since it started; the first three are as of now."""

    generation: int = -1
    ready: int = 0
    restoring: int = 0
    chunks: int = 0
    records: int = 0
    rebalances: int = 0
    restores: int = 0
    restore_retries: int = 0
    restarts: int = 0
    seeks_back: int = 0
    slow_releases: int = 0
    retried_errors: int = 0
    commit_failures: int = 0
