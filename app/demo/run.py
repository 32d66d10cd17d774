"""The demo: broker, topics, one worker, the flights, the radar, and a check of the result.

embedded broker <-- replay of the flights, then the radar
      |
    worker --> embedded archive
      |                |
 HTTP answers     its folder, after the worker stopped
      `----- equal to the file? -----'
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import tempfile

import click
import polars as pl

from app.cluster.topics import apply_topics
from app.demo import check
from app.demo.display import Display, Progress, ledger_lines
from app.demo.drain import drain
from app.demo.embedded_broker import EmbeddedBroker
from app.demo.flights import events, truth
from app.demo.repeated import repeated
from app.demo.worker import DemoError, DemoWorker
from app.load.generator import stream
from app.load.plan import LoadSpec
from app.load.replay import replay, settled_ms
from app.mapfile.load import load_map
from tables.model.clock import wall_clock_ms
from tables.model.layer import Map

REPLAY_SECONDS = 20.0
STREAM_SECONDS = 3_600.0
# Of a demo with a given length, this part goes to the flights.
REPLAY_SHARE = 0.75


@dataclasses.dataclass(frozen=True, slots=True)
class DemoTimes:
    """The lengths of the parts, in seconds."""

    replay_seconds: float
    stream_seconds: float

    @classmethod
    def of(cls, seconds: float | None) -> DemoTimes:
        """Return the plan of a demo of ``seconds``; None continues for an hour."""
        if seconds is None:
            return cls(REPLAY_SECONDS, STREAM_SECONDS)
        return cls(seconds * REPLAY_SHARE, seconds * (1 - REPLAY_SHARE))


async def run(plan: DemoTimes, folder: pathlib.Path) -> list[str]:
    """Run the demo and return the differences that its check found; empty if all is equal.

    Args:
        plan: the lengths of its parts.
        folder: existing; gets a temporary folder for state, archive and the worker's log.

    Raises:
        TreasureMapError: some part of it could not continue.
    """
    themap = load_map(events.MAP_FILE)
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="demo-", dir=folder) as own:
        click.echo(f"broker at {broker.bootstrap}, memory only")
        await apply_topics(broker.bootstrap, themap)
        with DemoWorker(broker.bootstrap, events.MAP_FILE, pathlib.Path(own)) as worker:
            # The file is read while the worker starts.
            flights, _ = await asyncio.gather(
                asyncio.to_thread(events.read_flights), worker.ready()
            )
            click.echo(f"worker is ready; query endpoint: {worker.url}")
            await _feed(plan, broker.bootstrap, themap, worker, flights)
            status = await worker.status()
            problems = await asyncio.to_thread(_check_answers, worker.url, themap, flights)
            code = worker.stop()
            if code != 0:
                problems.append(f"worker: ended with exit code {code} when it was stopped; want 0")
            problems += await _check_archive(worker.archive_folder, themap, flights)
    for line in ledger_lines(status.ledger):
        click.echo(line)
    return problems + [f"ledger: {problem}" for problem in status.ledger["problems"]]


def radar(brokers: str, seconds: float) -> LoadSpec:
    """Return the load of the synthetic radar: contacts of 16 sectors, from now on."""
    return LoadSpec(
        map_file=str(events.MAP_FILE), source="radar", brokers=brokers, rate=2_000, seconds=seconds,
        keys=16, skew=1.0, types=1, start_ms=wall_clock_ms(),
    )  # fmt: skip


async def _feed(
    plan: DemoTimes, brokers: str, themap: Map, worker: DemoWorker, flights: pl.DataFrame
) -> None:
    """Write the flights, then the radar, and wait until everything has been applied."""
    progress = Progress()
    records = await asyncio.to_thread(lambda: events.records(events.flight_events(flights)))
    end_ms = settled_ms(themap, events.SOURCE, int(records["at"][-1]))
    topic = themap.source(events.SOURCE).topic
    with Display(worker.url, themap) as display:
        async with _shown(display, "flights", progress, worker):
            await replay(
                brokers, topic, records, end_ms,
                seconds=plan.replay_seconds, progress=progress.write,
            )  # fmt: skip
        progress.begin()
        async with _shown(display, "radar", progress, worker):
            await stream(radar(brokers, plan.stream_seconds), progress.write)
        async with _shown(display, "draining", progress, worker):
            await drain(brokers, themap, worker, _ends(themap, int(records["at"][-1])))
        status = await worker.status()
        progress.apply(status.events(themap))
        display.show("drained", progress, status, last=True)
    applied = status.events(themap)
    if applied != progress.written:
        raise DemoError(
            f"cannot accept the run: events were lost or doubled; got {applied:,} applied; want"
            f" the {progress.written:,} that were written"
        )


def _ends(themap: Map, last_ms: int) -> dict[str, int]:
    """Return the end of each flights layer's last window; ``last_ms`` is the last flight's time."""
    layers = [themap.layer(name) for name in truth.LAYERS]
    return {layer.name: layer.window.end(layer.window.start(last_ms)) for layer in layers}


def _shown(
    display: Display, phase: str, progress: Progress, worker: DemoWorker
) -> contextlib.AbstractAsyncContextManager[None]:
    """Show progress while the body runs; the worker's end ends the body too."""

    async def show() -> None:
        # A worker that is too busy to answer shows nothing new.
        if (status := await worker.seen()) is not None:
            progress.apply(status.events(display.themap))
            display.show(phase, progress, status)

    return repeated(show)


def _check_answers(url: str, themap: Map, flights: pl.DataFrame) -> list[str]:
    """Compare the month layers as answered over HTTP."""
    problems = []
    for name in truth.MONTH_LAYERS:
        layer = themap.layer(name)
        want = check.expected(layer, flights)
        got, partial = check.answered(url, layer)
        found = check.differences("over HTTP", layer, want, got)
        if partial:
            found.append(f"{name} over HTTP: the answer says it is partial; want all partitions")
        problems += found
        if not found:
            click.echo(f"{name} over HTTP: {len(got):,} rows equal the file")
    return problems


async def _check_archive(folder: pathlib.Path, themap: Map, flights: pl.DataFrame) -> list[str]:
    """Compare every layer of the flights in the archive's folder."""
    problems = []
    layers = [themap.layer(name) for name in truth.LAYERS]
    rows = await check.archived(folder, themap, layers)
    for layer in layers:
        want = await asyncio.to_thread(check.expected, layer, flights)
        found = check.differences("in the archive", layer, want, rows[layer.name])
        problems += found
        if not found:
            click.echo(f"{layer.name} in the archive: {len(want):,} rows equal the file")
    return problems
