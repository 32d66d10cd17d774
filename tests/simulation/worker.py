"""A simulated worker: the real owners and agents in a process that can be killed and stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents.ingest import Ingest
from agents.partition.owners import PartitionManager
from agents.rollup import Rollup
from tables.model.errors import FencedError, OutcomeUnknownError
from tables.model.layer import Map
from tables.record.chunk import Chunk, Run
from tests.simulation.faults import Faults
from tests.simulation.log import SimulatedLog
from tests.simulation.loop import SimulatedLoop
from tests.simulation.sink import SimulatedArchive
from tests.support.common import run_of

Key = tuple[str, int]

PAUSE_S_MEAN = 0.15
"""Between two fetches of a worker."""

RECORDS = (0, 1, 1, 2, 3, 8)
"""How many records a fetch may have of a partition."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """The surroundings of all workers: the loop, the log, the archive."""

    loop: SimulatedLoop
    faults: Faults
    log: SimulatedLog
    archive: SimulatedArchive


class Worker:
    """One worker process, of one map, on one host.

    Args:
        around: its surroundings, shared with others.
        themap: that it serves.
        folder: of its host; no other living process may use it.
        early_emit_s: how long cells must not have changed before open ones are sent; 0 for never.
        stopped: called when it stops by itself, with the reason.
    """

    def __init__(
        self,
        around: Surroundings,
        themap: Map,
        folder: Path,
        early_emit_s: float,
        stopped: Callable[[Worker, BaseException], None],
    ) -> None:
        self.map = themap
        self.folder = folder
        self.wanted: set[Key] = set()
        self.leaving = False
        self.process, self._context = around.loop.create_process()
        self._loop = around.loop
        self._faults = around.faults
        self._rng: random.Random = around.faults.rng
        self._log = around.log
        self._stopped = stopped
        self._locks: dict[Key, asyncio.Lock] = {}
        self.owners = PartitionManager(
            themap,
            around.log,
            around.archive,
            folder,
            failed=self._fail,
            fenced=self._fenced,
            misplaced=self._misplaced,
            early_emit_s=early_emit_s,
        )
        self._ingest = Ingest(self.owners)
        self._rollup = Rollup(self.owners)
        sources = {source.topic for source in themap.sources}
        for topics in (sources, set(themap.inputs()) - sources):
            self._spawn(self._lane, sorted(topics))

    def assign(self, key: Key) -> None:
        """Give it a partition, whoever else has it, if its map has the topic."""
        if key[0] in self.map.inputs():
            self.wanted.add(key)
            self._spawn(self._restore, key)

    def leave(self) -> None:
        """Claim nothing any more."""
        self.leaving = True
        self.wanted.clear()

    def revoke(self, key: Key) -> None:
        """Take a partition from it in good order."""
        self.wanted.discard(key)
        self._spawn(self._release, key)

    def _spawn(self, act: Callable[..., Awaitable[None]], *args: object) -> None:
        self._loop.create_task(self._guard(act, *args), context=self._context)

    async def _guard(self, act: Callable[..., Awaitable[None]], *args: object) -> None:
        """Stop with whatever a task ends with, as the transport does."""
        try:
            await act(*args)
        except Exception as error:  # noqa: BLE001 - told to those who check
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.process.alive and not isinstance(error, GeneratorExit):
            self._stopped(self, error)

    def _fenced(self, topic: str, partition: int, reason: str) -> None:
        del reason
        if not self.leaving and (self._faults.calm or self._rng.random() < 0.5):
            self._spawn(self._restore, (topic, partition), self._rng.uniform(1, 3))
        else:
            self.wanted.discard((topic, partition))

    def _misplaced(self, topic: str, partition: int, position: int) -> None:
        """Chunks are fetched at the owner's position, just before they are handed over."""
        raise AssertionError(f"a chunk of {topic}[{partition}] does not begin at {position}")

    async def _restore(self, key: Key, wait_s: float = 0) -> None:
        """Restore a partition until that succeeds; one at a time, and none beside a release."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        await asyncio.sleep(wait_s)
        async with lock:
            while key in self.wanted and self.owners.get(*key) is None:
                try:
                    await self.owners.restore(*key, 1)
                except (FencedError, OutcomeUnknownError):
                    await asyncio.sleep(self._rng.uniform(1, 3))

    async def _release(self, key: Key) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self.owners.release({key})

    async def _lane(self, topics: list[str]) -> None:
        """Hand chunks to the agent of these topics, for as long as the process lives."""
        while True:
            runs = [run for topic in topics for run in self._fetch(topic)]
            source = bool(runs) and self.owners.plans[runs[0].topic].source is not None
            if runs:
                await (self._ingest if source else self._rollup).handle(Chunk(1, runs))
            pause = 1.0 if self._faults.calm else self._rng.expovariate(1 / PAUSE_S_MEAN)
            await asyncio.sleep(pause)

    def _fetch(self, topic: str) -> list[Run]:
        runs = []
        for partition in range(self.map.inputs()[topic]):
            owner = self.owners.get(topic, partition)
            if owner is None:
                continue
            at = owner.position
            most = 2**40 if self._faults.calm else self._rng.choice(RECORDS)
            found = self._log.of(topic, partition).slice(at, at + most)
            if found:
                run = run_of([record.value for record in found], partition, at, topic)
                run.append_times_ms = [record.append_time_ms for record in found]
                run.headers = {i: r.headers for i, r in enumerate(found) if r.headers}
                runs.append(run)
        return runs
