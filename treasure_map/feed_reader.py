"""The records of one feed from Kafka, from its beginning or from now on.

All partitions are read, without consumer group: nothing is committed. It never skips an
offset, so records that Kafka deleted before they were read are an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from treasure_map.feed import FollowFailedError

FETCH_WAIT_MS = 500
"""The time that a fetch waits for records, and so to notice the end of a feed."""

RECORDS_AT_ONCE = 100
"""Records handed over before others get their turn; one of Arrow may have thousands of cells."""


class FeedRecord(NamedTuple):
    """One record, with its partition and offset; ``value`` is None in a tombstone of compaction."""

    partition: int
    offset: int
    value: bytes | None


class FeedReader:
    """Reads one feed; :meth:`open` it first.

    It begins with the oldest record, or with the next new one. With ``to_end`` it ends at the
    feed's end as it is when reading begins.

    Attributes:
        ended: whether all is read up to the end that was asked for.
    """

    def __init__(
        self, topic: str, options: Mapping[str, Any], *, from_beginning: bool, to_end: bool
    ) -> None:
        self.ended = False
        self._topic = topic
        self._options = dict(options)
        self._from_beginning = from_beginning
        self._to_end = to_end
        self._partitions: list[TopicPartition] = []
        self._ends: dict[TopicPartition, int] = {}
        self._consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            **self._options,
        )

    async def open(self) -> None:
        """Connect, and choose the offsets at which to begin and to end.

        Raises:
            FollowFailedError: no broker answers, or the feed is not there.
        """
        with self._translated():
            partitions = self._partitions = await self._find_partitions()
            await self._consumer.start()
            if self._from_beginning:
                starts = await self._consumer.beginning_offsets(partitions)
            else:
                starts = await self._consumer.end_offsets(partitions)
            self._consumer.assign(partitions)
            for tp, start in starts.items():
                self._consumer.seek(tp, start)

    async def read(self) -> list[FeedRecord]:
        """Return the next records, in order within each partition; an empty list if they take long.

        Raises:
            FollowFailedError: records were deleted before they were read, or the brokers refuse.
        """
        with self._translated():
            found = await self._consumer.getmany(
                timeout_ms=FETCH_WAIT_MS, max_records=RECORDS_AT_ONCE
            )
            if self._to_end:
                self.ended = await self._at_end()
        return [
            FeedRecord(record.partition, record.offset, record.value)
            for records in found.values()
            for record in records
        ]

    async def close(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def _at_end(self) -> bool:
        """Return whether every partition is read up to its end at the first fetch."""
        for tp in self._partitions:
            highwater = self._consumer.highwater(tp)
            if highwater is not None:
                self._ends.setdefault(tp, highwater)
        return len(self._ends) == len(self._partitions) and all(
            [await self._consumer.position(tp) >= end for tp, end in self._ends.items()]
        )

    async def _find_partitions(self) -> list[TopicPartition]:
        """Return the partitions of the feed.

        All topics are asked for: brokers may make a topic that is asked for by its name.
        """
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            topics = {
                topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()
            }
        finally:
            await admin.close()
        if not topics.get(self._topic):
            feeds = ", ".join(sorted(name for name in topics if ".feed." in name)) or "none"
            raise FollowFailedError(
                f"cannot follow {self._topic}: there is no such topic; got feeds {feeds}; want the"
                " topic of a layer with `publish` in its map; correct the name, or make it:"
                " treasure-map map apply FILE"
            )
        return [TopicPartition(self._topic, one["partition"]) for one in topics[self._topic]]

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of Kafka into those of a feed that cannot be followed."""
        cannot = f"cannot follow {self._topic}"
        try:
            yield
        except OffsetOutOfRangeError as error:
            raise FollowFailedError(
                f"{cannot}: records were deleted before they were read; got {error.args[0]}; want"
                " offsets that Kafka still has; begin again, and keep records longer"
                " (retention.ms of the topic) or read faster"
            ) from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise FollowFailedError(
                f"{cannot}: {error or type(error).__name__}; got no answer from"
                f" {self._options['bootstrap_servers']}; want a broker that lets this program read"
                " the topic; check the address, TLS and login, and that it is up"
            ) from error
