"""One kind of input on its way from the transport to its agent.

take_in -> gathered: one run a partition -> next_chunk -> offer -> channel -> handle
^ refetch drops from here                      ^ forget drops from here too
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from app.kafka.pace import Pace
from tables.model.topic_partition import TopicPartition
from tables.record.chunk import Chunk, Run

Idle = Callable[[Chunk | None], None]
"""Called with the chunk that a lane's agent has done, or None when the agent starts."""


class Lane:
    """One kind of input on its way to one agent, which has at most one chunk, waiting or in hand.

    Records that are fetched meanwhile are gathered for the next one; others stay in Kafka.
    ``send`` puts a chunk into the agent's channel; ``became_idle`` is called when the agent can be
    offered one.

    Attributes:
        handled_seconds: how long the agent has worked on chunks.
    """

    def __init__(
        self,
        name: str,
        topics: Iterable[str],
        send: Callable[[Chunk], Awaitable[Any]],
        became_idle: Idle,
        *,
        admits: Callable[[], bool] = lambda: True,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.topics = frozenset(topics)
        self.pace = pace or Pace()
        self.handled_seconds = 0.0
        self._send = send
        self._became_idle = became_idle
        self._admits = admits
        self._clock = clock
        self._runs: dict[TopicPartition, Run] = {}
        self._bytes = self._records = 0
        self._done_at = 0.0
        self._attached = False
        self._waiting: Chunk | None = None
        self._in_hand: Chunk | None = None

    # Methods for the transport.

    @property
    def is_idle(self) -> bool:
        """Whether the agent has started and has nothing waiting or in hand."""
        return self._attached and self._waiting is None and self._in_hand is None

    def next_offsets(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return the offsets to fetch next of this lane's partitions.

        ``positions`` are the next offsets to hand over.
        """
        return {
            tp: self._runs[tp].next_offset if tp in self._runs else position
            for tp, position in positions.items()
            if tp[0] in self.topics
        }

    def room(self, bytes_max: int, records_max: int) -> tuple[int, int]:
        """Return the bytes and records that still fit into the next chunk; 0 or less if it is full.

        A chunk has at most ``bytes_max`` bytes of values, whatever the pace allows.
        """
        return min(self.pace.chunk_bytes, bytes_max) - self._bytes, records_max - self._records

    def take_in(self, runs: Iterable[Run]) -> None:
        """Add the records that were fetched next of some partitions."""
        for run in runs:
            known = self._runs.setdefault((run.topic, run.partition), run)
            if known is not run:
                known.extend(run)
            self._bytes += run.size
            self._records += len(run.values)

    def due_in(self) -> float | None:
        """Return the seconds until the next chunk is due, 0 or less if it is due now.

        None if nothing was fetched, or the agent is not idle.
        """
        if not self._runs or not self.is_idle:
            return None
        return self._done_at + self.pace.wait_seconds(self._bytes) - self._clock()

    def next_chunk(self, generation: int) -> Chunk | None:
        """Return all that was fetched as one chunk, which is to be offered at once.

        None if no more is admitted now.
        """
        if not self._admits():
            return None
        chunk = Chunk(generation, list(self._runs.values()))
        self._clear()
        return chunk

    async def offer(self, chunk: Chunk) -> None:
        """Put a chunk into the channel of the idle agent, which has room for it."""
        assert self.is_idle, f"lane {self.name} has a chunk already"
        self._waiting = chunk
        await self._send(chunk)

    def refetch(self, tp: TopicPartition) -> None:
        """Drop the records of one partition that are in no chunk yet; they are fetched again."""
        run = self._runs.pop(tp, None)
        if run is not None:
            self._bytes -= run.size
            self._records -= len(run.values)

    def forget(self, tp: TopicPartition) -> None:
        """Drop the waiting records of one partition, fetched or queued, for its next owner."""
        self.refetch(tp)
        if self._waiting is not None:
            self._waiting.runs = [r for r in self._waiting.runs if (r.topic, r.partition) != tp]

    def forget_all(self) -> None:
        """Drop all that waits; the channel was emptied."""
        self._waiting = None
        self._clear()

    def _clear(self) -> None:
        self._runs = {}
        self._bytes = self._records = 0

    # Methods for the agent.

    def attach(self) -> None:
        """The agent reads its channel from now on; before that, chunks would be lost."""
        self._attached = True
        self._became_idle(None)

    async def handle(self, chunk: Chunk, handler: Callable[[Chunk], Awaitable[None]]) -> None:
        """Run ``handler`` with a chunk from the agent's channel."""
        if chunk is not self._waiting:
            return
        self._waiting, self._in_hand = None, chunk
        size, started = chunk.size, self._clock()
        try:
            await handler(chunk)
        finally:
            self._in_hand = None
            self._done_at = self._clock()
            self.handled_seconds += self._done_at - started
        self.pace.done(size, self._done_at - started)
        self._became_idle(chunk)
