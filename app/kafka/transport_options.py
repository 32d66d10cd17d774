"""How the transport reaches Kafka, who this node is in its group, and how much is read at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from agents.partition.claims import OTHER_PARTITIONS
from app.kafka.assignor import Member, by_topic
from app.trust.proof import PeerKey
from tables.model.errors import TreasureMapError
from tables.model.topic_partition import TopicPartition

MIB = 1 << 20
# A member is heard at least this often, and three times within a session (Kafka's own advice).
HEARTBEAT_MS_MAX = 3_000
# Revoking takes up to three seconds; a join must not throw out a member that still revokes.
REBALANCE_MS_MIN = 10_000
PARTITION_FETCH_BYTES_MIN = 64 * 1024


class TransportError(TreasureMapError):
    """Kafka cannot be read as it must be; the worker stops with it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """How to reach Kafka, who this node is, and how much is read at once.

    Attributes:
        node: this worker's name; a later start of the same node replaces the earlier.
        web_url: the address at which this node's endpoint answers the other members.
        boot: greater for a later start of the same node; by default the wall clock, nanoseconds.
        partitions: the number of partitions of each input topic of the map; those of a topic left
            out are not known. The bytes of one fetch are divided among them.
        partition_fetch_bytes_max: most bytes of one partition in it, but at least one batch.
        fetch_max_wait_ms: how long a broker waits for the first record of an answer.
        chunk_bytes_max: most bytes of values in one chunk, but at least one record.
        alone: why this node cannot share its group, empty if it can. Of two nodes the later one
            stops with this reason.
        home: a name that this worker keeps when it is started again, by default its node.
        peer_key: the key that members prove themselves with; None if no secret is set.
        committed_only: leave out records of aborted transactions, and wait for open ones.
        retry_seconds: bounds of the random wait before a partition is claimed again.
    """

    brokers: str
    group: str
    node: str
    web_url: str = ""
    boot: int = dataclasses.field(default_factory=time.time_ns)
    partitions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    session_timeout_ms: int = 10_000
    metadata_max_age_ms: int = 30_000
    fetch_bytes_max: int = 50 * MIB
    partition_fetch_bytes_max: int = MIB
    fetch_max_wait_ms: int = 50
    chunk_bytes_max: int = 8 * MIB
    chunk_records_max: int = 100_000
    alone: str = ""
    home: str = ""
    map_name: str = ""
    peer_key: PeerKey | None = None
    committed_only: bool = True
    commit_seconds: float = 5.0
    retry_seconds: tuple[float, float] = (1.0, 3.0)
    client_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, partitions: Iterable[TopicPartition]) -> None:
        """Refuse partitions that the map does not have: they have no journal.

        Raises:
            TransportError: a partition is not one of the map's.
        """
        for topic, partition in partitions:
            count = self.partitions.get(topic)
            if count is not None and partition >= count:
                raise TransportError(
                    f"cannot read {topic}[{partition}]: the topic got more partitions than the map "
                    f"declares; want {count}; {OTHER_PARTITIONS}"
                )

    def member(
        self, generation: int, owned: set[TopicPartition], held: set[TopicPartition]
    ) -> Member:
        """Return the description of this node that it joins with.

        ``generation`` is the one in which it was given ``owned``, below 0 if it never was.
        """
        return Member(
            node=self.node,
            boot=self.boot,
            url=self.web_url,
            generation=generation,
            owned=by_topic(owned),
            held=by_topic(held),
            home=self.home,
            map=self.map_name,
            alone=self.alone,
            settled=generation >= 0,
        )

    def consumer_options(self) -> dict[str, Any]:
        """Return the keyword arguments of aiokafka's consumer."""
        # A broker fills an answer partition by partition. If all of them fit, none is crowded out,
        # however much data another has: layer topics are read while raw topics are plentiful.
        count = max(1, sum(self.partitions.values()))
        fair = max(PARTITION_FETCH_BYTES_MIN, self.fetch_bytes_max // count)
        return dict(self.client_options) | {
            "bootstrap_servers": self.brokers,
            "group_id": self.group,
            "client_id": f"treasure-map-{self.node}",
            "enable_auto_commit": False,
            # With `earliest` a position before the log's start would move without a word.
            "auto_offset_reset": "none",
            "isolation_level": "read_committed" if self.committed_only else "read_uncommitted",
            "check_crcs": True,
            "session_timeout_ms": self.session_timeout_ms,
            "heartbeat_interval_ms": min(HEARTBEAT_MS_MAX, self.session_timeout_ms // 3),
            "rebalance_timeout_ms": max(REBALANCE_MS_MIN, self.session_timeout_ms),
            "metadata_max_age_ms": self.metadata_max_age_ms,
            "fetch_max_bytes": self.fetch_bytes_max,
            "max_partition_fetch_bytes": min(self.partition_fetch_bytes_max, fair),
            "fetch_max_wait_ms": self.fetch_max_wait_ms,
        }
