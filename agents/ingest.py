"""Ingest: the agent of raw sources. A chunk in, one delta per partition out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agents.decode import Decoder, SetAside
from agents.emit import Log
from agents.fold import Before, Folder
from agents.owner import tail_of
from agents.owners import Owners
from tables.chunk import Chunk, Run
from tables.layer import Map


class Ingest:
    """Decodes, classifies and folds the chunks of all raw sources, and advances their owners."""

    def __init__(self, owners: Owners, to: Log, record_bytes_max: int) -> None:
        self._owners = owners
        self._log = to
        self._steps = {
            topic: (Decoder(plan.source, record_bytes_max), Folder(plan))
            for topic, plan in owners.plans.items()
            if plan.source is not None
        }

    async def handle(self, chunk: Chunk) -> None:
        """Take a chunk through one cycle of docs/formats/journal.md."""
        for topic in {run.topic: None for run in chunk.runs}:
            await self._handle(topic, [run for run in chunk.runs if run.topic == topic])

    async def _handle(self, topic: str, runs: list[Run]) -> None:
        before: dict[int, Before] = {}
        for run in runs:
            owner = self._owners.get(topic, run.partition)
            if owner is not None and owner.position == run.first_offset:
                before[run.partition] = owner.before()
        runs = [run for run in runs if run.partition in before]
        if not runs:
            return
        decoder, folder = self._steps[topic]
        batch = decoder.decode(runs)
        contents = folder.fold(batch, before)
        await set_aside(self._log, self._owners.themap, runs, batch.aside)
        await asyncio.gather(
            *(
                self._owners.advance(topic, run.partition, content, tail_of(run))
                for run, content in zip(runs, contents, strict=True)
            )
        )


async def set_aside(to: Log, themap: Map, runs: Sequence[Run], aside: Sequence[SetAside]) -> None:
    """Send records to the side topics, acknowledged before their offsets are passed.

    A repeat after a failure carries the same position in its headers and can be recognised by it.
    """
    sends = []
    for item in aside:
        run = runs[item.run]
        headers = (
            ("topic", run.topic.encode()),
            ("partition", b"%d" % run.partition),
            ("offset", b"%d" % run.offsets[item.index]),
            ("reason", item.reason.encode()),
        )
        topic = themap.side_topic(item.kind)  # type: ignore[arg-type]
        target = run.partition % themap.side_partitions
        sends.append(to.append(topic, target, run.values[item.index], headers))
    await asyncio.gather(*sends)
