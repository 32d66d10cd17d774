"""The door to private names of aiokafka: fetched batches, and the group's state.

aiokafka is pinned; ``tests/contract/test_aiokafka_private.py`` fails when an upgrade changes a name
used here. ``Fetched.drain`` replaces ``getmany()``, which makes one ConsumerRecord object per
record. It keeps the order of checks: a result that is no longer wanted is removed, an error is
removed and raised, a position moves only past records that were drained. It never waits, so a drain
and the hand-over of its runs are one step.
"""

# ruff: noqa: SLF001 - this file is for private names

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import conn as aiokafka_conn
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol, CloseReason
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchError, FetchResult
from aiokafka.errors import CorruptRecordException, KafkaConnectionError, KafkaError

from app.kafka.record_batches import NO_TIME_MS, Batch, Batches
from tables.record.chunk import Headers, RecordFault, Run


class _Protocol(AIOKafkaProtocol):  # type: ignore[misc]  # aiokafka comes without types here
    """A connection's protocol that reads the error which ended it; aiokafka does not.

    asyncio reads it when it collects the protocol. If it collects the future with the error first,
    as it may with garbage in cycles, it complains that nobody read it.
    """

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        ended = self._get_close_waiter(None)
        if not ended.cancelled():
            ended.exception()


# From here on every consumer of this process has our batches and our connections.
fetcher.MemoryRecords = Batches
aiokafka_conn.AIOKafkaProtocol = _Protocol

_LOG_APPEND_TIME = 1


class UnreadableError(Exception):
    """A partition that cannot be read further; the cause is aiokafka's own error."""


@dataclasses.dataclass(slots=True)
class _Batch:
    """The records of one decoded batch that no run has yet, by column, and the batch's end."""

    result: FetchResult
    next_offset: int
    offsets: list[int] | range = range(0)
    values: list[bytes | None] = dataclasses.field(default_factory=list)
    times_ms: list[int] = dataclasses.field(default_factory=list)
    headers: dict[int, Headers] = dataclasses.field(default_factory=dict)
    faults: dict[int, RecordFault] = dataclasses.field(default_factory=dict)

    def split(self, count: int) -> _Batch:
        """Remove and return the first ``count`` records; they end at the offset of the rest."""
        first = dataclasses.replace(
            self,
            next_offset=self.offsets[count],
            offsets=self.offsets[:count],
            values=self.values[:count],
            times_ms=self.times_ms[:count],
            headers={i: found for i, found in self.headers.items() if i < count},
            faults={i: found for i, found in self.faults.items() if i < count},
        )
        self.offsets, self.values = self.offsets[count:], self.values[count:]
        self.times_ms = self.times_ms[count:]
        self.headers = {i - count: found for i, found in self.headers.items() if i >= count}
        self.faults = {i - count: found for i, found in self.faults.items() if i >= count}
        return first

    def run(self, tp: KafkaPartition, size: int) -> Run:
        """Return its records, which have values of ``size`` bytes, as a run of a partition."""
        first = self.offsets[0] if self.offsets else self.next_offset
        return Run(
            tp.topic, tp.partition, first, self.next_offset, self.offsets, self.values,
            self.times_ms, self.headers, size, self.faults,
        )  # fmt: skip


