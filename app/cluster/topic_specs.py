"""The topics that follow from a map, as it wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from tables.model.layer import Map
from tables.model.limits import RECORD_BYTES_MAX

TopicKind = Literal["source", "layer", "journal", "feed", "side"]

REPLICATION_MAX = 3
"""Copies of a topic if the caller names no number and there are enough brokers."""

KEPT_FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
"""The settings of a journal: state is the fold of all its entries."""


@dataclasses.dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as the map wants it; ``config`` is by Kafka's names."""

    name: str
    kind: TopicKind
    partitions: int
    replication: int
    config: Mapping[str, str]


def topics_of(themap: Map, replication: int) -> list[TopicSpec]:
    """Return the topics of a map: each input followed by its journal, then feeds and side topics.

    Side topics have as many partitions as the widest source, so the letters of a source
    partition keep their order in the partition of that number. How long sources, layer topics,
    feeds and side topics keep their records is left to the broker; a journal keeps all of them,
    because state is the fold of them. A feed of JSON may be compacted; records of Arrow have no
    key, and brokers refuse such records there. Sources use the broker's time as the append time,
    because a producer's own clock must not decide which events are too far in the future.
    From three copies of a partition on, writes to the map's own topics need all but one.
    """
    own = {"max.message.bytes": str(RECORD_BYTES_MAX)}
    if replication >= REPLICATION_MAX:
        own["min.insync.replicas"] = str(replication - 1)
    sources = {source.topic for source in themap.sources}
    specs = []
    for topic, partitions in themap.inputs().items():
        if topic in sources:
            config = {"message.timestamp.type": "LogAppendTime"}
            specs.append(TopicSpec(topic, "source", partitions, replication, config))
        else:
            config = {"cleanup.policy": "delete"} | own
            specs.append(TopicSpec(topic, "layer", partitions, replication, config))
        journal = themap.journal_topic(topic)
        specs.append(TopicSpec(journal, "journal", partitions, replication, KEPT_FOR_EVER | own))
    for layer in themap.layers:
        if layer.publish:
            config = own | ({"cleanup.policy": "delete"} if layer.publish == "arrow" else {})
            feed = themap.feed_topic(layer)
            specs.append(TopicSpec(feed, "feed", layer.partitions, replication, config))
    widest = themap.side_partitions
    kinds: tuple[Literal["late", "dead"], ...] = ("late", "dead")
    specs += [
        TopicSpec(themap.side_topic(kind), "side", widest, replication, dict(own)) for kind in kinds
    ]
    return specs
