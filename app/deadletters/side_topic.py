"""A side topic read from its start to its end: letters, and the marks that replays leave in it.

A replay of letters writes two marks to the partition whose letters it sends. They are records
with the header ``treasure-map-replay``, whose value is a :class:`Mark` as JSON::

    letter 0, letter 1, letter 2, planned {0-2}, letter 4, done {0-2}
                                  `- sends letters to their source -'

Between the two the letters are under way: whoever finds ``planned`` without ``done`` searches the
source for those that have landed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Literal

import msgspec

from app.kafka.scan import Scan
from tables.record.letter import Letter, LetterError, read_letter

MARK_HEADER = "treasure-map-replay"


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


async def read_records(
    brokers: str, topic: str, starts: Mapping[int, int], options: dict[str, Any]
) -> AsyncGenerator[tuple[int, Any]]:
    """Yield the records of partitions of a topic, one partition after the other, up to their ends.

    Args:
        brokers: bootstrap servers.
        topic: the topic.
        starts: by partition, the first offset to read, if the log still has it.
        options: security options of aiokafka's client.

    Raises:
        ScanError: no broker answers, or the topic is not there.
    """
    async with Scan(brokers, options, f"cannot read {topic}") as scan:
        firsts = await scan.starts({topic: max(starts, default=-1) + 1})
        for partition, start in starts.items():
            one = (topic, partition)
            begin = {one: max(start, firsts[one])}
            async with contextlib.aclosing(scan.read(begin, await scan.ends([one]))) as found:
                async for _, records in found:
                    for record in records:
                        yield partition, record


async def read_entries(
    brokers: str, topic: str, partitions: Iterable[int], options: dict[str, Any]
) -> AsyncGenerator[Entry]:
    """Yield all of these partitions of a side topic, one after the other, each in its order.

    Raises:
        ScanError: as :func:`read_records`.
    """
    found = read_records(brokers, topic, dict.fromkeys(partitions, 0), options)
    async with contextlib.aclosing(found) as records:
        async for partition, record in records:
            yield _entry(partition, record)


def _entry(partition: int, record: Any) -> Entry:
    value = record.value or b""
    headers = tuple((name, data or b"") for name, data in record.headers)
    head = (partition, record.offset, record.timestamp, value)
    try:
        if any(name == MARK_HEADER for name, _ in headers):
            return Entry(*head, mark=msgspec.json.decode(value, type=Mark))
        return Entry(*head, letter=read_letter(headers))
    except (LetterError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return Entry(*head, problem=str(error))
