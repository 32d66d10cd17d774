"""Rollup: the agent of layer topics. Contributions in, one delta per partition out."""

from __future__ import annotations

import asyncio

from agents.fold.gather import Gatherer
from agents.partition.letters import whole_record
from agents.partition.owners import PartitionManager
from tables.record.chunk import Chunk, Run


class Rollup:
    """Gathers the chunks of all layer topics and advances their owners."""

    def __init__(self, owners: PartitionManager) -> None:
        self._owners = owners
        self._gatherers = {
            topic: Gatherer(plan) for topic, plan in owners.plans.items() if plan.finer is not None
        }

    async def handle(self, chunk: Chunk) -> None:
        """Take a chunk through one cycle of docs/formats/journal.md."""
        await asyncio.gather(*(self._handle(run, chunk.generation) for run in chunk.runs))

    async def _handle(self, run: Run, generation: int, refused: str = "") -> None:
        """Take a run through a cycle; ``refused`` says why its one record is refused."""
        held = self._owners.taker(run, generation)
        if held is None:
            return
        content, aside = self._gatherers[run.topic].gather(run, held.owner.state, refused)
        if await self._owners.send_letters([held], [run], aside, whole_record):
            for part, cause in await self._owners.advance(held, run, content):
                await self._handle(part, generation, cause)
