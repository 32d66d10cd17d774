"""Verify: a running system compared with a recomputation from its raw topics.

source topics -> batches -> events -> cells  =?  HTTP, archive
                               |`-> ledger   =?  HTTP
                               `--> letters  =?  side topics

This is the oracle of exactness, so it computes with means of its own: of the worker it knows the
map's types and the documented formats, and imports nothing else of agents/ or tables/. DuckDB
holds all rows, on disk, and computes and compares them in SQL, which the tests check against plain
rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from app.cluster.rights import rights_of
from app.cluster.rights_check import check_rights
from app.config.connections import kafka_options
from app.config.settings import Settings
from app.kafka.record_batches import NO_TIME_MS
from app.kafka.record_batches import Record as Unplain
from app.kafka.scan import Scan, partitions_of
from app.mapfile.load import load_map
from app.verify.answers import Answers
from app.verify.archive import load_archived, open_archive
from app.verify.compare import DifferenceLog, compare_answers, compare_archive, compare_ledgers
from app.verify.database import Database
from app.verify.errors import VerifyError
from app.verify.events import TRUSTED, Events, Partition
from app.verify.layers import Cells
from app.verify.letters import Letters
from app.verify.records import Record
from app.verify.registry import registry_of
from app.verify.report import Difference, LayerReport, Report
from app.verify.same import archived_table
from app.verify.whole import Whole
from app.verify.workers import Quiet, Workers
from tables.model.layer import Map, SideKind

__all__ = ["Difference", "LayerReport", "Report", "VerifyError", "verify"]

QUIET_SECONDS = 3.0
"""The pause between two observations that must agree: open cells and announcements travel at most
once a second."""

COMPARISONS = 3
"""Comparisons, each at quiescence, that must find a difference before it counts."""

ROWS = 20


async def verify(
    settings: Settings,
    *,
    urls: Sequence[str] = (),
    deadline_s: float = 60.0,
    rows: int = ROWS,
    ca_file: str | None = None,
    archive: bool = True,
) -> Report:
    """Wait until nothing moves, recompute everything, and return the differences.

    Args:
        settings: map, brokers and archive, as the workers have them.
        urls: the endpoints of all workers; none is the one of ``settings``.
        deadline_s: how long to wait for quiescence.
        rows: how many differences the report holds.
        ca_file: PEM file of the authority of the endpoints' certificates.
        archive: whether to read the archive too.

    Raises:
        VerifyError: it cannot be verified.
        ScanError: topics cannot be read.
        TreasureMapError: the map or the settings cannot be used.
    """
    themap = load_map(settings.map_file)
    options = kafka_options(settings)
    await check_rights(
        settings.brokers, options,
        rights_of(themap, "verify", settings.group_of(themap.name)),
        cannot="cannot verify", role="verify",
    )  # fmt: skip
    with Database() as database:
        async with (
            Scan(settings.brokers, options, "cannot read topics", committed=True) as topics,
            Workers(
                themap, urls or [settings.endpoint_url], settings.web_token, ca_file,
                early=settings.early_emit_ms > 0, page_cells=settings.query_limit_max,
            ) as workers,
        ):  # fmt: skip
            verification = _Verification(
                settings=settings, map=themap, topics=topics, workers=workers,
                database=database, deadline_s=deadline_s, kept_max=rows, archive=archive,
            )  # fmt: skip
            return await verification.run()


@dataclasses.dataclass(kw_only=True)
class _Verification:
    """One verification: reads topics from its last offsets on, and compares until it is sure."""

    settings: Settings
    map: Map
    topics: Scan
    workers: Workers
    database: Database
    deadline_s: float
    kept_max: int
    archive: bool

    def __post_init__(self) -> None:
        self._deadline = asyncio.get_running_loop().time() + self.deadline_s
        self._letters = Letters(self.database)
        self._side_at: dict[tuple[str, int], int] = {}
        schema_of = registry_of(self.settings)
        self._topic_events = {
            source.topic: Events(
                self.database, source, self.map.base_layers(source.name), self._letters, schema_of
            )
            for source in self.map.sources
        }
        self._events = {one.source.name: one for one in self._topic_events.values()}
        self._early = self.settings.early_emit_ms > 0
        self._cells = Cells(self.database, self.map, self._events, early=self._early)
        self._returned: set[str] = set()

    async def run(self) -> Report:
        await self.workers.check_map()
        await self._begin()
        for number in range(1, COMPARISONS + 1):
            report = await self._compare_quiet()
            if report.equal or number == COMPARISONS:
                return report
            await asyncio.sleep(QUIET_SECONDS)
        raise AssertionError("the last comparison returns")

    async def _begin(self) -> None:
        """Read the logs' first offsets; a log that has lost its beginning cannot be recomputed."""
        inputs = {source.topic: source.partitions for source in self.map.sources}
        starts = await self.topics.starts(inputs)
        for (topic, part), offset in starts.items():
            self._topic_events[topic].start(part, offset)
        kinds: tuple[SideKind, ...] = ("dead", "late")
        sides = {self.map.side_topic(kind): self.map.side_partitions for kind in kinds}
        self._side_at = await self.topics.starts(sides)

    async def _compare_quiet(self) -> Report:
        """Compare while nothing moves: once more if something has moved meanwhile."""
        while True:
            quiet = await self._wait_until_quiet()
            await self._read(quiet)
            found = DifferenceLog(self.kept_max)
            ledgers = await self._ledgers()
            layers = await self._compare(found, quiet.whole, ledgers)
            after = await self._observe()
            if after.positions == quiet.positions:
                return self._report(layers, found, quiet.whole)

    async def _wait_until_quiet(self) -> Quiet:
        """Return once two observations in a row agree and find nothing unfinished."""
        before = Quiet({}, "not observed yet")
        while True:
            quiet = await self._observe()
            if not quiet.busy and quiet == before:
                return quiet
            if asyncio.get_running_loop().time() > self._deadline:
                raise VerifyError(
                    f"cannot verify: not quiet after {self.deadline_s:g} s; got"
                    f" {quiet.busy or 'positions that still move'}; want workers that have done"
                    " everything; stop producers, or raise --deadline"
                )
            before = quiet
            await asyncio.sleep(QUIET_SECONDS)

    async def _observe(self) -> Quiet:
        ends = await self.topics.ends(partitions_of(self.map.inputs()))
        return await self.workers.quiet(ends)

    async def _read(self, quiet: Quiet) -> None:
        """Read side topics to their ends, then sources up to the positions of the workers."""
        for events in self._events.values():
            events.know(quiet.whole)
        ends = await self.topics.ends(self._side_at)
        async for _, records in self.topics.read(self._side_at, ends):
            self._letters.take(map(record_of, records))
        self._side_at = ends
        every = {
            (topic, one.number): one
            for topic, events in self._topic_events.items()
            for one in events.partitions
        }
        starts = {partition: one.position for partition, one in every.items()}
        stops = {partition: quiet.positions[partition] for partition in starts}
        async for (topic, part), records in self.topics.read(starts, stops):
            self._topic_events[topic].take(part, list(map(record_of, records)))
        for partition, one in every.items():
            one.skip_to(stops[partition])
        await asyncio.to_thread(self._recompute)

    def _recompute(self) -> None:
        """Make all tables from the records that were read."""
        self._letters.load()
        for events in self._events.values():
            events.load()
            events.try_suspects()
            events.settle()
        self._cells.make()

    async def _ledgers(self) -> dict[str, dict[str, Any]]:
        """Return all ledgers; refuse logs that have lost records which the workers have read."""
        ledgers = await self.workers.ledgers()
        for url, ledger in ledgers.items():
            for topic, events in self._topic_events.items():
                for number, row in ledger["records"].get(topic, {}).items():
                    check_log(topic, events.partitions[int(number)], row, url)
        return ledgers

    def _compare_letters(self, found: DifferenceLog) -> None:
        each = ((*one.differences, *one.letters_differing()) for one in self._events.values())
        for difference in itertools.chain(*each, self._cells.late_letters()):
            found.take(difference)

    async def _compare(
        self, found: DifferenceLog, whole: Whole, ledgers: dict[str, dict[str, Any]]
    ) -> list[LayerReport]:
        """Compare ledgers, letters, and the rows of every layer."""
        archived = {}
        bases = {layer.name for layer in self.map.layers if layer.source is not None}
        self._returned = bases & whole.cells.keys()
        if self.archive:
            archived = await asyncio.to_thread(self._load_archived, whole)
        partitions = {name: events.partitions for name, events in self._events.items()}
        compare_ledgers(self.map, partitions, ledgers, found, frozenset(self._returned))
        await asyncio.to_thread(self._compare_letters, found)
        await asyncio.to_thread(self._cells.leave_out, whole)
        now_ms = time.time_ns() // 1_000_000
        reports = {}
        for layer in self.map.layers:
            answers = Answers(self.database, layer, self.workers.urls, found)
            frames = self.workers.rows(
                layer, self._cells.starts(layer), since_ms=whole.cells.get(layer.name),
                everywhere=self.settings.archive == "embedded",
            )  # fmt: skip
            async with contextlib.aclosing(frames):
                async for number, frame in frames:
                    answers.load(number, frame)
            reports[layer.name] = await asyncio.to_thread(
                compare_answers, self.database, layer, self.workers.urls, found, now_ms, whole=whole
            )
        for layer in self.map.layers if self.archive else ():
            report = reports[layer.name]
            report.archived = archived[layer.name]
            report.differing += await asyncio.to_thread(
                compare_archive, self.database, layer, found, now_ms, early=self._early, whole=whole
            )
        return list(reports.values())

    def _load_archived(self, whole: Whole) -> dict[str, int]:
        """Load all archived rows into tables; return how many each layer has.

        If a layer has rows from before it is whole, the map had it before.
        """
        archived = {}
        with open_archive(self.settings) as archive:
            for layer in self.map.layers:
                frames = archive.frames(self.map, layer)
                archived[layer.name] = load_archived(self.database, layer, frames)
                if layer.name in whole.cells:
                    before = f"FROM {archived_table(layer)} WHERE start < {whole.cells[layer.name]}"
                    if not self.database.number(f"SELECT count(*) {before}"):
                        self._returned.discard(layer.name)
                    self.database.run(f"DELETE {before}")
        return archived

    def _report(self, layers: list[LayerReport], found: DifferenceLog, whole: Whole) -> Report:
        ledger: Counter[str] = Counter()
        partitions = {}
        offsets = 0
        for topic, events in self._topic_events.items():
            for one in events.partitions:
                ledger.update(one.ledger)
                counts = {name: count for name, count in sorted(one.ledger.items()) if count}
                partitions[f"{topic}[{one.number}]"] = counts
                offsets += one.position - one.first
        notes = whole.notes()
        if not self.archive:
            notes.append("the archive was not read")
        if self._returned and self.archive:
            which = ", ".join(sorted(self._returned))
            notes.append(f"{which} was in the map before: its counts of then are not separate")
        if self._letters.unreadable:
            notes.append(f"{self._letters.unreadable} records of side topics are not letters")
        ttl = [layer.name for layer in self.map.layers if layer.archive_ttl_ms]
        if ttl:
            notes.append(f"rows past their TTL may be missing in {', '.join(ttl)}")
        for reason in TRUSTED:
            if ledger[f"unreadable.{reason}"]:
                notes.append(f"records of reason {reason} are counted as their letters say")
        return Report(
            layers=layers,
            ledger={name: count for name, count in sorted(ledger.items()) if count},
            partitions=partitions,
            offsets=offsets,
            differing=found.count,
            differences=found.kept,
            notes=notes,
        )


