"""The log over Kafka: appends with a known outcome, reads of ranges, bounds."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from agents.owners import LogRecord
from app.idempotence import has_idempotent_producer
from tables.errors import OffsetGoneError, OutcomeUnknownError, TreasureMapError

APPEND_DEADLINE_S = 30.0
"""An append without an answer by then has an unknown outcome; its owner claims again and reads."""

READ_DEADLINE_S = 30.0
READERS_MAX = 4
"""Restores that read at the same time; each has a connection of its own."""

Headers = tuple[tuple[str, bytes], ...]


class KafkaLog:
    """``agents.owners.ReadableLog`` over Kafka.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        record_bytes_max: the largest record that may be appended; journal and layer topics take as
            much.
        client_options: security options of aiokafka's clients.
    """

    def __init__(
        self, brokers: str, record_bytes_max: int, client_options: dict[str, Any] | None = None
    ) -> None:
        self._brokers = brokers
        self._record_bytes_max = record_bytes_max
        self._options = client_options or {}
        self._producer: AIOKafkaProducer | None = None
        self._offsets: AIOKafkaConsumer | None = None
        self._readers = asyncio.Semaphore(READERS_MAX)

    async def start(self) -> None:
        """Connect; a broker without idempotent producers is used as it is.

        The journal's chain rule rejects repeats.
        """
        try:
            idempotent = await has_idempotent_producer(self._brokers, self._options)
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._brokers,
                acks="all",
                enable_idempotence=idempotent,
                linger_ms=0,
                max_request_size=self._record_bytes_max,
                **self._options,
            )
            await self._producer.start()
        except KafkaError as error:
            raise TreasureMapError(
                f"cannot reach brokers {self._brokers}: {error}; check the brokers setting"
            ) from error
        self._offsets = AIOKafkaConsumer(bootstrap_servers=self._brokers, **self._options)
        await self._offsets.start()

    async def stop(self) -> None:
        """Flush and disconnect."""
        if self._producer is not None:
            await self._producer.stop()
        if self._offsets is not None:
            await self._offsets.stop()

    async def append(
        self, topic: str, partition: int, value: bytes | None, headers: Headers
    ) -> int:
        """Append a record; return its offset.

        Raises:
            OutcomeUnknownError: it may or may not have been taken.
        """
        assert self._producer is not None
        try:
            sent = await self._producer.send(
                topic, value, partition=partition, headers=list(headers)
            )
            async with asyncio.timeout(APPEND_DEADLINE_S):
                metadata = await asyncio.shield(sent)
        except (KafkaError, TimeoutError) as error:
            raise OutcomeUnknownError(
                f"cannot append to {topic}[{partition}]: {type(error).__name__} {error}"
            ) from error
        return int(metadata.offset)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last.

        Raises:
            OutcomeUnknownError: the broker did not answer.
        """
        assert self._offsets is not None
        key = TopicPartition(topic, partition)
        try:
            start = await self._offsets.beginning_offsets([key])
            end = await self._offsets.end_offsets([key])
        except KafkaError as error:
            raise OutcomeUnknownError(
                f"cannot read offsets of {topic}[{partition}]: {error}"
            ) from error
        return start[key], end[key]

    async def read(self, topic: str, partition: int, start: int, stop: int) -> list[LogRecord]:
        """Return the records of offsets ``[start, stop)``, which must exist in the log.

        Raises:
            OffsetGoneError: the log begins after them or ends before them.
            OutcomeUnknownError: the broker did not give them in time.
        """
        key = TopicPartition(topic, partition)
        records: list[LogRecord] = []
        async with self._readers:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._brokers,
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=20,
                max_partition_fetch_bytes=16 << 20,
                **self._options,
            )
            try:
                await consumer.start()
                consumer.assign([key])
                consumer.seek(key, start)
                async with asyncio.timeout(READ_DEADLINE_S):
                    position = start
                    while position < stop:
                        found = await consumer.getmany(key, timeout_ms=500)
                        records += [
                            LogRecord(record.offset, record.value, record.timestamp)
                            for record in found.get(key, ())
                            if record.offset < stop
                        ]
                        position = await consumer.position(key)
            except OffsetOutOfRangeError as error:
                raise OffsetGoneError(
                    f"cannot read {topic}[{partition}] from {start}: the log has no such offset; "
                    "was the topic made anew, or its records deleted?"
                ) from error
            except (KafkaError, TimeoutError) as error:
                raise OutcomeUnknownError(
                    f"cannot read {topic}[{partition}] from {start} to {stop}: "
                    f"{type(error).__name__} {error}"
                ) from error
            finally:
                await consumer.stop()
        return records
