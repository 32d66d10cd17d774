"""Rivals: workers of another consumer group that claim the same map's partitions.

Within a group partitions are divided; two groups know nothing of each other and take their
partitions from each other without end. Results stay right, but there is no progress.
"""

from __future__ import annotations

import asyncio
import logging

from tables.model.errors import FencedError

REMEMBERED_S = 60.0
"""Seconds for which a rival counts after it was last met: a partition is claimed again after 1 to
3 s."""

ADVICE = (
    "two groups on one map take their partitions from each other; stop the workers of one, or give"
    " all the same group"
)

log = logging.getLogger(__name__)


class Rivals:
    """Workers of other groups that have taken partitions from this one."""

    def __init__(self) -> None:
        self._met_at: dict[str, float] = {}

    def note(self, error: BaseException) -> None:
        """Remember the rival, if any, to which a partition was lost; log it once while it stays."""
        if not isinstance(error, FencedError) or not error.rival:
            return
        known = self._known()
        if error.rival not in known:
            log.error("partitions are taken by %s: %s", error.rival, ADVICE)
        self._met_at = known | {error.rival: asyncio.get_running_loop().time()}

    def reasons(self) -> list[str]:
        """Return the names of the rivals and advice in one text; none while there are no rivals."""
        known = self._known()
        return [f"partitions are taken by {', '.join(sorted(known))}: {ADVICE}"] if known else []

    def _known(self) -> dict[str, float]:
        if not self._met_at:
            return {}
        now = asyncio.get_running_loop().time()
        return {who: at for who, at in self._met_at.items() if now - at < REMEMBERED_S}