class Fetched:
    """The records that a started consumer has fetched and nobody has drained yet."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._fetcher = consumer._fetcher
        self._rests: dict[KafkaPartition, _Batch] = {}
        assert self._fetcher is not None, "the consumer must be started"

    def check_errors(self) -> None:
        """Raise the error that the group coordinator or the fetcher could not mend by themselves.

        Raises:
            KafkaError: aiokafka's error. Raising it lets the coordinator continue, if it runs.
            Exception: the error that ended one of aiokafka's own tasks.
        """
        check_metadata(self._consumer)
        self._consumer._coordinator.check_errors()
        fetching = self._fetcher.error_future
        if fetching.done() and not fetching.cancelled():
            fetching.result()

    def generation(self) -> int:
        """Return the group generation of this member, below 0 if it is not a member now."""
        return int(self._consumer._coordinator.generation)

    def rebalancing(self) -> bool:
        """Return whether partitions have been revoked and not assigned again yet."""
        return bool(self._consumer._subscription.reassignment_in_progress)

    def reading(self) -> AbstractContextManager[None]:
        """Count as reading while inside; a member that does not read for long leaves the group."""
        context: AbstractContextManager[None] = self._consumer._subscription.fetch_context()
        return context

    def arrival(self) -> asyncio.Future[None]:
        """Return a future that ends when more was fetched; cancel it when it is not awaited."""
        waiter: asyncio.Future[None] = self._fetcher._create_fetch_waiter()
        return waiter

    def discard(self, topic: str, partition: int) -> None:
        """Drop the fetched records of a partition, so it is fetched again from its position."""
        self._remove(KafkaPartition(topic, partition))

    def drain(
        self,
        positions: Mapping[tuple[str, int], int],
        bytes_max: int,
        records_max: int,
        strayed: Callable[[str, int], None],
    ) -> list[Run]:
        """Take fetched records of the partitions in ``positions``, and move the consumer past them.

        Args:
            positions: the next offset that each partition's owner wants.
            bytes_max: stop when the values reach this size; one record is always drained.
            records_max: stop at this number of records.
            strayed: called for a partition whose position is not its owner's; it gives no run.

        Returns:
            at most one run a partition; it has no records if the log holds none at its offsets.

        Raises:
            UnreadableError: the broker refuses a partition, or a batch is damaged.
        """
        runs = []
        for tp in list(self._fetcher._records):
            wanted = positions.get((tp.topic, tp.partition))
            if wanted is None or bytes_max <= 0 or records_max <= 0:
                continue
            result = self._fetcher._records[tp]
            if type(result) is FetchError:
                self._remove(tp)
                error = result._error
                raise UnreadableError(f"{tp.topic}[{tp.partition}]: {error!r}") from error
            if not result.check_assignment(tp) or not result.has_more():
                # As in fetched_records(): a stale result that stays would silence its partition.
                self._remove(tp)
                continue
            if result._partition_records.next_fetch_offset != wanted:
                self._remove(tp)
                strayed(tp.topic, tp.partition)
                continue
            try:
                run, size = self._take(tp, result, bytes_max, records_max)
            except Exception as error:
                self._remove(tp)
                raise UnreadableError(f"{tp.topic}[{tp.partition}]: {error!r}") from error
            if run.next_offset > run.first_offset:
                runs.append(run)
            bytes_max -= size
            records_max -= len(run.values)
        return runs

    def _take(
        self, tp: KafkaPartition, result: FetchResult, bytes_max: int, records_max: int
    ) -> tuple[Run, int]:
        fetched = result._partition_records
        first = fetched.next_fetch_offset
        run = Run(tp.topic, tp.partition, first, first, range(first, first), [], [], {})
        size = 0
        while size < bytes_max and len(run.values) < records_max:
            batch = self._next_batch(tp, result)
            if batch is None:
                break
            room = records_max - len(run.values)
            count, more = _fitting(batch.values, bytes_max - size, room, bool(run.values))
            size += more
            if count < len(batch.values):
                self._rests[tp] = batch
                batch = batch.split(count)
            run.extend(batch.run(tp, more))
            fetched.next_fetch_offset = run.next_offset
            if tp in self._rests:
                break
        result._update_position()
        if tp not in self._rests and not fetched._records.has_next():
            self._remove(tp)
        return run, size

    def _next_batch(self, tp: KafkaPartition, result: FetchResult) -> _Batch | None:
        """Return the rest of the last batch, or the next batch; None when there is no more."""
        rest = self._rests.pop(tp, None)
        if rest is not None and rest.result is result:
            return rest
        fetched = result._partition_records
        if not fetched._records.has_next():
            return None
        batch = fetched._records.next_batch()
        if fetched._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(
                f"cannot read a batch at or after offset {fetched.next_fetch_offset}: its checksum"
                " differs; read it again, and check disks and network of the broker if it stays so"
            )
        if batch.next_offset <= fetched.next_fetch_offset:
            raise CorruptRecordException(
                f"cannot read a batch: it ends at {batch.next_offset - 1}, before offset"
                f" {fetched.next_fetch_offset}, which was asked for"
            )
        if _is_unwanted(fetched, batch):
            return _Batch(result, batch.next_offset)
        records = batch.records()
        if records and records[0].offset < fetched.next_fetch_offset:
            # A fetch from within a batch is answered with the whole batch.
            records = [record for record in records if record.offset >= fetched.next_fetch_offset]
        return _columns(result, batch, records)

    def _remove(self, tp: KafkaPartition) -> None:
        self._rests.pop(tp, None)
        if self._fetcher._records.pop(tp, None) is not None:
            self._fetcher._notify(self._fetcher._wait_consume_future)


async def read_plain(
    consumer: AIOKafkaConsumer, timeout_s: float
) -> dict[KafkaPartition, list[Any]]:
    """Return the result of ``getmany()``, with the batches' own records: ``Record``, or C's.

    Making a ConsumerRecord of each takes longer than all else, and would lose its fault.
    """
    fetching = consumer._fetcher
    for wait in (True, False):
        for result in fetching._records.values():
            if type(result) is FetchResult:
                result._partition_records._consumer_record = _as_it_is
        found: dict[KafkaPartition, list[Any]] = await consumer.getmany()
        if found or not wait:
            return found
        waiter = fetching._create_fetch_waiter()
        await asyncio.wait([waiter], timeout=timeout_s)
        if waiter.done():
            waiter.result()
        else:
            waiter.cancel()
    raise AssertionError("the second look returns")


def _as_it_is(_: KafkaPartition, record: Any) -> Any:
    return record


def write(connection: AIOKafkaConnection, message: bytes) -> None:
    """Write to a connection; one that is broken is closed, so that all its requests end.

    Between a reset and its report the loop still has the transport, but will not write to it:
    asyncio drops written bytes, uvloop raises a RuntimeError, which aiokafka does not expect.

    Raises:
        KafkaConnectionError: the connection is broken.
    """
    try:
        connection._writer.write(message)
    except (OSError, RuntimeError) as error:
        raise _broken(connection, error) from error


def report_broken_connections() -> None:
    """Have aiokafka's own requests treat a transport that uvloop has closed as a broken connection.

    Without it the RuntimeError ends aiokafka's tasks, of its producer for instance.
    """
    for name in ("send", "_send_sasl_token"):
        send = getattr(AIOKafkaConnection, name)
        if not hasattr(send, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _reporting(send))


def _reporting(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def reporting(self: AIOKafkaConnection, *args: Any, **options: Any) -> Any:
        try:
            return send(self, *args, **options)
        except KafkaError:
            raise
        except RuntimeError as error:
            raise _broken(self, error) from error

    return reporting


def _broken(connection: AIOKafkaConnection, error: Exception) -> KafkaConnectionError:
    connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
    return KafkaConnectionError(f"{connection.host}:{connection.port} is broken: {error}")


def check_metadata(user: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Raise the error that ended the task of a client's metadata; aiokafka reports it to nobody.

    Without it a leader that moves is never found again.

    Raises:
        Exception: whatever ended it.
    """
    client = user.client if isinstance(user, AIOKafkaProducer) else user._client
    syncing = client._sync_task
    if syncing is not None and syncing.done() and not syncing.cancelled():
        syncing.result()


