"""Histories: whether a map may continue with the journals that a cluster has of it.

A claim of another map is refused; these checks refuse it before a worker has to be stopped.
"""

from __future__ import annotations

import asyncio
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

    def __init__(self, plan: InputPlan, partition: int, to: KafkaLog) -> None:
        # The methods that need these are overridden below, or never called.
        super().__init__(plan, partition, to, NotImplemented, archive=NotImplemented)

    def load(self) -> PartitionState | None:
        """Return no state."""
        return None

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Keep nothing."""

    def discard(self) -> None:
        """There is nothing to empty."""


Histories = Mapping[tuple[str, int], Meta]
"""The state of each journal that has a claim, without cells, by input topic and partition."""


async def read_histories(brokers: str, themap: Map, client_options: Mapping[str, Any]) -> Histories:
    """Read all journals that a cluster has under the map's name.

    Every partition is read: each is claimed by itself, so that while workers change to another
    revision, or when one of them started with it by mistake, they differ.

    Raises:
        TreasureMapError: no broker answers.
    """
    options = dict(client_options)
    prefix = themap.journal_topic("")
    found = await topics_found(brokers, options)
    journals = {name: count for name, count in found.items() if name.startswith(prefix)}
    if not journals:
        return {}
    partitions = [
        (name.removeprefix(prefix), partition, count)
        for name, count in sorted(journals.items())
        for partition in range(count)
    ]
    log = KafkaLog(brokers, RECORD_BYTES_MAX, options, reads_only=True)
    await log.start()
    try:
        metas = await asyncio.gather(*(_known(log, themap, *one) for one in partitions))
    finally:
        await log.stop()
    return {
        (topic, partition): meta
        for (topic, partition, _), meta in zip(partitions, metas, strict=True)
        if meta is not None
    }


async def check_histories(
    brokers: str, themap: Map, client_options: Mapping[str, Any]
) -> int | None:
    """Check that workers with this map would not be refused by its journals.

    Returns:
        The highest revision of the map that workers used. None if no worker has claimed a journal:
        then nothing in Kafka says which map was applied.

    Raises:
        MapError: they would be refused; the message has all reasons.
        TreasureMapError: no broker answers.
    """
    histories = await read_histories(brokers, themap, client_options)
    if problems := refusals(histories, themap):
        raise MapError(f"{themap.name} as revision {themap.revision}", problems)
    return max((meta.revision for meta in histories.values()), default=None)


def refusals(histories: Histories, themap: Map) -> list[str]:
    """Return why journals would refuse workers with this map, each reason once.

    If sources have other numbers of partitions, only these are reported: those of layers follow
    from them.
    """
    sources = {source.topic for source in themap.sources}
    wrong: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for (topic, _), meta in histories.items():
        # An input that the map no longer has may have had any number.
        count = themap.inputs().get(topic, meta.partitions)
        claim = _plan(themap, topic, count).claim(0)
        other_source = topic in sources and count != meta.partitions
        wrong[other_source] |= dict.fromkeys(wrong_map(topic, meta, claim))
    return list(wrong[True] or wrong[False])


async def _known(
    log: KafkaLog, themap: Map, topic: str, partition: int, partitions: int
) -> Meta | None:
    """Return the history in the journal of an input partition, None if nobody has claimed it."""
    plan = _plan(themap, topic, partitions)
    io = _JournalOnly(plan, partition, log)
    _, end = await io.journal_bounds()
    if not end:
        return None
    meta = (await Recovery(plan, partition, io).run(end - 1)).meta
    return meta if meta.epoch >= 0 else None


def _plan(themap: Map, topic: str, partitions: int) -> InputPlan:
    # Without layers all blocks are skipped: only claims are read.
    return InputPlan(themap, topic, partitions, ())
