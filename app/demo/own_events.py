"""Own events: a map and files of events on this machine, with all parts of a real deployment.

files --> produce --> embedded broker <--> worker --> embedded archive
             `-- check --.                   |
                         `---> report <-- ledger, first rows
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.cluster.topics import apply_topics
from app.demo.drain import drain
from app.demo.embedded_broker import EmbeddedBroker
from app.demo.repeated import repeated
from app.demo.worker import DemoWorker, Status
from app.load.event_check import EventCheck
from app.load.event_keys import keys_of
from app.load.input_file import InputFile
from app.load.produce import Production, Written, produce
from tables.model.layer import Map, Source

# Coarser layers have the events of open windows soon after the last of them.
_EMIT_MS = "500"


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """A map with its file, and the files of events of one of its sources, to be tried.

    ``folder`` exists and is empty; state, archive and the worker's log go there.
    """

    themap: Map
    map_file: pathlib.Path
    source: Source
    files: list[InputFile]
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True, slots=True)
class Tried:
    """The end of a trial: everything is folded, and the worker serves.

    Attributes:
        map_file: the file of the map.
        url: the address of the query endpoint.
        brokers: the address of the broker.
        written: how many events there were.
        check: the check of the events before they were written.
        status: the worker's ledger and layers.
    """

    map_file: pathlib.Path
    url: str
    brokers: str
    written: Written
    check: EventCheck
    status: Status


Show = Callable[[Written, int], None]
"""Called a few times a second with the events written, and the number of those applied."""


@asynccontextmanager
async def tried(
    trial: Trial, note: Callable[[str], None], show: Show = lambda *_: None
) -> AsyncIterator[Tried]:
    """Run broker and worker, and write the events; the body runs when all of them are folded.

    Args:
        trial: the map and the files.
        note: gets a sentence at each step.
        show: gets the progress.

    Raises:
        TreasureMapError: some part of it could not continue.
    """
    with EmbeddedBroker() as broker:
        await apply_topics(broker.bootstrap, trial.themap)
        settings = {"early_emit_ms": _EMIT_MS}
        with DemoWorker(broker.bootstrap, trial.map_file, trial.folder, settings) as worker:
            note(f"broker at {broker.bootstrap}, memory only; the worker starts")
            await worker.ready()
            check, written = EventCheck(trial.themap, trial.source), Written()
            plan = Production(
                brokers=broker.bootstrap,
                topic=trial.source.topic,
                files=trial.files,
                keys=keys_of(trial.source),
                check=check,
            )

            async def step() -> None:
                if (status := await worker.seen()) is not None:
                    show(written, status.events(trial.themap))

            async with repeated(step):
                await produce(plan, written)
                note(f"wrote {written.events:,} events to {plan.topic}; waiting for their rows")
                await drain(broker.bootstrap, trial.themap, worker, {}, with_open_windows=True)
            status = await worker.status()
            yield Tried(trial.map_file, worker.url, broker.bootstrap, written, check, status)


async def serve(seconds: float | None) -> None:
    """Wait for a time; None is forever."""
    await asyncio.sleep(seconds) if seconds is not None else await asyncio.Event().wait()
