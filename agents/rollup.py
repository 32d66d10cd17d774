"""Rollup: the agent of layer topics. Contributions in, one delta per partition out."""

from __future__ import annotations

import asyncio

from agents.fold.gather import Gatherer
from agents.partition.letters import send_letters, whole_record
from agents.partition.owner import tail_of
from agents.partition.owners import PartitionManager
from agents.ports import Log
from tables.model.errors import DeltaTooLargeError, OutcomeUnknownError
from tables.record.chunk import Chunk, Run


class Rollup:
    """Gathers the chunks of all layer topics and advances their owners."""

    def __init__(self, owners: PartitionManager, to: Log) -> None:
        self._owners = owners
        self._log = to
        self._gatherers = {
            topic: Gatherer(plan) for topic, plan in owners.plans.items() if plan.finer is not None
        }

    async def handle(self, chunk: Chunk) -> None:
        """Take a chunk through one cycle of docs/formats/journal.md."""
        await asyncio.gather(*(self._handle(run, chunk.generation) for run in chunk.runs))

    async def _handle(self, run: Run, generation: int, refused: str = "") -> None:
        """Take a run through a cycle; ``refused`` says why its one record is refused."""
        owner = self._owners.taker(run, generation)
        if owner is None:
            return
        content, aside = self._gatherers[run.topic].gather(run, owner.state, refused)
        try:
            await send_letters(self._log, self._owners.themap, [run], aside, whole_record)
        except OutcomeUnknownError as error:
            await self._owners.give_up([owner], error)
            return
        try:
            await self._owners.advance(owner, content, tail_of(run))
        except DeltaTooLargeError as error:
            if len(run.values) == 1:
                # No owner writes such a record; unless it is refused, the partition never advances.
                await self._handle(run, generation, refused=str(error))
                return
            for half in run.halves():
                await self._handle(half, generation)
