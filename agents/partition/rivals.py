"""Rivals: workers of another consumer group that claim the same map's partitions.

Within a group partitions are divided; two groups know nothing of each other and take their
partitions from each other without end. Results stay right, but nothing gets on.
"""

from __future__ import annotations

import asyncio
import logging

from tables.model.errors import FencedError

REMEMBERED_S = 60.0
"""How long a rival counts after it was last met: a partition is claimed again after 1 to 3 s."""

ADVICE = (
    "two groups on one map take their partitions from each other; stop the workers of one, or give"
    " all the same group"
)

log = logging.getLogger(__name__)


class Rivals:
    """Who has taken partitions from this worker, though not of its group."""

    def __init__(self) -> None:
        self._met_at: dict[str, float] = {}

    def note(self, error: BaseException) -> None:
        """Take note of what a partition was lost for; a rival is logged once while it stays."""
        if not isinstance(error, FencedError) or not error.rival:
            return
        known = self._known()
        if error.rival not in known:
            log.error("partitions are taken by %s: %s", error.rival, ADVICE)
        self._met_at = known | {error.rival: asyncio.get_running_loop().time()}

    def reason(self) -> str:
        """Return who the rivals are and what to do, empty while there are none."""
        known = self._known()
        return f"partitions are taken by {', '.join(sorted(known))}: {ADVICE}" if known else ""

    def reasons(self) -> list[str]:
        """Return :meth:`reason` as a list, which is empty while there are no rivals."""
        return [reason] if (reason := self.reason()) else []

    def _known(self) -> dict[str, float]:
        if not self._met_at:
            return {}
        now = asyncio.get_running_loop().time()
        return {who: at for who, at in self._met_at.items() if now - at < REMEMBERED_S}
