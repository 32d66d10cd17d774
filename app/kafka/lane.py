"""What the transport is told and given: its options, the owners it restores, the lanes it feeds."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from agents.partition.claims import OTHER_PARTITIONS
from app.kafka.assignor import Member, TopicPartition, by_topic
from app.kafka.pace import Pace
from app.trust.proof import PeerKey
from tables.model.errors import TreasureMapError
from tables.record.chunk import Chunk, Run

MIB = 1 << 20
# A member is heard at least this often, and three times within a session (Kafka's own advice).
HEARTBEAT_MS_MAX = 3_000
# Revoking takes up to three seconds; a join must not throw out a member that is still at it.
REBALANCE_MS_MIN = 10_000
PARTITION_FETCH_BYTES_MIN = 64 * 1024


class TransportError(TreasureMapError):
    """Kafka cannot be read as it must be; the worker stops with it."""


class PartitionLifecycle(Protocol):
    """What keeps the state of partitions: opened, claimed and read before a partition goes live."""

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Open the store, claim, read the journal; return the source position to go on from.

        May be cancelled when partitions are revoked. At most one runs per partition, and none
        beside a release of it.

        Raises:
            FencedError: another owner claimed meanwhile; it is called again after a while.
            OutcomeUnknownError: as FencedError.
            JournalUnreadError: as FencedError, after an ever longer while.
        """

    async def release(self, partitions: set[TopicPartition]) -> None:
        """Drop the memory of partitions that are revoked, and close what is open.

        Called with every partition assigned last, restored or not.
        """

    def held(self) -> set[TopicPartition]:
        """Return the partitions whose local store is on this node's disk."""


def always() -> bool:
    """Admit whatever comes."""
    return True


class Arrived:
    """Records that were fetched for a lane and wait for its agent: one run a partition."""

    def __init__(self) -> None:
        self._runs: dict[TopicPartition, Run] = {}
        self.bytes = 0
        self.records = 0

    def __bool__(self) -> bool:
        return bool(self._runs)

    def next_offset(self, tp: TopicPartition, position: int) -> int:
        """Return the offset to fetch of a partition that stands at ``position``."""
        run = self._runs.get(tp)
        return position if run is None else run.next_offset

    def add(self, runs: Iterable[Run]) -> None:
        """Add what was fetched next of some partitions."""
        for run in runs:
            known = self._runs.setdefault((run.topic, run.partition), run)
            if known is not run:
                known.extend(run)
            self.bytes += run.size
            self.records += len(run.values)

    def take(self) -> list[Run]:
        """Return all of it, and have nothing."""
        runs = list(self._runs.values())
        self.clear()
        return runs

    def forget(self, tp: TopicPartition) -> None:
        """Drop what there is of one partition: it is fetched again."""
        run = self._runs.pop(tp, None)
        if run is not None:
            self.bytes -= run.size
            self.records -= len(run.values)

    def clear(self) -> None:
        """Drop everything."""
        self._runs = {}
        self.bytes = self.records = 0


class Lane:
    """One kind of input on its way to one agent, which has at most one chunk, waiting or in hand.

    What is fetched meanwhile is gathered for the next one.

    Args:
        name: the agent's name.
        topics: the topics of this kind.
        send: puts a chunk into the agent's channel.
        admits: whether more may be taken in now; what is not stays in Kafka.
        pace: when the next chunk is due, and how large it may be.
    """

    def __init__(
        self,
        name: str,
        topics: frozenset[str],
        send: Callable[[Chunk], Awaitable[Any]],
        admits: Callable[[], bool] = always,
        pace: Pace | None = None,
    ) -> None:
        self.name = name
        self.topics = topics
        self.send = send
        self.admits = admits
        self.pace = pace or Pace()
        self.arrived = Arrived()
        self.handled_seconds = 0.0
        self._done_at = 0.0
        self._attached = False
        self._queued: Chunk | None = None
        self._in_hand: Chunk | None = None
        self._became_idle: Callable[[Chunk | None], None] = _nobody

    @property
    def idle(self) -> bool:
        """Whether the agent has started and has nothing waiting or in hand."""
        return self._attached and self._queued is None and self._in_hand is None

    def wait_seconds(self) -> float:
        """Return in how long the next chunk is due; not above 0 where it is due now."""
        due = self._done_at + self.pace.wait_seconds(self.arrived.bytes)
        return due - time.perf_counter()

    def bind(self, became_idle: Callable[[Chunk | None], None]) -> None:
        """Tell ``became_idle`` the chunk that was done, or None when the agent starts."""
        self._became_idle = became_idle

    def attach(self) -> None:
        """The agent reads its channel from now on; before that, chunks would be lost."""
        self._attached = True
        self._became_idle(None)

    def queue(self, chunk: Chunk) -> None:
        """Note a chunk that goes into the channel."""
        assert self.idle, f"lane {self.name} has a chunk already"
        self._queued = chunk

    def forget_queued(self) -> None:
        """The channel was emptied: what waited in it, or for it, will not come."""
        self._queued = None
        self.arrived.clear()

    def forget(self, tp: TopicPartition) -> None:
        """Drop what waits of one partition, fetched or in the channel: it is read again."""
        self.arrived.forget(tp)
        if self._queued is not None:
            self._queued.runs = [r for r in self._queued.runs if (r.topic, r.partition) != tp]

    async def handle(self, chunk: Chunk, handler: Callable[[Chunk], Awaitable[None]]) -> None:
        """Run ``handler`` with a chunk that the agent took from its channel."""
        if chunk is not self._queued:
            return
        self._queued, self._in_hand = None, chunk
        size, started = chunk.size, time.perf_counter()
        try:
            await handler(chunk)
        finally:
            self._in_hand = None
            self._done_at = time.perf_counter()
            self.handled_seconds += self._done_at - started
        self.pace.done(size, self._done_at - started)
        self._became_idle(chunk)


def _nobody(chunk: Chunk | None) -> None:
    """Stand in until a transport is bound."""
    logging.getLogger(__name__).debug("no transport is bound yet; chunk %r", chunk)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """How to reach Kafka, who this node is, and how much is read at once.

    Attributes:
        brokers: where to start from, ``host:port`` separated by commas.
        group: the consumer group whose members share the partitions.
        node: this worker's name; a later start of the same node replaces the earlier.
        web_url: where this node's endpoint answers the other members.
        boot: greater for a later start of the same node; by default the wall clock, nanoseconds.
        partitions: how many the map has of each input topic; those of a topic left out are not
            known. The bytes of one fetch are divided among them.
        fetch_bytes_max: most bytes of one answer to a fetch.
        partition_fetch_bytes_max: most bytes of one partition in it, but at least one batch.
        fetch_max_wait_ms: how long a broker waits for the first record of an answer.
        chunk_bytes_max: most bytes of values in one chunk, but at least one record.
        chunk_records_max: most records in one chunk.
        alone: why this node cannot share its group; of two the later one stops with this. Empty
            where it can.
        home: what this worker has again when it is started again, by default its node.
        map_name: of the map that is served; all members of a group serve one.
        peer_key: what members prove themselves with; None where no secret is set.
        committed_only: leave out records of aborted transactions, and wait for open ones.
        client_options: passed to aiokafka's client as they are: TLS and login.
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
            TransportError: there is one.
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
        """Return what this node says of itself when it joins.

        Args:
            generation: the one in which it was given ``owned``, below 0 if it never was.
            owned: the partitions that it was given last.
            held: the partitions whose local store is here.
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
