"""Histories: whether a map may continue with the journals that a cluster has of it.

A claim of another map is refused; these checks refuse it before a worker has to be stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.partition.claims import wrong_map
from agents.partition.partition_io import PartitionIO
from agents.partition.recovery import Recovery
from app.cluster.topics import topics_found
from app.kafka.log import KafkaLog
from tables.model.errors import MapError
from tables.model.layer import Map
from tables.model.limits import RECORD_BYTES_MAX
from tables.state.block_table import BlockWrite
from tables.state.input_plan import InputPlan
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState


class _JournalOnly(PartitionIO):
    """A partition's journal without a local store."""

    def __init__(self, plan: InputPlan, to: KafkaLog) -> None:
        # The methods that need these are overridden below, or never called.
        super().__init__(plan, 0, to, NotImplemented, archive=NotImplemented)

    def load(self) -> PartitionState | None:
        """Return no state."""
        return None

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Keep nothing."""

    def discard(self) -> None:
        """There is nothing to empty."""


async def check_histories(
    brokers: str, themap: Map, client_options: Mapping[str, Any]
) -> int | None:
    """Check that workers with this map would not be refused by its journals.

    The first partition of each journal of the map is read. If sources have other numbers of
    partitions, only these are reported: those of layers follow from them.

    Returns:
        The highest revision of the map that workers used. None if no worker has claimed a journal:
        then nothing in Kafka says which map was applied.

    Raises:
        MapError: they would be refused; the message has all reasons.
        TreasureMapError: no broker answers.
    """
    options = dict(client_options)
    prefix = themap.journal_topic("")
    topics = [name for name in await topics_found(brokers, options) if name.startswith(prefix)]
    if not topics:
        return None
    revision: int | None = None
    sources = {source.topic for source in themap.sources}
    wrong: dict[bool, dict[str, None]] = {True: {}, False: {}}
    log = KafkaLog(brokers, RECORD_BYTES_MAX, options, reads_only=True)
    await log.start()
    try:
        for topic in sorted(name.removeprefix(prefix) for name in topics):
            meta = await _known(log, themap, topic)
            if meta is None:
                continue
            revision = max(meta.revision, revision or meta.revision)
            # An input that the map no longer has may have had any number.
            count = themap.inputs().get(topic, meta.partitions)
            claim = _plan(themap, topic, count).claim(0)
            other_source = topic in sources and count != meta.partitions
            wrong[other_source] |= dict.fromkeys(wrong_map(topic, meta, claim))
    finally:
        await log.stop()
    if problems := list(wrong[True] or wrong[False]):
        raise MapError(f"{themap.name} as revision {themap.revision}", problems)
    return revision


async def _known(log: KafkaLog, themap: Map, topic: str) -> Meta | None:
    """Return the history in the journal of an input, None if nobody has claimed it."""
    plan = _plan(themap, topic, 1)
    io = _JournalOnly(plan, log)
    _, end = await io.journal_bounds()
    if not end:
        return None
    meta = (await Recovery(plan, 0, io).run(end - 1)).meta
    return meta if meta.epoch >= 0 else None


def _plan(themap: Map, topic: str, partitions: int) -> InputPlan:
    # Without layers all blocks are skipped: only claims are read.
    return InputPlan(themap, topic, partitions, ())
