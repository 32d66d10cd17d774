"""A transport with agents and owners that a test looks into."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from app.kafka.lane import Lane
from app.kafka.moves import PartitionLifecycle
from app.kafka.transport import Transport
from app.kafka.transport_options import TransportOptions
from tables.record.chunk import Chunk
from tests.support import waiting

SECONDS_MAX = 60.0
TopicPartitions = set[tuple[str, int]]


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    await waiting.until(condition, SECONDS_MAX, what)


class Memory:
    """Owners whose journal is a dict: the position of each partition, kept over releases."""

    def __init__(self, positions: dict[tuple[str, int], int] | None = None) -> None:
        self.positions = positions if positions is not None else {}
        self.live: TopicPartitions = set()
        self.calls: list[tuple[str, Any]] = []
        self.errors: list[Exception] = []
        self.release_gate = asyncio.Event()
        self.release_gate.set()
        self.restore_gate = asyncio.Event()
        self.restore_gate.set()
        self.cancelled = 0

    async def restore(self, topic: str, partition: int, generation: int) -> int:
        """Raise the next error, if any, or return the position."""
        self.calls.append(("restore", (topic, partition, generation)))
        try:
            await self.restore_gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        self.live.add((topic, partition))
        return self.positions.get((topic, partition), 0)

    async def release(self, partitions: TopicPartitions) -> None:
        """Forget, when the gate is open."""
        self.calls.append(("release", partitions))
        await self.release_gate.wait()
        self.live -= partitions

    def held(self) -> TopicPartitions:
        """Nothing is on disk."""
        return set()


class TransportHarness:
    """A transport without Faust: a queue and a task stand for each agent."""

    def __init__(
        self, brokers: str, topics: dict[str, str], owners: PartitionLifecycle, **options: Any
    ) -> None:
        self.chunks: list[Chunk] = []
        self.seen: dict[tuple[str, int], list[tuple[int, bytes | None]]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.wrong: Exception | None = None
        self.paused: set[str] = set()
        self.owners = owners
        self._queues = {name: asyncio.Queue[Chunk](1) for name in topics}
        given: dict[str, Any] = {
            "group": uuid.uuid4().hex,
            "node": "a",
            "retry_seconds": (0.01, 0.05),
        }
        given |= {"session_timeout_ms": 3_000} | options
        self.transport = Transport(TransportOptions(brokers=brokers, **given), self._purge)
        self.lanes = {
            name: Lane(
                name,
                frozenset({topic}),
                self._queues[name].put,
                self.transport.lane_idle,
                admits=functools.partial(self._admits, name),
            )
            for name, topic in topics.items()
        }
        self.transport.serve(owners, self.lanes.values())
        self._tasks = [asyncio.create_task(self._agent(name)) for name in topics]

    def _admits(self, lane: str) -> bool:
        return lane not in self.paused

    def _purge(self) -> None:
        for queue in self._queues.values():
            with contextlib.suppress(asyncio.QueueEmpty):
                queue.get_nowait()

    async def _agent(self, name: str) -> None:
        self.lanes[name].attach()
        while True:
            chunk = await self._queues[name].get()
            try:
                await self.lanes[name].handle(chunk, self._handle)
            except Exception as error:  # noqa: BLE001 - as the real agent does
                self.transport.fail(error)

    async def _handle(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        await self.gate.wait()
        if self.wrong is not None:
            raise self.wrong
        for run in chunk.runs:
            tp = (run.topic, run.partition)
            if isinstance(self.owners, Memory):
                if self.transport.ready.get(tp) != chunk.generation:
                    continue
                self.owners.positions[tp] = run.next_offset
            self.seen.setdefault(tp, []).extend(zip(run.offsets, run.values, strict=True))

    def values(self) -> list[bytes | None]:
        """Return all values handled so far."""
        return [value for records in self.seen.values() for _, value in records]

    async def close(self) -> None:
        """Stop transport and agents."""
        self.gate.set()
        await self.transport.stop()
        for task in self._tasks:
            task.cancel()


Benches = Callable[..., Awaitable[TransportHarness]]
