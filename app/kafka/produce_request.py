"""Appends: single records to partitions, in one request for all that come at once.

aiokafka's producer takes 0.6 ms of CPU and 1.4 ms until the answer for the appends of eight
partitions (a queue, a task and a future a record, schemas packed value by value); a request packed
here takes 0.1 and 0.6. It does only the good case: it knows leaders and connections from the
producer's client, and tries nothing twice. After an error its caller appends by the producer.

It uses private names of aiokafka, as ``app.kafka.aiokafka_private`` does; the same test fails when
an upgrade changes one.
"""

# ruff: noqa: SLF001 - this file is for private names

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import struct
from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition, errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.protocol.api import ResponseHeader_v0
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from app.kafka.aiokafka_private import write
from tables.model.clock import wall_clock_ms

PRODUCE = 0
VERSION = 3
"""The version of a produce request: the first with batches of format 2; Kafka 4 has it, too."""

REQUEST_BYTES_MAX = 8 << 20
"""Most bytes of the records of one request, unless the first alone has more."""

_ALL_REPLICAS = -1
_BATCH_BYTES_MAX = 1 << 30
_HEAD = struct.Struct(">hhih")
_PARTITION = struct.Struct(">ii")
_RESULT = struct.Struct(">ihqq")


@dataclasses.dataclass(slots=True)
class _Append:
    """One record on its way: its batch, and the future of its offset."""

    tp: TopicPartition
    batch: bytes
    offset: asyncio.Future[int]

    def fail(self, error: BaseException) -> None:
        if not self.offset.done():
            self.offset.set_exception(error)


