"""Generate: writes a load of synthetic events with a known outcome to a source's topic.

plan -> one process a part -> settle -> manifest
        each: events -> bad input among them -> records -> feed
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from app.cluster.rights import Right
from app.cluster.rights_check import check_rights
from app.config.connections import client_options
from app.config.settings import Settings
from app.kafka.batch_producer import BatchProducer
from app.kafka.scan import Scan, partitions_of
from app.load.event_shape import EventShape
from app.load.manifest import Written, manifest_of, write_manifest
from app.load.plan import GenerateError, LoadSpec, Part, check_times, parts_of, start_after
from app.load.process import PartResult, PartWriter, Progress, run_process
from app.load.replay import settled_ms
from app.load.truth import PartitionTruth
from app.load.vocabulary import Words, words_of
from app.load.writers import writers_of
from app.mapfile.load import load_map
from tables.model.clock import wall_clock_ms
from tables.model.layer import Map, Source
from tables.model.path import path_text
from tables.model.window import time_text
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat

# A process imports, connects and makes its words in about a second on an idle machine.
_READY_SECONDS_MAX = 60.0
_BEGIN_SECONDS = 0.1
_POLL_SECONDS = 0.25
_STOP_SECONDS_MAX = 10.0


def generate(
    plan: LoadSpec,
    manifest: pathlib.Path,
    *,
    processes: int,
    settle: bool = True,
    append: bool = False,
    command: Sequence[str] = (),
    show: Callable[[dict[int, Progress]], None] | None = None,
    note: Callable[[str], None] = lambda _: None,
    starts_later: bool = False,
    login: Settings | None = None,
) -> dict[str, Any]:
    """Write a load, then its manifest, and return the manifest.

    An interrupt (SIGINT, SIGTERM) ends the load in order; the manifest has the records that were
    written.

    Args:
        plan: the load.
        manifest: the file to write.
        processes: how many processes write; at most one a partition.
        settle: whether every partition gets a last heartbeat that closes and seals all windows.
        append: whether the topic may hold records already.
        command: the command line, for the manifest.
        show: called a few times a second with the progress of each part.
        note: called before the load begins with sentences about its times.
        starts_later: whether it may start at the topic's last heartbeat.
        login: settings that say how to connect to Kafka; None: plain.

    Raises:
        GenerateError: the load cannot be written as asked.
        ProducerError, ScanError: no broker answers, the topic is missing, or records were refused.
        RightsError: this user may not read and write the topic.
    """
    themap = load_map(plan.map_file)
    source = _source(themap, plan)
    started_ms = wall_clock_ms()
    check_times(themap, source, plan, started_ms, settle=settle)
    words = _words(themap, source, plan)
    options = client_options(login)
    first = asyncio.run(_first(plan.brokers, source, options))
    if not append:
        _check_empty(source, first)
    last_ms = asyncio.run(_last_heartbeat_ms(plan.brokers, source.topic, first, options))
    if last_ms is not None and starts_later:
        plan = start_after(themap, source, plan, last_ms, started_ms, settle=settle)
    _note_times(plan, last_ms, note)
    weights = words.partition_weights()
    parts = parts_of(weights, min(processes, sum(weight > 0 for weight in weights)))
    with _Processes(plan, parts, login) as running:
        results = running.run(show or (lambda _: None))
    truths = {number: one for result in results for number, one in result.partitions.items()}
    settled = asyncio.run(_settle(plan, themap, source, truths, options)) if settle else None
    written = Written(
        plan=plan,
        command=command,
        started_ms=started_ms,
        ended_ms=wall_clock_ms(),
        results=results,
        first=first,
        ends=asyncio.run(_ends(plan.brokers, source, options)),
        settled_ms=settled,
    )
    content = manifest_of(themap, written)
    write_manifest(manifest, content)
    _vouch(written, source, manifest)
    return content


async def stream(plan: LoadSpec, progress: Callable[[int], None]) -> int:
    """Write a load from this process, with its last heartbeats, and return how many events it had.

    Args:
        plan: the load.
        progress: called a few times a second with the number of events written so far.

    Raises:
        GenerateError: the load cannot be written as asked.
        ProducerError: no broker answers, the topic is missing, or records were refused.
    """
    themap = load_map(plan.map_file)
    source = _source(themap, plan)
    words = _words(themap, source, plan)
    (part,) = parts_of(words.partition_weights(), 1)
    async with BatchProducer(plan.brokers, source.topic) as feed:
        written = await PartWriter(plan, part, words).write(
            feed, time.monotonic(), asyncio.Event(), lambda one: progress(one.events)
        )
    await _settle(plan, themap, source, written.partitions, {})
    progress(written.events)
    return written.events


def _check_empty(source: Source, first: Mapping[int, int]) -> None:
    """Raise GenerateError if the topic holds records."""
    if any(first.values()):
        raise GenerateError(
            f"cannot generate events into {source.topic}: it holds records, so late events are"
            f" not known; got {sum(first.values())} records; want an empty topic; make it anew, or"
            " give --append"
        )


def _note_times(plan: LoadSpec, last_ms: int | None, note: Callable[[str], None]) -> None:
    """Note the range of event times, and a warning if some come before the last heartbeat."""
    note(f"event times go from {time_text(plan.start_ms)} to {time_text(plan.end_ms)}")
    if last_ms is not None and plan.start_ms < last_ms:
        note(
            f"warning: the topic's last heartbeat is at {time_text(last_ms)}: events before it"
            " come too late"
        )


def _vouch(written: Written, source: Source, manifest: pathlib.Path) -> None:
    """Raise GenerateError if others have written to the topic meanwhile."""
    if written.disturbed:
        raise GenerateError(
            f"cannot vouch for {source.topic}: other records came in between;"
            f" got other ends in partitions {written.disturbed}; want those of {manifest}; make the"
            " topic anew and generate again"
        )


def _source(themap: Map, plan: LoadSpec) -> Source:
    """Return a source that events can be generated for."""
    name = plan.source
    names = [source.name for source in themap.sources]
    if name not in names:
        raise GenerateError(
            f"cannot generate events: the map has no such source; got {name!r}; want one of"
            f" {', '.join(names)}; change --source, or --map, which is {plan.map_file}"
        )
    source = themap.source(name)
    if plan.duplicates and source.id_field is None:
        raise GenerateError(
            f"cannot generate duplicates for {name}: its events have no id; got a share of"
            f" {plan.duplicates}; want a source with an id; add one to the map, or leave"
            " --duplicates out"
        )
    shape = EventShape(source)
    if not any(writer.fits(source) for writer in writers_of(plan.format)):
        raise GenerateError(
            f"cannot generate events for {name} as {plan.format}: it cannot say them; got paths"
            f" {', '.join(map(path_text, source.paths))}; want columns alone for CSV, and for Avro"
            " names of ASCII, no schema in the map, and the extra avro; give another --format"
        )
    own = sorted({shape.time, shape.type} & set(source.keyed_by))
    if own:
        raise GenerateError(
            f"cannot generate events for {name}: it is keyed by its time or type; got {own}; want"
            " keys of other fields; change the map's keyed_by"
        )
    return source


class _Processes:
    """The processes of a load; use it in a ``with`` statement, which leaves none behind."""

    def __init__(self, plan: LoadSpec, parts: Sequence[Part], login: Settings | None) -> None:
        self._plan = plan
        self._login = login
        self._parts = parts
        self._children: dict[Connection, BaseProcess] = {}
        self._results: list[PartResult] = []
        self._stopping = False

    def __enter__(self) -> Self:
        # Each process is one core's; it reads this when it imports polars.
        os.environ.setdefault("POLARS_MAX_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        for part in self._parts:
            ours, theirs = context.Pipe()
            child = context.Process(
                target=run_process, args=(self._plan, part, theirs, self._login), daemon=True
            )
            child.start()
            theirs.close()
            self._children[ours] = child
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, child in self._children.items():
            pipe.close()
            child.join(_STOP_SECONDS_MAX)
            if child.is_alive():
                child.kill()
                child.join()

    def run(self, show: Callable[[dict[int, Progress]], None]) -> list[PartResult]:
        """Let the processes write, and return the counts of each."""
        progress: dict[int, Progress] = {}
        waiting = set(self._children)
        deadline_s = time.monotonic() + _READY_SECONDS_MAX
        with self._interrupts():
            while waiting:
                if time.monotonic() > deadline_s:
                    raise GenerateError(
                        f"cannot begin: processes are not ready; got {len(waiting)} that are not;"
                        f" want all within {_READY_SECONDS_MAX:.0f} s; check the machine's load"
                    )
                waiting -= {pipe for pipe, _ in self._messages()}
            begin_s = time.monotonic() + _BEGIN_SECONDS
            for pipe in self._children:
                pipe.send(begin_s)
            if self._stopping:
                self._stop()
            while len(self._results) < len(self._children):
                for _, message in self._messages():
                    if isinstance(message, PartResult):
                        self._results.append(message)
                    elif isinstance(message, Progress):
                        progress[message.part] = message
                show(progress)
        return self._results

    def _messages(self) -> Iterator[tuple[Connection, Progress | PartResult | None]]:
        """Yield the messages of the processes within a moment."""
        done = {result.part.number for result in self._results}
        open_pipes = [
            pipe
            for pipe, part in zip(self._children, self._parts, strict=True)
            if part.number not in done
        ]
        for pipe in multiprocessing.connection.wait(open_pipes, _POLL_SECONDS):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except EOFError:
                self._children[pipe].join()
                code = self._children[pipe].exitcode
                message = GenerateError(f"cannot continue: a process ended with exit code {code}")
            if isinstance(message, GenerateError):
                raise message
            yield pipe, message

    def _stop(self) -> None:
        for pipe in self._children:
            with contextlib.suppress(BrokenPipeError):  # it has ended, as it is asked to
                pipe.send("stop")

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """End in order at the first interrupt; the second one is a usual interrupt."""
        before: dict[int, Any] = {}

        def interrupted(number: int, _: object) -> None:
            signal.signal(number, before[number])
            self._stopping = True
            self._stop()

        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[wanted] = signal.signal(wanted, interrupted)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _words(themap: Map, source: Source, plan: LoadSpec) -> Words:
    words = words_of(themap, source, keys=plan.keys, skew=plan.skew, types=plan.types)
    if not words.types:
        raise GenerateError(
            f"cannot generate events for {source.name}: no layer reads it; got {themap.name}'s"
            f" layers; want one with source = {source.name!r}; give another --source or"
            " --map"
        )
    return words


async def _settle(
    plan: LoadSpec,
    themap: Map,
    source: Source,
    truths: dict[int, PartitionTruth],
    options: dict[str, Any],
) -> int:
    """Write the last heartbeat to every partition, and return its time."""
    newest = max(plan.start_ms, *(one.stream_time_ms for one in truths.values()))
    time_ms = settled_ms(themap, source.name, newest, margin_ms=0)
    async with BatchProducer(plan.brokers, source.topic, options=options) as feed:
        feed.heartbeat(time_ms)
    for one in truths.values():
        one.heartbeat(time_ms)
    return time_ms


async def _first(brokers: str, source: Source, options: dict[str, Any]) -> dict[int, int]:
    """Return the end of every partition before anything is written, if it may be written."""
    await check_rights(
        brokers, options, [Right("topic", source.topic, ("Read", "Write"))],
        cannot=f"cannot generate events into {source.topic}", role="producer", may_lack=True,
    )  # fmt: skip
    # Raises an error with the remedy if the topic is not there.
    async with BatchProducer(brokers, source.topic, options=options):
        return await _ends(brokers, source, options)


async def _ends(brokers: str, source: Source, options: dict[str, Any]) -> dict[int, int]:
    async with Scan(brokers, options, f"cannot read the ends of {source.topic}") as scan:
        ends = await scan.ends(partitions_of({source.topic: source.partitions}))
    return {number: end for (_, number), end in ends.items()}


async def _last_heartbeat_ms(
    brokers: str, topic: str, ends: Mapping[int, int], options: Mapping[str, Any]
) -> int | None:
    """Return the latest time of a heartbeat that is a partition's last record; None without one."""
    stops = {(topic, part): end for part, end in ends.items() if end}
    lasts = {partition: end - 1 for partition, end in stops.items()}
    times = []
    async with Scan(brokers, options, f"cannot read the last records of {topic}") as scan:
        async for _, (record,) in scan.read(lasts, stops):
            headers = dict(record.headers)
            if HEARTBEAT_HEADER in headers:
                times.append(decode_heartbeat(headers[HEARTBEAT_HEADER]))
    return max(times, default=None)
