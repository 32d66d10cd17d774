"""The simulated log: records by topic and partition, with the answers that get lost on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

from agents.ports import LogRecord
from tables.model.errors import OffsetGoneError, OutcomeUnknownError
from tests.simulation.faults import Faults
from tests.support.common import StoredRecord

APPEND_TIME_MS = 2_000_000_000_000


@dataclasses.dataclass
class PartitionLog:
    """One partition. Truncated records stay in ``records``, for the checks.

    ``first`` is the offset of the first record ever; ``start`` that of the first one left;
    ``hidden`` counts the records at the end that nobody can see yet.
    """

    first: int = 0
    start: int = 0
    hidden: int = 0
    records: list[StoredRecord] = dataclasses.field(default_factory=list)

    @property
    def end(self) -> int:
        """The offset after the last record that is to be seen."""
        return self.first + len(self.records) - self.hidden

    def add(self, value: bytes | None, headers: Any, key: bytes | None = None) -> int:
        """Append; return the offset."""
        offset = self.first + len(self.records)
        self.records.append(StoredRecord(offset, value, APPEND_TIME_MS + offset, headers, key))
        return offset

    def slice(self, start: int, stop: int) -> list[StoredRecord]:
        """Return the visible records of these offsets."""
        return self.records[start - self.first : min(stop, self.end) - self.first]


class SimulatedLog:
    """``agents.ports.ReadableLog`` in memory; every call takes time and may fail.

    While ``feeds_away``, no append to a feed is done or answered, and while ``topics_away`` none to
    a layer topic.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.feeds_away = self.topics_away = False
        self.partitions: dict[tuple[str, int], PartitionLog] = {}

    def of(self, topic: str, partition: int) -> PartitionLog:
        """Return a partition, which comes into being when it is first asked for."""
        return self.partitions.setdefault((topic, partition), PartitionLog())

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Any,
        *,
        key: bytes | None = None,
    ) -> int:
        """Append a record, once or, if the broker repeats it, more often."""
        away = (self.feeds_away and ".feed." in topic) or (self.topics_away and ".layer." in topic)
        if away and ".journal." not in topic:
            await self._faults.delay()
            raise OutcomeUnknownError("the topic is away")
        log = self.of(topic, partition)
        # The end of a journal must be known before its readers can be compared.
        lingers = ".journal." not in topic
        offset = await self._faults.request(lambda: log.add(value, headers, key), lingers=lingers)
        self._faults.loop.note(offset, len(value or b""))
        return offset

    async def read(
        self, topic: str, partition: int, start: int, stop: int, bytes_max: int | None = None
    ) -> list[LogRecord]:
        """Return the records of a range, no more once their values reach ``bytes_max``."""
        await self._faults.delay()
        log = self.of(topic, partition)
        if start < log.start:
            raise OffsetGoneError(f"{topic}[{partition}] has no offset {start} any more")
        found: list[LogRecord] = []
        size = 0
        for record in log.slice(start, stop):
            found.append(record)
            size += len(record.value or b"")
            if bytes_max is not None and size >= bytes_max:
                break
        return found

    async def record_at(self, topic: str, partition: int, offset: int) -> StoredRecord | None:
        """Return the record at an offset, None if it does not exist."""
        await self._faults.delay()
        log = self.of(topic, partition)
        return None if offset < log.start else next(iter(log.slice(offset, offset + 1)), None)

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset."""
        log = self.of(topic, partition)

        def act() -> None:
            log.start = max(log.start, before)

        await self._faults.request(act)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last."""
        await self._faults.delay()
        log = self.of(topic, partition)
        return log.start, log.end
