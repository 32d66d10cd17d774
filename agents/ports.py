"""The log that agents read and append to, as they see it; ``app.kafka.log`` is the real one."""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(slots=True, frozen=True)
class LogRecord:
    """One record as read back: its value, None for a tombstone, and its append time in ms."""

    offset: int
    value: bytes | None
    append_time_ms: int


class Log(Protocol):
    """Appends to any topic."""

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...],
        *,
        key: bytes | None = None,
    ) -> int:
        """Append a record; return its offset. Raises OutcomeUnknownError."""


class ReadableLog(Log, Protocol):
    """A log that can be read back as well."""

    async def read(
        self, topic: str, partition: int, start: int, stop: int, bytes_max: int | None = None
    ) -> list[LogRecord]:
        """Return the records of offsets ``[start, stop)``; no more once values reach ``bytes_max``.

        It returns at least one record. Raises OffsetGoneError.
        """

    async def record_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """Return the record at an offset, None if it is gone. Raises OutcomeUnknownError."""

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, if brokers can. Raises OutcomeUnknownError."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last. Raises OutcomeUnknownError."""
