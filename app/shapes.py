"""Shapes against a cluster: whether a map's layers are those that its journals know by name.

A worker's claim is refused where they are not; here it is told before a worker has to be stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.log_partition import LogPartitionIO
from agents.recovery import Recovery
from app.kafka_log import KafkaLog
from app.topics import topics_found
from tables.layer import Map
from tables.limits import RECORD_BYTES_MAX
from tables.plan import InputPlan
from tables.shape import refuse_changes
from tables.state import Meta, PartitionState
from tables.table import BlockWrite


class _JournalOnly(LogPartitionIO):
    """A partition's journal without a local store."""

    def __init__(self, plan: InputPlan, to: KafkaLog) -> None:
        # What these are for is overridden below, or never asked for.
        super().__init__(plan, 0, to, NotImplemented, archive=NotImplemented)

    def load(self) -> PartitionState | None:
        """Return that there is no state."""
        return None

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Keep nothing."""

    def discard(self) -> None:
        """There is nothing to empty."""


async def check_shapes(
    brokers: str, themap: Map, client_options: Mapping[str, Any] | None = None
) -> None:
    """Check that no layer has another shape than the one that journals know under its name.

    Of each journal of the map its first partition is read.

    Raises:
        MapError: some have; the message has all of them.
        TreasureMapError: no broker answers.
    """
    options = dict(client_options or {})
    prefix = themap.journal_topic("")
    topics = [name for name in await topics_found(brokers, options) if name.startswith(prefix)]
    if not topics:
        return
    log = KafkaLog(brokers, RECORD_BYTES_MAX, options)
    await log.start()
    try:
        known = [await _known(log, themap, name.removeprefix(prefix)) for name in sorted(topics)]
    finally:
        await log.stop()
    refuse_changes(themap, *known)


async def _known(log: KafkaLog, themap: Map, topic: str) -> dict[str, dict[str, str]]:
    """Return the shapes that the journal of an input knows."""
    # Without layers all blocks are skipped: claims alone are taken.
    plan = InputPlan(themap, topic, 1, (), None, None, 0, {})
    io = _JournalOnly(plan, log)
    _, end = await io.journal_bounds()
    if not end:
        return {}
    return (await Recovery(plan, 0, io).run(end - 1)).meta.shapes
