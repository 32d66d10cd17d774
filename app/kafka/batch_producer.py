"""A producer of batches: writes records and heartbeats to one raw topic, many at a time.

Values are packed into record batches here and handed to aiokafka whole: one future a batch,
instead of the one a record that its ``send`` makes. All of a partition's records keep their order.

    add(partition, keys, values) --> open batch of the partition --flush()--> sent, acknowledged
    heartbeat(time_ms) ------------> open batches of all partitions
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from app.kafka.brokers import connect_error, has_idempotent_producer
from tables.called import called
from tables.model.clock import wall_clock_ms
from tables.model.errors import TreasureMapError
from tables.record.chunk import Headers
from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat

BATCH_BYTES_MAX = 512 * 1024
# Batches sent and not yet acknowledged; at 512 KiB each this bounds its memory to 32 MiB.
BATCHES_IN_FLIGHT_MAX = 64
_NO_HEADERS: Mapping[int, Headers] = MappingProxyType({})


class ProducerError(TreasureMapError):
    """Records that could not be written, or a topic that is not there."""


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of ``key``: murmur2, as Kafka's own producers choose it."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class BatchProducer:
    """Writes to one topic; use it in an ``async with`` statement, which flushes at its end.

    Small batches are faster to read if they are not ``compressed``.

    Attributes:
        partitions: how many the topic has.
        events: records handed over with :meth:`add` so far.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        compressed: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.topic = topic
        self.partitions = 0
        self.events = 0
        self._brokers = brokers
        self._compressed = compressed
        self._options = dict(options or {})
        self._producer: AIOKafkaProducer | None = None
        self._open: dict[int, BatchBuilder] = {}
        self._full: dict[int, list[BatchBuilder]] = collections.defaultdict(list)
        self._sent: collections.deque[Awaitable[object]] = collections.deque()

    async def __aenter__(self) -> Self:
        """Connect and learn the topic's partitions.

        Raises:
            ProducerError: no broker answers, or the topic does not exist.
        """
        try:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._brokers,
                acks="all",
                enable_idempotence=await has_idempotent_producer(self._brokers, self._options),
                # Measured on the flights: aiokafka's lz4 (at its fixed level 9) takes 2.8 s of CPU
                # for the year, zstd 0.3 s and fewer bytes.
                compression_type="zstd" if self._compressed else None,
                max_batch_size=BATCH_BYTES_MAX,
                max_request_size=2 * BATCH_BYTES_MAX,
                **self._options,
            )
            await self._producer.start()
            self.partitions = await self._find_partitions()
        except KafkaError as error:
            await self._stop()
            cannot = f"cannot write to {self.topic}"
            reason = await connect_error(error, cannot, self._brokers, self._options)
            raise ProducerError(str(reason)) from error
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Send open batches, unless leaving by an exception, and disconnect."""
        try:
            if kind is None:
                await self.drain()
        finally:
            await self._stop()

    def add(
        self,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Mapping[int, Headers] = _NO_HEADERS,
    ) -> None:
        """Append records to a partition, in order; :meth:`flush` sends them.

        ``headers`` are by index into ``values``; a tombstone or a heartbeat has no value.
        """
        self._append(partition, keys, values, headers)
        self.events += len(values)

    def _append(
        self,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Mapping[int, Headers],
    ) -> None:
        now_ms = wall_clock_ms()
        batch = self._batch(partition)
        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            own = list(headers.get(index, ())) if headers else []
            if batch.append(timestamp=now_ms, key=key, value=value, headers=own) is None:
                batch = self._next_batch(partition)
                taken = batch.append(timestamp=now_ms, key=key, value=value, headers=own)
                assert taken is not None, "the first record of a batch is always taken"

    def heartbeat(self, time_ms: int, partitions: Iterable[int] | None = None) -> None:
        """Append that stream time has reached ``time_ms`` to every partition, or only to some."""
        headers = {0: ((HEARTBEAT_HEADER, encode_heartbeat(time_ms)),)}
        for partition in range(self.partitions) if partitions is None else partitions:
            self._append(partition, [None], [None], headers)

    async def drain(self) -> None:
        """Send all that was added, and wait until all of it is acknowledged.

        Raises:
            ProducerError: the broker refused records.
        """
        await self.flush()
        await self._acknowledged(0)

    async def flush(self) -> None:
        """Send all that was added. Waits only while too much is on its way.

        Raises:
            ProducerError: the broker refused records.
        """
        ready, self._full = self._full, collections.defaultdict(list)
        for partition, batch in self._open.items():
            ready[partition].append(batch)
        self._open = {}
        await asyncio.gather(*(self._send(*item) for item in ready.items()))
        await self._acknowledged(BATCHES_IN_FLIGHT_MAX)

    def _batch(self, partition: int) -> BatchBuilder:
        """Return the partition's open batch."""
        batch = self._open.get(partition)
        if batch is None:
            assert self._producer is not None, "a feed is used inside its async with"
            batch = self._open[partition] = self._producer.create_batch()
        return batch

    def _next_batch(self, partition: int) -> BatchBuilder:
        """Put the partition's full batch aside for :meth:`flush` and open another."""
        self._full[partition].append(self._open.pop(partition))
        return self._batch(partition)

    async def _send(self, partition: int, batches: list[BatchBuilder]) -> None:
        """Hand over one partition's batches, one after the other to keep their order."""
        assert self._producer is not None
        for batch in batches:
            batch.close()
            try:
                sent = await self._producer.send_batch(batch, self.topic, partition=partition)
            except KafkaError as error:
                raise self._refused(error) from error
            self._sent.append(sent)

    async def _acknowledged(self, waiting_max: int) -> None:
        """Wait until at most ``waiting_max`` batches lack their acknowledgement."""
        while len(self._sent) > waiting_max:
            try:
                await self._sent.popleft()
            except KafkaError as error:
                raise self._refused(error) from error

    async def _find_partitions(self) -> int:
        assert self._producer is not None
        # All topics are asked for: brokers may make a topic that is asked for by its name.
        cluster = await self._producer.client.fetch_all_metadata()
        found = cluster.partitions_for_topic(self.topic)
        if not found:
            raise ProducerError(
                f"cannot write to {self.topic}: it is not there, or this user may not Describe it;"
                f" got {len(cluster.topics())} other topics at {self._brokers}; want the map's"
                f" topics; make them: {called('map apply FILE')}; or allow the rights of `map acl`"
            )
        return len(found)

    async def _stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    def _refused(self, error: KafkaError) -> ProducerError:
        return ProducerError(
            f"cannot write to {self.topic}: {type(error).__name__} {error}; got no acknowledgement;"
            " want every record appended once; read the broker's log, then replay from the start"
        )