def refused_topics(consumer: AIOKafkaConsumer) -> set[str]:
    """Return the topics that brokers do not show to this user, of those that were asked for."""
    return set(consumer._client.cluster.unauthorized_topics)


def _is_unwanted(fetched: Any, batch: Any) -> bool:
    """Return whether a batch holds no events: a control batch, or one of an aborted transaction."""
    if fetched._isolation_level == READ_COMMITTED and batch.producer_id is not None:
        fetched._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and fetched._contains_abort_marker(batch):
            fetched._aborted_producers.discard(batch.producer_id)
        if batch.is_transactional and batch.producer_id in fetched._aborted_producers:
            return True
    return bool(batch.is_control_batch)


def _columns(result: FetchResult, batch: Batch, records: list[Any]) -> _Batch:
    """Return records by column; comprehensions with plain names, which Python makes fastest."""
    found = _Batch(result, batch.next_offset)
    if not records:
        return found
    first, last = records[0].offset, records[-1].offset
    unbroken = last - first + 1 == len(records)
    found.offsets = range(first, last + 1) if unbroken else [record.offset for record in records]
    found.values = [record.value for record in records]
    if getattr(batch, "timestamp_type", None) == _LOG_APPEND_TIME:
        found.times_ms = [batch.max_timestamp] * len(records)
    else:
        found.times_ms = [record.timestamp for record in records]
        if None in found.times_ms:
            found.times_ms = [NO_TIME_MS if time is None else time for time in found.times_ms]
    headers = [record.headers for record in records]
    if any(headers):
        found.headers = {i: _headers(some) for i, some in enumerate(headers) if some}
    if batch.faults:
        found.faults = {
            i: batch.faults[record.offset]
            for i, record in enumerate(records)
            if record.offset in batch.faults
        }
    return found


def _fitting(
    values: list[bytes | None], bytes_max: int, records_max: int, has_some: bool
) -> tuple[int, int]:
    """Return how many leading values fit, and their size; one always fits an empty run."""
    values = values[:records_max]
    if None in values:
        values = [value or b"" for value in values]
    total = sum(map(len, cast("list[bytes]", values)))
    if total <= bytes_max:
        return len(values), total
    ends = list(itertools.accumulate(map(len, cast("list[bytes]", values))))
    count = bisect.bisect_right(ends, bytes_max)
    if count == 0 and not has_some:
        count = 1
    return count, ends[count - 1] if count else 0


def _headers(headers: list[tuple[str, bytes | None]]) -> Headers:
    return tuple((name, value or b"") for name, value in headers)
