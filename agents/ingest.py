"""Ingest: the agent of raw sources. A chunk in, one delta per partition out."""

from __future__ import annotations

import asyncio

from agents.decode.records import Decoder
from agents.fold.content import Content
from agents.fold.layers import Folder
from agents.fold.small import SmallBatchFolder
from agents.partition.letters import send_letters
from agents.partition.owner import Owner, tail_of
from agents.partition.owners import PartitionManager
from agents.ports import Log
from tables.model.errors import DeltaTooLargeError, OutcomeUnknownError
from tables.record.chunk import Chunk, Run


class Ingest:
    """Decodes, classifies and folds the chunks of all raw sources, and advances their owners."""

    def __init__(self, owners: PartitionManager, to: Log) -> None:
        self._owners = owners
        self._log = to
        self._steps = {
            topic: (Decoder(plan.source), Folder(plan), SmallBatchFolder(plan.source, plan))
            for topic, plan in owners.plans.items()
            if plan.source is not None
        }

    async def handle(self, chunk: Chunk) -> None:
        """Take a chunk through one cycle of docs/formats/journal.md."""
        for topic in {run.topic: None for run in chunk.runs}:
            runs = [run for run in chunk.runs if run.topic == topic]
            await self._handle(topic, runs, chunk.generation)

    async def _handle(
        self, topic: str, runs: list[Run], generation: int, refused: str = ""
    ) -> None:
        """Take runs of one topic through a cycle; ``refused`` says why a record is refused."""
        owners: dict[int, Owner] = {}
        for run in runs:
            owner = self._owners.taker(run, generation)
            if owner is not None:
                owners[run.partition] = owner
        runs = [run for run in runs if run.partition in owners]
        if not runs:
            return
        before = {partition: owner.before() for partition, owner in owners.items()}
        decoder, folder, few = self._steps[topic]
        contents = None if refused else few.fold(runs, before)
        if contents is None:
            if refused:
                batch = decoder.refuse(runs[0], "too_many_cells", refused)
            else:
                batch = decoder.decode(runs)
            contents = folder.fold(batch, before)
            send = send_letters(self._log, self._owners.themap, runs, batch.aside, decoder.part_of)
            try:
                await send
            except OutcomeUnknownError as error:
                await self._owners.give_up(owners.values(), error)
                return
        await asyncio.gather(
            *(
                self._advance(owners[run.partition], run, content, generation)
                for run, content in zip(runs, contents, strict=True)
            )
        )

    async def _advance(self, owner: Owner, run: Run, content: Content, generation: int) -> None:
        """Advance by a run, in halves if it adds more than one delta can hold.

        A single record that adds too much is refused, or its partition could never advance.
        """
        try:
            await self._owners.advance(owner, content, tail_of(run))
        except DeltaTooLargeError as error:
            if len(run.values) == 1:
                await self._handle(run.topic, [run], generation, refused=str(error))
                return
            for half in run.halves():
                await self._handle(run.topic, [half], generation)