class Appends:
    """Appends through the connections of a started producer's client.

    After ``deadline_s`` without an answer the outcome of a request is unknown.
    """

    def __init__(self, producer: AIOKafkaProducer, deadline_s: float) -> None:
        self._client = producer.client
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, list[_Append]] = {}

    def append(self, topic: str, partition: int, value: bytes) -> asyncio.Future[int]:
        """Send a record with all others that are given before the loop's next turn.

        Returns:
            Its offset, once all replicas have it. Ends with TimeoutError if no answer came in
            time, and with KafkaError for all else: it may have landed all the same.

        Raises:
            KafkaError: no leader is known.
        """
        tp = TopicPartition(topic, partition)
        leader = self._client.cluster.leader_for_partition(tp)
        if leader is None or leader < 0:
            raise errors.LeaderNotAvailableError(f"no leader of {topic}[{partition}] is known")
        builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1,
            base_sequence=-1, batch_size=_BATCH_BYTES_MAX,
        )  # fmt: skip
        builder.append(0, timestamp=wall_clock_ms(), key=None, value=value, headers=[])
        append = _Append(tp, bytes(builder.build()), self._loop.create_future())
        others = self._waiting.setdefault(leader, [])
        others.append(append)
        if len(others) == 1:
            self._loop.call_soon(self._send, leader)
        return append.offset

    def _send(self, leader: int) -> None:
        for appends in _requests(self._waiting.pop(leader)):
            try:
                self._request(leader, appends)
            except Exception as error:  # noqa: BLE001 - raised to whoever waits
                for append in appends:
                    append.fail(error)

    def _request(self, leader: int, appends: list[_Append]) -> None:
        connection = self._client._conns.get((leader, ConnectionGroup.DEFAULT))
        if connection is None or connection._writer is None:
            raise errors.NodeNotReadyError(f"no connection to node {leader} is open")
        least, most = connection._versions.get(PRODUCE, (0, 0))
        if not least <= VERSION <= most:
            raise errors.IncompatibleBrokerVersion(f"node {leader} takes produce {least} to {most}")
        number = connection._next_correlation_id()
        name = self._client._client_id.encode()
        message = _encode(number, name, round(self._deadline_s * 1_000), appends)
        answer: asyncio.Future[dict[TopicPartition, tuple[int, int]]] = self._loop.create_future()
        write(connection, message)
        connection._requests.append((number, _Sent, answer))
        timer = self._loop.call_later(self._deadline_s, self._too_late, connection, answer)

        def answered(answer: asyncio.Future[dict[TopicPartition, tuple[int, int]]]) -> None:
            timer.cancel()
            error: BaseException | None = errors.KafkaConnectionError("the request was dropped")
            if not answer.cancelled():
                error = answer.exception()
            if error is None:
                self._resolve(appends, answer.result())
            else:
                for append in appends:
                    append.fail(error)

        answer.add_done_callback(answered)

    def _too_late(self, connection: Any, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            answer.set_exception(TimeoutError(f"no answer within {self._deadline_s:g} s"))
        # It may never answer its requests; the next request opens another connection.
        connection.close(reason=CloseReason.CONNECTION_TIMEOUT)

    def _resolve(
        self, appends: list[_Append], results: dict[TopicPartition, tuple[int, int]]
    ) -> None:
        for append in appends:
            code, offset = results.get(append.tp, (-1, -1))
            if code == 0:
                if not append.offset.done():
                    append.offset.set_result(offset)
                continue
            error = errors.for_code(code)
            if error.invalid_metadata:
                self._client.force_metadata_update()
            append.fail(error(f"{append.tp.topic}[{append.tp.partition}]"))


def _requests(appends: list[_Append]) -> Iterator[list[_Append]]:
    """Yield the records of each request: a partition once, in order, within the size bound."""
    rest = appends
    while rest:
        taken: dict[TopicPartition, _Append] = {}
        later: list[_Append] = []
        size = 0
        for append in rest:
            fits = not taken or size + len(append.batch) <= REQUEST_BYTES_MAX
            if later or append.tp in taken or not fits:
                later.append(append)
            else:
                taken[append.tp] = append
                size += len(append.batch)
        yield list(taken.values())
        rest = later


def _encode(number: int, client: bytes, timeout_ms: int, appends: list[_Append]) -> bytes:
    """Return a request as it goes over the wire, its size first."""
    parts = [
        b"", _HEAD.pack(PRODUCE, VERSION, number, len(client)), client,
        struct.pack(">hhi", -1, _ALL_REPLICAS, timeout_ms),
    ]  # fmt: skip
    by_topic = [
        (topic.encode(), list(some))
        for topic, some in itertools.groupby(
            sorted(appends, key=lambda append: append.tp), lambda append: append.tp.topic
        )
    ]
    parts.append(struct.pack(">i", len(by_topic)))
    for topic, some in by_topic:
        parts.append(struct.pack(f">h{len(topic)}si", len(topic), topic, len(some)))
        for append in some:
            parts += _PARTITION.pack(append.tp.partition, len(append.batch)), append.batch
    parts[0] = struct.pack(">i", sum(map(len, parts)))
    return b"".join(parts)


class _Answer:
    """The answer to a produce request of that version."""

    @staticmethod
    def decode(data: io.BytesIO) -> dict[TopicPartition, tuple[int, int]]:
        """Return error code and offset by partition."""
        view = data.getbuffer()
        at = data.tell()
        results = {}
        (topics,) = struct.unpack_from(">i", view, at)
        at += 4
        for _ in range(topics):
            (length,) = struct.unpack_from(">h", view, at)
            topic = bytes(view[at + 2 : at + 2 + length]).decode()
            (partitions,) = struct.unpack_from(">i", view, at + 2 + length)
            at += 6 + length
            for _ in range(partitions):
                partition, code, offset, _ = _RESULT.unpack_from(view, at)
                results[TopicPartition(topic, partition)] = code, offset
                at += _RESULT.size
        return results


class _Sent:
    """The interface of a request that its connection uses when the answer comes."""

    RESPONSE_TYPE = _Answer

    @staticmethod
    def parse_response_header(data: io.BytesIO) -> Any:
        """Return the future of the answer with this number."""
        return ResponseHeader_v0.decode(data)
