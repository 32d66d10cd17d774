"""Rollup: the agent of layer topics. Contributions in, one delta per partition out."""

from __future__ import annotations

import asyncio

from agents.decode import SetAside
from agents.emit import Log
from agents.gather import Gatherer
from agents.ingest import set_aside
from agents.owner import tail_of
from agents.owners import Owners
from tables.chunk import Chunk, Run


class Rollup:
    """Gathers the chunks of all layer topics and advances their owners."""

    def __init__(self, owners: Owners, to: Log) -> None:
        self._owners = owners
        self._log = to
        self._gatherers = {
            topic: Gatherer(plan) for topic, plan in owners.plans.items() if plan.finer is not None
        }

    async def handle(self, chunk: Chunk) -> None:
        """Take a chunk through one cycle of docs/formats/journal.md."""
        await asyncio.gather(*(self._handle(number, run) for number, run in enumerate(chunk.runs)))

    async def _handle(self, number: int, run: Run) -> None:
        owner = self._owners.get(run.topic, run.partition)
        if owner is None or owner.position != run.first_offset:
            return
        content, aside = self._gatherers[run.topic].gather(number, run, owner.state)
        here = [SetAside(item.kind, 0, item.index, item.reason) for item in aside]
        await set_aside(self._log, self._owners.themap, [run], here)
        await self._owners.advance(run.topic, run.partition, content, tail_of(run))