def check_log(topic: str, partition: Partition, row: dict[str, Any], url: str) -> None:
    """Refuse a partition whose log has lost records that a worker has read.

    Raises:
        VerifyError: it begins later, or has more offsets without a record between.
    """
    log = f"{topic}[{partition.number}]"
    base = row["position"] - row["read"]
    if base != partition.first:
        raise VerifyError(
            f"cannot verify {log}: {url} has read it from offset {base}; got a log that begins at"
            f" {partition.first}; want all that was read: keep raw topics as long as their rows are"
            " to be verified"
        )
    gone = partition.read["records.gap"] - row["gap"]
    if gone > 0:
        start, stop = partition.gaps[0]
        raise VerifyError(
            f"cannot verify {log}: records that {url} has read are not in the log any more; got"
            f" {gone} more offsets without a record, the first of all at {start} to {stop - 1};"
            " want all that was read: keep raw topics without compaction (cleanup.policy=delete)"
        )


def record_of(one: Any) -> Record:
    """Return a record that a scan has read."""
    time_ms = NO_TIME_MS if one.timestamp is None else one.timestamp
    if not one.headers and type(one) is not Unplain:
        return Record(one.offset, time_ms, one.value)
    headers = tuple((name, data or b"") for name, data in one.headers)
    fault = one.fault if type(one) is Unplain else None
    cut = fault.size if fault is not None and fault.reason == "cut" else 0
    return Record(one.offset, time_ms, one.value, headers, cut)
