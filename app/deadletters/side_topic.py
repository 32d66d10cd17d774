"""A side topic read from its start to its end: letters, and the marks that replays leave in it.

A replay of letters writes two marks to the partition that it took letters from. They are records
with the header ``treasure-map-replay``, whose value is a :class:`Mark` as JSON::

    letter 0, letter 1, letter 2, planned {0-2}, letter 4, done {0-2}
                                  `- sends letters to their source -'

Between the two the letters are under way: whoever finds ``planned`` without ``done`` looks in the
source which of them have landed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Literal

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from app.kafka.brokers import connect_error
from tables.model.errors import TreasureMapError
from tables.record.chunk import Headers
from tables.record.letter import Letter, LetterError, read_letter

MARK_HEADER = "treasure-map-replay"
IDLE_SECONDS = 1.0
"""A partition that brings nothing for so long is looked at: has it ended?"""

DEADLINE_SECONDS = 30.0


class SideTopicError(TreasureMapError):
    """A side topic that cannot be read."""


class Mark(msgspec.Struct, frozen=True):
    """The mark of a replay.

    ``offsets`` are those of letters in this partition; ``ends`` the source partition's end before
    the first of them was sent, by topic and partition as ``topic[partition]``. ``to`` is the topic
    that late letters are sent to; empty for dead ones, which go to their source.
    """

    state: Literal["planned", "done"]
    replay: str
    started_ms: int
    offsets: list[int]
    ends: dict[str, int] = {}
    to: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One record: a letter with its value, a mark, or neither (``problem`` says why)."""

    partition: int
    offset: int
    append_time_ms: int
    value: bytes
    letter: Letter | None = None
    mark: Mark | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record of any topic, with its headers."""

    partition: int
    offset: int
    append_time_ms: int
    value: bytes
    headers: Headers


async def read_records(
    brokers: str, topic: str, starts: Mapping[int, int | None], options: dict[str, Any]
) -> AsyncGenerator[Record]:
    """Yield the records of a topic up to its end at the time of reading.

    Args:
        brokers: bootstrap servers.
        topic: the topic.
        starts: by partition, the first offset to read; None for the log's first.
        options: security options of aiokafka's client.

    Raises:
        SideTopicError: no broker answers, or the topic is not there.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=brokers, enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_wait_ms=50, **options,
    )  # fmt: skip
    try:
        await consumer.start()
        if topic not in await consumer.topics():
            raise SideTopicError(
                f"cannot read {topic}: the brokers at {brokers} show this user no such topic; make"
                " it with `map apply`, or allow what `map acl` prints"
            )
        for partition, start in starts.items():
            key = KafkaPartition(topic, partition)
            consumer.assign([key])
            if start is None:
                await consumer.seek_to_beginning(key)
            else:
                consumer.seek(key, start)
            async with contextlib.aclosing(_read_partition(consumer, key)) as records:
                async for record in records:
                    yield record
    except KafkaError as error:
        told = await connect_error(error, f"cannot read {topic}", brokers, options)
        raise SideTopicError(str(told)) from error
    finally:
        await consumer.stop()


async def _read_partition(consumer: Any, key: KafkaPartition) -> AsyncGenerator[Record]:
    """Yield the records there are; ends when the position reaches the end that fetches tell."""
    quiet_since = asyncio.get_running_loop().time()
    while True:
        found = await consumer.getmany(key, timeout_ms=200)
        for record in found.get(key, ()):
            headers = tuple((name, data or b"") for name, data in record.headers)
            yield Record(
                key.partition, record.offset, record.timestamp, record.value or b"", headers
            )
        now = asyncio.get_running_loop().time()
        if found.get(key):
            quiet_since = now
        end, position = consumer.highwater(key), await consumer.position(key)
        if end is not None and position >= end:
            return
        if now - quiet_since > IDLE_SECONDS:
            ends = await consumer.end_offsets([key])
            if ends[key] <= position:
                return
        if now - quiet_since > DEADLINE_SECONDS:
            raise SideTopicError(
                f"cannot read {key.topic}[{key.partition}]: nothing came within "
                f"{DEADLINE_SECONDS:.0f} s; got up to offset {position}; want up to {end}"
            )


async def read_entries(
    brokers: str, topic: str, partitions: Iterable[int], options: dict[str, Any]
) -> AsyncGenerator[Entry]:
    """Yield all of these partitions of a side topic, one after the other, each in its order.

    Raises:
        SideTopicError: as :func:`read_records`.
    """
    found = read_records(brokers, topic, dict.fromkeys(partitions), options)
    async with contextlib.aclosing(found) as records:
        async for record in records:
            yield _entry(record)


def _entry(record: Record) -> Entry:
    place = (record.partition, record.offset, record.append_time_ms, record.value)
    try:
        if any(name == MARK_HEADER for name, _ in record.headers):
            return Entry(*place, mark=msgspec.json.decode(record.value, type=Mark))
        return Entry(*place, letter=read_letter(record.headers))
    except (LetterError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return Entry(*place, problem=str(error))
