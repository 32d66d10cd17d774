"""Scans: topics read by a plain consumer, each partition from an offset to an end that is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from agents.tasks import within
from app.kafka.aiokafka_close import close
from app.kafka.aiokafka_private import read_plain
from app.kafka.brokers import connect_error
from tables.model.errors import TreasureMapError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Partition = tuple[str, int]
Offsets = Mapping[Partition, int]

ANSWER_SECONDS = 30.0
"""How long an answer, or the next record, may take."""

STOP_SECONDS = 3.0
_FETCH_BYTES = 4 << 20


class ScanError(TreasureMapError):
    """Topics that cannot be read."""


class Scan:
    """Reads topics, each partition between two offsets; use it in ``async with``.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        options: security options of aiokafka's clients.
        cannot: the action that fails without an answer, as the beginning of a sentence.
        committed: whether records of transactions that have not committed are left out, as workers
            leave them out; a partition then ends before the first of them.

    Raises:
        ScanError: from all methods, if no broker answers.
    """

    def __init__(
        self, brokers: str, options: Mapping[str, Any], cannot: str, *, committed: bool = False
    ) -> None:
        self._brokers = brokers
        self._options = options
        self._cannot = cannot
        self._committed = committed
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=brokers,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed" if committed else "read_uncommitted",
            fetch_max_wait_ms=20,
            max_partition_fetch_bytes=_FETCH_BYTES,
            **options,
        )

    async def __aenter__(self) -> Self:
        """Connect."""
        try:
            await self._ask(self._consumer.start())
        except BaseException:
            await close(self._consumer, STOP_SECONDS)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._consumer, STOP_SECONDS)

    async def starts(self, topics: Mapping[str, int]) -> dict[Partition, int]:
        """Return the first offset of every partition of topics; ``topics`` has the number of each.

        Raises:
            ScanError: a topic is not there.
        """
        if missing := sorted(topics.keys() - await self._ask(self._consumer.topics())):
            raise ScanError(
                f"cannot read {', '.join(missing)}: the brokers at {self._brokers} show this user"
                " no such topic; want the map and the cluster of the workers; make topics with"
                " `map apply`, or allow the rights of `map acl`"
            )
        partitions = [KafkaPartition(*tp) for tp in partitions_of(topics)]
        found = await self._ask(self._consumer.beginning_offsets(partitions))
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    async def ends(self, wanted: Iterable[Partition]) -> dict[Partition, int]:
        """Return the end of each partition, as the answer to a fetch has it.

        The end that the embedded broker lists is that of the first record of the last batch.
        """
        partitions = [KafkaPartition(*tp) for tp in wanted]
        self._assign(await self._ask(self._consumer.end_offsets(partitions)))

        async def fetched() -> dict[Partition, int]:
            while any(self._consumer.highwater(tp) is None for tp in partitions):
                await self._consumer.getmany(timeout_ms=50)
            return {(tp.topic, tp.partition): self._end(tp) for tp in partitions}

        return await self._ask(fetched())

    async def read(
        self, starts: Offsets, ends: Offsets
    ) -> AsyncGenerator[tuple[Partition, list[Any]]]:
        """Yield the records of ``[start, end)`` of some partitions as they come, each in its order.

        They are those of :func:`read_plain`.

        Raises:
            ScanError: no more records come.
        """
        waiting = {KafkaPartition(*tp): end for tp, end in ends.items() if starts[tp] < end}
        if not waiting:
            return
        self._assign({tp: starts[tp.topic, tp.partition] for tp in waiting})
        now = asyncio.get_running_loop().time
        moved_s, before = now(), 0
        while waiting:
            for tp, records in (await self._ask(read_plain(self._consumer, 1.0))).items():
                end = waiting.get(tp, 0)
                if found := [one for one in records if one.offset < end]:
                    yield (tp.topic, tp.partition), found
            positions = {tp: await self._ask(self._consumer.position(tp)) for tp in waiting}
            if (total := sum(positions.values())) != before:
                moved_s, before = now(), total
            elif now() - moved_s > ANSWER_SECONDS:
                raise ScanError(
                    f"{self._cannot}: nothing came within {ANSWER_SECONDS:.0f} s; got up to"
                    f" offsets {positions}; want up to {waiting}"
                )
            for tp, position in positions.items():
                if position >= waiting[tp]:
                    del waiting[tp]
                    self._consumer.pause(tp)

    def _assign(self, offsets: Mapping[KafkaPartition, int]) -> None:
        self._consumer.assign(list(offsets))
        for tp, offset in offsets.items():
            self._consumer.seek(tp, offset)

    def _end(self, tp: KafkaPartition) -> int:
        stable = self._consumer.last_stable_offset(tp) if self._committed else None
        end = self._consumer.highwater(tp)
        return int(stable if stable is not None and stable >= 0 else end)

    async def _ask(self, question: Coroutine[Any, Any, Result]) -> Result:
        try:
            return await within(ANSWER_SECONDS, question)
        except (KafkaError, TimeoutError) as error:
            reason = await connect_error(error, self._cannot, self._brokers, self._options)
            raise ScanError(str(reason)) from error


def partitions_of(topics: Mapping[str, int]) -> list[Partition]:
    """Return all partitions of topics, from the number that each has."""
    return [(topic, number) for topic, count in topics.items() for number in range(count)]
