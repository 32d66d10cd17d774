"""Refusal: the group gives this worker nothing, because it cannot be beside an earlier one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agents.supervised import supervised
from app.kafka.group_map import GroupMap
from app.kafka.transport_options import TransportError, TransportOptions

log = logging.getLogger(__name__)


class Refusal:
    """Waits while the group refuses this worker, and then ends it.

    The member that it cannot be beside may be dead; the group forgets it within a session.

    Args:
        options: who this worker is.
        group: as of the last assignment.
        fail: called with the reason to end.

    Attributes:
        reason: why it is refused, empty while it is not.
    """

    def __init__(
        self, options: TransportOptions, group: GroupMap, fail: Callable[[BaseException], None]
    ) -> None:
        self._options = options
        self._group = group
        self._fail = fail
        self._ending: asyncio.Task[None] | None = None
        self.reason = ""

    def look(self) -> None:
        """Take note of a new assignment."""
        options = self._options
        reason = self._group.refused.get(options.boot, "")
        if not reason and options.peer_key is None:
            # The others have a secret, and cannot know that this one is a worker.
            reason = self._group.strangers.get((options.node, options.web_url), "")
        if reason == self.reason:
            return
        self.stop()
        self.reason = reason
        if reason:
            log.warning("group %s refuses this worker, which waits: %s", options.group, reason)
            self._ending = asyncio.create_task(supervised(self._end(), self._fail))

    def stop(self) -> None:
        """Wait no longer."""
        if self._ending is not None:
            self._ending.cancel()

    async def _end(self) -> None:
        await asyncio.sleep(self._options.session_timeout_ms / 1_000)
        raise TransportError(
            f"cannot share group {self._options.group}: {self.reason}; "
            f"got nodes {', '.join(sorted(self._group.nodes))}"
        )
