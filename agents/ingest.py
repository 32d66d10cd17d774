"""Ingest: the agent of raw sources. A chunk in, one delta per partition out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from agents.decode.records import Decoder
from agents.decode.schemas import Schemas
from agents.fold.content import Content
from agents.fold.layers import Folder
from agents.fold.small import SmallBatchFolder
from agents.partition.owned_partition import OwnedPartition
from agents.partition.owners import PartitionManager
from tables.record.chunk import Chunk, Run


class TypesSeen(NamedTuple):
    """The event types of a source since the worker started.

    ``selected`` are some of those that a layer selects; ``unselected`` are the events by type of
    those that no layer selects.
    """

    selected: set[str]
    unselected: Mapping[str, int]


class Ingest:
    """Decodes, classifies and folds the chunks of all raw sources, and advances their owners."""

    def __init__(self, owners: PartitionManager, schemas: Schemas | None = None) -> None:
        self._owners = owners
        self._steps = {
            topic: (
                Decoder(plan.source, schemas),
                Folder(plan),
                SmallBatchFolder(plan.source, plan),
            )
            for topic, plan in owners.plans.items()
            if plan.source is not None
        }

    def types(self) -> dict[str, TypesSeen]:
        """Return the event types of each source, by its name."""
        found = {}
        for topic, (_, folder, small) in self._steps.items():
            source = self._owners.plans[topic].source
            assert source is not None, "the topics of layers have no steps"
            both = folder.classifier.selected() | small.classifier.selected()
            found[source.name] = TypesSeen(both, folder.classifier.unselected)
        return found

    async def handle(self, chunk: Chunk) -> None:
        """Take a chunk through one cycle of docs/formats/journal.md."""
        for topic in {run.topic: None for run in chunk.runs}:
            runs = [run for run in chunk.runs if run.topic == topic]
            # Before the owners are asked, which may be others after it.
            await self._steps[topic][0].learn(runs)
            await self._handle(topic, runs, chunk.generation)

    async def _handle(
        self, topic: str, runs: list[Run], generation: int, refused: str = ""
    ) -> None:
        """Take runs of one topic through a cycle; ``refused`` says why a record is refused."""
        found = [(run, self._owners.taker(run, generation)) for run in runs]
        taken = {run.partition: held for run, held in found if held is not None}
        runs = [run for run in runs if run.partition in taken]
        if not runs:
            return
        before = {partition: held.owner.before() for partition, held in taken.items()}
        decoder, folder, small = self._steps[topic]
        contents = None if refused else small.fold(runs, before)
        if contents is None:
            if refused:
                batch = decoder.refuse(runs[0], "too_many_cells", refused)
            else:
                batch = decoder.decode(runs)
            contents = folder.fold(batch, before)
            aside, part_of = batch.aside, decoder.part_of
            if not await self._owners.send_letters(taken.values(), runs, aside, part_of):
                return
        pairs = zip(runs, contents, strict=True)
        await asyncio.gather(
            *(self._advance(taken[r.partition], r, c, generation) for r, c in pairs)
        )

    async def _advance(
        self, held: OwnedPartition, run: Run, content: Content, generation: int
    ) -> None:
        for part, cause in await self._owners.advance(held, run, content):
            await self._handle(part.topic, [part], generation, cause)
