"""Topics read with a plain consumer, from where they were read before to an end that is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from app.config.connections import kafka_options
from app.config.settings import Settings
from app.kafka.aiokafka_private import read_plain
from app.kafka.brokers import connect_error
from app.kafka.record_batches import NO_TIME_MS
from app.kafka.record_batches import Record as Unplain
from app.verify.errors import VerifyError
from app.verify.records import Record

Result = TypeVar("Result")
_ANSWER_SECONDS = 30.0
_FETCH_BYTES = 4 << 20


class Topics:
    """Reads topics, each partition from where it was read before; use it in ``async with``.

    Records of transactions that have not committed are not read, as workers do not read them.
    """

    def __init__(self, settings: Settings) -> None:
        self._brokers = settings.brokers
        self._options = kafka_options(settings)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.brokers,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=20,
            max_partition_fetch_bytes=_FETCH_BYTES,
            **self._options,
        )
        self._positions: dict[KafkaPartition, int] = {}

    async def __aenter__(self) -> Self:
        """Connect."""
        try:
            await self._ask(self._consumer.start())
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def starts(self, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
        """Return the first offset of every partition.

        Args:
            topics: partitions by topic.

        Raises:
            VerifyError: no broker answers, or a topic is not there.
        """
        known = await self._ask(self._consumer.topics())
        missing = sorted(topics.keys() - known)
        if missing:
            raise VerifyError(
                f"cannot read {', '.join(missing)}: the brokers at {self._brokers} show this user"
                " no such topic; got another map, another cluster or a user without the right to"
                " Describe it; give those of the workers"
            )
        places = _places(topics)
        found = await self._ask(self._consumer.beginning_offsets(places))
        return {(place.topic, place.partition): offset for place, offset in found.items()}

    async def ends(self, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
        """Return the end of every partition, as the answer to a fetch tells it.

        The end that the embedded broker lists is that of the first record of the last batch.

        Raises:
            VerifyError: no broker answers.
        """
        places = _places(topics)
        listed = await self._ask(self._consumer.end_offsets(places))
        self._consumer.assign(places)
        for place, offset in listed.items():
            self._consumer.seek(place, offset)

        async def fetched() -> dict[tuple[str, int], int]:
            while any(self._consumer.highwater(place) is None for place in places):
                await self._consumer.getmany(timeout_ms=50)
            return {(p.topic, p.partition): self._end(p) for p in places}

        return await self._ask(fetched())

    async def read(
        self,
        starts: Mapping[tuple[str, int], int],
        ends: Mapping[tuple[str, int], int],
        take: Callable[[str, int, list[Record]], None],
    ) -> None:
        """Hand over the records of ``[start, end)`` of some partitions as they come, in order.

        Raises:
            VerifyError: no broker answers, or records come no more.
        """
        waiting = {
            KafkaPartition(*place): end for place, end in ends.items() if starts[place] < end
        }
        if not waiting:
            return
        self._consumer.assign(list(waiting))
        for place in waiting:
            self._consumer.seek(place, starts[place.topic, place.partition])
        while waiting:
            found = await self._ask(read_plain(self._consumer, 1.0))
            for place, records in found.items():
                end = waiting.get(place, 0)
                found_here = [_record(one) for one in records if one.offset < end]
                if found_here:
                    take(place.topic, place.partition, found_here)
            done = [p for p in waiting if await self._ask(self._consumer.position(p)) >= waiting[p]]
            for place in done:
                del waiting[place]
                self._consumer.pause(place)

    def _end(self, place: KafkaPartition) -> int:
        stable = self._consumer.last_stable_offset(place)
        end = self._consumer.highwater(place)
        return int(stable if stable is not None and stable >= 0 else end)

    async def _ask(self, question: Coroutine[Any, Any, Result]) -> Result:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await question
        except (KafkaError, TimeoutError) as error:
            told = await connect_error(error, "cannot read topics", self._brokers, self._options)
            raise VerifyError(str(told)) from error


def _record(one: Any) -> Record:
    time_ms = NO_TIME_MS if one.timestamp is None else one.timestamp
    if not one.headers and type(one) is not Unplain:
        return Record(one.offset, time_ms, one.value)
    headers = tuple((name, data or b"") for name, data in one.headers)
    fault = one.fault if type(one) is Unplain else None
    cut = fault.size if fault is not None and fault.reason == "cut" else 0
    return Record(one.offset, time_ms, one.value, headers, cut)


def _places(topics: Mapping[str, int]) -> list[KafkaPartition]:
    return [
        KafkaPartition(topic, number)
        for topic, partitions in topics.items()
        for number in range(partitions)
    ]
