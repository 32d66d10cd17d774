"""The log over Kafka: appends with a known outcome, reads of ranges, bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Container, Coroutine
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from agents.ports import LogRecord
from agents.tasks import within
from app.kafka.aiokafka_close import close
from app.kafka.aiokafka_private import check_metadata, refused_topics
from app.kafka.brokers import (
    UNAUTHORIZED,
    NotAllowedError,
    connect_error,
    has_idempotent_producer,
)
from app.kafka.operations import Operation
from app.kafka.produce_request import Appends
from tables.called import called
from tables.model.errors import (
    OffsetGoneError,
    OutcomeUnknownError,
    RecordTooLargeError,
    TreasureMapError,
)

log = logging.getLogger(__name__)

APPEND_DEADLINE_S = 30.0
"""An append without an answer by then has an unknown outcome; its owner claims again and reads."""

READ_DEADLINE_S = 30.0
"""A read that gets nothing for this time is given up; so is a request for bounds."""

END_AFTER_S = 1.0
"""A read that gets nothing for this time asks whether the log ends at its position."""

RECORDS_AT_ONCE = 200
"""Records unpacked before other tasks get their turn. A source that is far behind has millions
after the one that a claim reads; unpacking a whole fetch held the loop for seconds."""

FETCH_BYTES = 4 << 20
FETCH_BYTES_OF_ONE = 64 << 10
"""The sizes of one fetch, for a range and for one record; a larger batch comes whole."""

STOP_DEADLINE_S = 3.0
"""Time for appends under way when the worker stops; the journal shows those that arrived."""

SOON_BYTES_MAX = 256 << 10
"""The largest record that is appended by the shorter way; a larger one gains nothing by it."""

READERS_MAX = 4
"""Restores that read at the same time; each has a connection of its own."""

Headers = tuple[tuple[str, bytes], ...]
Result = TypeVar("Result")


@dataclasses.dataclass(eq=False)
class KafkaLog:
    """``agents.ports.ReadableLog`` over Kafka; NotAllowedError says that this user lacks a right.

    Readers of the ``repeatable`` topics ignore a record that comes twice: those of journals by the
    chain rule, those of layer topics by versions. Small records of these are appended by the
    shorter way. A log that ``reads_only`` asks for no right to write.
    """

    brokers: str
    record_bytes_max: int
    client_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    repeatable: Container[str] = ()
    append_deadline_s: float = APPEND_DEADLINE_S
    read_deadline_s: float = READ_DEADLINE_S
    reads_only: bool = False

    def __post_init__(self) -> None:
        self._producer: AIOKafkaProducer | None = None
        self._appends: Appends | None = None
        self._offsets: AIOKafkaConsumer | None = None
        self._readers = asyncio.Semaphore(READERS_MAX)

    async def start(self) -> None:
        """Connect; a broker without idempotent producers is used as it is.

        The journal's chain rule rejects repeats.

        Raises:
            BrokersAwayError: some brokers answer, and one that was asked does not.
            TreasureMapError: no broker answers.
        """
        try:
            if not self.reads_only:
                self._producer = AIOKafkaProducer(
                    bootstrap_servers=self.brokers,
                    acks="all",
                    enable_idempotence=await has_idempotent_producer(
                        self.brokers, self.client_options
                    ),
                    linger_ms=0,
                    max_request_size=self.record_bytes_max,
                    **self.client_options,
                )
                await self._producer.start()
                self._appends = Appends(self._producer, self.append_deadline_s)
            self._offsets = AIOKafkaConsumer(bootstrap_servers=self.brokers, **self.client_options)
            await self._offsets.start()
        except errors.KafkaError as error:
            await self.stop()
            self._producer = self._offsets = None
            raise await connect_error(
                error, "cannot connect to Kafka", self.brokers, self.client_options
            ) from error

    async def stop(self) -> None:
        """Flush and disconnect; the next claim decides about appends that are not done in time."""
        if self._producer is not None:
            try:
                await within(STOP_DEADLINE_S, self._producer.stop())
            except TimeoutError:
                log.warning("the broker did not answer the last appends; their owners are gone")
        if self._offsets is not None:
            await close(self._offsets, STOP_DEADLINE_S)

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Headers,
        *,
        key: bytes | None = None,
    ) -> int:
        """Append a record; return its offset.

        A record without value is appended with an empty one: aiokafka's producer refuses a record
        with neither key nor value.

        Raises:
            OutcomeUnknownError: it may or may not have been appended.
            RecordTooLargeError: the topic, or this log, accepts no record of that size.
            TreasureMapError: the broker will never accept it, or accepts nothing more from this
                process.
        """
        assert self._producer is not None
        cannot = f"cannot append to {topic}[{partition}]"
        if (
            key is None
            and not headers
            and len(value or b"") <= SOON_BYTES_MAX
            and topic in self.repeatable
        ):
            offset = await self._append_soon(cannot, topic, partition, value or b"")
            if offset is not None:
                return offset
        try:
            sending = self._producer.send(
                topic, value or b"", key, partition=partition, headers=list(headers)
            )
            metadata = await self._answered(
                cannot, self.append_deadline_s, _taken(sending), "Write"
            )
        except OutcomeUnknownError as unknown:
            error = unknown.__cause__
            if isinstance(error, errors.MessageSizeTooLargeError):
                raise RecordTooLargeError(
                    f"{cannot}: the record is too large; got {len(value or b'')} bytes of value; "
                    f"want less than {self.record_bytes_max} and than the topic's "
                    "max.message.bytes; raise the topic's, or lower the setting chunk_records_max"
                ) from error
            if _is_final(error):
                raise TreasureMapError(
                    f"{cannot}: {error!r}; want a broker that accepts it; mend it on the brokers, "
                    "then start the worker again"
                ) from error
            raise
        return int(metadata.offset)

    async def _append_soon(
        self, cannot: str, topic: str, partition: int, value: bytes
    ) -> int | None:
        """Append a record that may come twice; return its offset, None if that failed."""
        assert self._appends is not None
        try:
            return await self._appends.append(topic, partition, value)
        except errors.KafkaError as error:
            # The producer opens connections, learns of leaders, tries again, or raises why not.
            log.debug("%s at once: %r", cannot, error)
            return None
        except TimeoutError as error:
            self._check_clients(cannot)
            raise OutcomeUnknownError(f"{cannot}: {error}") from error

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last.

        Raises:
            OutcomeUnknownError: the broker did not answer.
        """
        assert self._offsets is not None
        key = TopicPartition(topic, partition)
        cannot = f"cannot read offsets of {topic}[{partition}]"
        try:
            return await self._answered(cannot, self.read_deadline_s, _bounds(self._offsets, key))
        except OutcomeUnknownError as error:
            # A topic that this user may not see is asked for until the time is up.
            if topic in refused_topics(self._offsets):
                raise _not_allowed(cannot, "Read") from error
            raise

    async def record_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """Return the record at an offset; None if the log has none there any more.

        Compaction removes records, also the last ones; markers of transactions are not records.

        Raises:
            OutcomeUnknownError: the broker did not answer in time.
        """
        try:
            found = await self.read(topic, partition, offset, offset + 1, may_lack=True)
        except OffsetGoneError:
            return None
        return next((record for record in found if record.offset == offset), None)

    async def read(
        self, topic: str, partition: int, start: int, stop: int, bytes_max: int | None = None,
        *, may_lack: bool = False,
    ) -> list[LogRecord]:  # fmt: skip
        """Return the records of offsets ``[start, stop)``; no more once values reach ``bytes_max``.

        They must exist; if they ``may_lack``, the last ones may be gone from a log that has their
        offsets.

        Raises:
            OffsetGoneError: the log begins after them or ends before them.
            OutcomeUnknownError: the broker did not give them in time.
        """
        if start >= stop:
            return []
        key = TopicPartition(topic, partition)
        cannot = f"cannot read {topic}[{partition}] from {start} to {stop}"
        async with self._readers:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.brokers,
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=20,
                max_partition_fetch_bytes=FETCH_BYTES if stop - start > 1 else FETCH_BYTES_OF_ONE,
                **self.client_options,
            )
            try:
                await self._answered(cannot, self.read_deadline_s, consumer.start())
                consumer.assign([key])
                consumer.seek(key, start)
                return await self._collect(consumer, key, stop, bytes_max, may_lack=may_lack)
            except errors.OffsetOutOfRangeError as error:
                raise OffsetGoneError(_gone(cannot)) from error
            finally:
                await close(consumer, STOP_DEADLINE_S)

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset; a broker that cannot do that keeps them.

        Raises:
            OutcomeUnknownError: the broker did not answer.
        """
        cannot = f"cannot delete records of {topic}[{partition}] before {before}"
        admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers, **self.client_options)

        async def delete() -> None:
            try:
                await admin.start()
                await admin.delete_records(
                    {TopicPartition(topic, partition): RecordsToDelete(before_offset=before)}
                )
            except errors.IncompatibleBrokerVersion:
                log.info("%s: the broker deletes no records; the journal keeps them all", cannot)
            finally:
                await admin.close()

        try:
            await self._answered(cannot, self.append_deadline_s, delete(), "Delete")
        except NotAllowedError as error:
            # A journal that grows need not end a worker; the next start names the missing right.
            raise OutcomeUnknownError(str(error)) from error

    async def _collect(
        self,
        consumer: AIOKafkaConsumer,
        key: TopicPartition,
        stop: int,
        bytes_max: int | None,
        *,
        may_lack: bool,
    ) -> list[LogRecord]:
        """Return the records from the position of ``consumer``; progress moves the deadline."""
        now = asyncio.get_running_loop().time
        cannot = f"cannot read {key.topic}[{key.partition}] on to {stop}"
        patience_s = self.read_deadline_s
        give_up_s = now() + patience_s
        records: list[LogRecord] = []
        moved_s = now()
        size = 0
        position = first = await self._answered(cannot, patience_s, consumer.position(key))
        while position < stop and (bytes_max is None or size < bytes_max):
            records_max = min(RECORDS_AT_ONCE, stop - position)
            fetching = consumer.getmany(key, timeout_ms=500, max_records=records_max)
            found = await self._answered(cannot, patience_s, fetching)
            # getmany() does not wait if there is more of the last fetch.
            await asyncio.sleep(0)
            new = [record for record in found.get(key, ()) if record.offset < stop]
            records += [LogRecord(record.offset, record.value, record.timestamp) for record in new]
            size += sum(len(record.value or b"") for record in new)
            at = self._answered(cannot, patience_s, consumer.position(key))
            before, position = position, await at
            if position > before:
                moved_s = now()
                give_up_s = moved_s + patience_s
            elif now() > give_up_s:
                raise OutcomeUnknownError(f"{cannot}: nothing came within {patience_s:g} s")
            elif now() - moved_s > END_AFTER_S:
                # The end is asked for only if fetches bring nothing: that of the embedded broker is
                # too low.
                _, end = await self.bounds(*key)
                if end <= position:
                    raise OffsetGoneError(
                        _gone(f"cannot read {key.topic}[{key.partition}] from {first} to {stop}")
                    )
                if may_lack and (consumer.highwater(key) or 0) > position:
                    # A fetch was answered, with nothing.
                    return records
                moved_s = now()
        return records

    def _check_clients(self, cannot: str) -> None:
        for client in (self._producer, self._offsets):
            if client is None:
                continue
            try:
                check_metadata(client)
            except Exception as error:
                raise TreasureMapError(
                    f"{cannot}: the client's task for metadata has ended: {error!r}; start the "
                    "worker again"
                ) from error

    async def _answered(
        self,
        cannot: str,
        deadline_s: float,
        work: Coroutine[Any, Any, Result],
        operation: Operation = "Read",
    ) -> Result:
        """Turn errors of Kafka, and an answer that does not come, into OutcomeUnknownError.

        Raises:
            NotAllowedError: this user lacks the right for an operation.
        """
        try:
            return await within(deadline_s, work)
        except errors.OffsetOutOfRangeError:
            raise
        except TimeoutError as error:
            self._check_clients(cannot)
            raise OutcomeUnknownError(f"{cannot}: no answer within {deadline_s:g} s") from error
        except UNAUTHORIZED as error:
            raise _not_allowed(cannot, operation) from error
        except errors.KafkaError as error:
            raise OutcomeUnknownError(f"{cannot}: {error!r}") from error


async def _taken(sending: Awaitable[asyncio.Future[Any]]) -> Any:
    """Return the metadata of an appended record; giving up does not undo the append."""
    return await asyncio.shield(await sending)


async def _bounds(offsets: AIOKafkaConsumer, key: TopicPartition) -> tuple[int, int]:
    start = await offsets.beginning_offsets([key])
    end = await offsets.end_offsets([key])
    return start[key], end[key]


def _not_allowed(cannot: str, operation: Operation) -> NotAllowedError:
    return NotAllowedError(
        f"{cannot}: this user may not {operation} it; allow the rights of `{called('map acl')}`,"
        " then start again"
    )


def _gone(cannot: str) -> str:
    return f"{cannot}: the log has no such offset; was the topic made anew, or its records deleted?"


def _is_final(error: BaseException | None) -> bool:
    """Return whether every later append would fail, too.

    aiokafka retries errors that may pass. Any other error either belongs to the topic (who may
    write, how large) or has broken the producer's sequence, which only a new producer mends.
    """
    passing = isinstance(error, errors.KafkaTimeoutError | errors.ProducerClosed)
    return isinstance(error, errors.KafkaError) and not error.retriable and not passing
