"""Verify: a running system compared with a recomputation from its raw topics.

source topics -> records -> partitions -> rows  =?  HTTP, archive
                                |`-> ledger     =?  HTTP
                                `--> letters    =?  side topics

This is the oracle of exactness, so it computes with code of its own: of the worker it knows the
map's types and the documented formats, and imports nothing of agents/ or tables/ beside. Slow and
plain is what it should be; its memory is that of the rows.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from app.mapfile import load_map
from app.settings import Settings
from app.verify.archive import open_archive
from app.verify.arrow import ArrowRows
from app.verify.compare import Found, compare_answers, compare_archive, compare_ledgers
from app.verify.letters import Letters
from app.verify.partition import Partition
from app.verify.records import Record, RecordReader
from app.verify.report import Difference, LayerReport, Report
from app.verify.rows import Rows, rows_of
from app.verify.topics import Topics, VerifyError
from app.verify.workers import Quiet, Workers
from tables.layer import Map

__all__ = ["Difference", "LayerReport", "Report", "VerifyError", "verify"]

QUIET_SECONDS = 3.0
"""Between two looks that must agree. Open cells and announcements travel at most once a second."""

LOOKS = 3
"""A difference counts when it was seen so often, each time at quiescence."""

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
    """Wait until nothing moves, recompute everything, and return what differs.

    Args:
        settings: map, brokers and archive, as the workers have them.
        urls: the endpoints of all workers; none is the one of ``settings``.
        deadline_s: how long to wait for quiescence.
        rows: how many differences the report holds.
        ca_file: PEM file of the authority of the endpoints' certificates.
        archive: whether to read the archive too.

    Raises:
        VerifyError: it cannot be verified.
        TreasureMapError: the map or the settings cannot be used.
    """
    themap = load_map(settings.map_file)
    async with (
        Topics(settings) as topics,
        Workers(
            themap, urls or [_own_url(settings)], settings.web_token, ca_file,
            early=settings.early_emit_ms > 0, page_cells=settings.query_limit_max,
        ) as workers,
    ):  # fmt: skip
        verification = _Verification(
            settings=settings, themap=themap, topics=topics, workers=workers,
            deadline_s=deadline_s, kept_max=rows, archive=archive,
        )  # fmt: skip
        return await verification.run()


class _Verification:
    """One verification: reads topics on where it was, and compares until it is sure."""

    def __init__(
        self,
        *,
        settings: Settings,
        themap: Map,
        topics: Topics,
        workers: Workers,
        deadline_s: float,
        kept_max: int,
        archive: bool,
    ) -> None:
        self._settings = settings
        self._map = themap
        self._topics = topics
        self._workers = workers
        self._deadline = asyncio.get_running_loop().time() + deadline_s
        self._deadline_s = deadline_s
        self._kept_max = kept_max
        self._with_archive = archive
        self._letters = Letters()
        self._side_at: dict[tuple[str, int], int] = {}
        self._sources = {source.topic: source for source in themap.sources}
        self._partitions: dict[str, list[Partition]] = {}
        self._notes: list[str] = []

    async def run(self) -> Report:
        await self._workers.check_map()
        await self._begin()
        for look in range(1, LOOKS + 1):
            report = await self._compare_quiet()
            if report.equal or look == LOOKS:
                return report
            await asyncio.sleep(QUIET_SECONDS)
        raise AssertionError("the last look returns")

    async def _begin(self) -> None:
        """Take the logs' first offsets; a log that has lost its beginning cannot be recomputed."""
        inputs = {source.topic: source.partitions for source in self._map.sources}
        starts = await self._topics.starts(inputs)
        for source in self._map.sources:
            reader = RecordReader(source, ArrowRows(source))
            layers = self._map.base_layers(source.name)
            self._partitions[source.name] = [
                Partition(source, layers, n, self._letters.of(source.topic, n), reader)
                for n in range(source.partitions)
            ]
            for partition in self._partitions[source.name]:
                partition.start(starts[source.topic, partition.number])
        self._side_at = await self._topics.starts(self._side_topics())

    async def _compare_quiet(self) -> Report:
        """Compare while nothing moves: once more where something has moved meanwhile."""
        while True:
            quiet = await self._wait_until_quiet()
            await self._read(quiet)
            found = Found(self._kept_max)
            await self._check_begin(found)
            layers = await self._compare(found)
            after = await self._look()
            if after.positions == quiet.positions:
                return self._report(layers, found)

    async def _wait_until_quiet(self) -> Quiet:
        """Return when two looks in a row see that everything is done, and the same of it.

        Raises:
            VerifyError: not before the deadline.
        """
        before = Quiet({}, "not looked at yet")
        while True:
            quiet = await self._look()
            if not quiet.busy and quiet == before:
                return quiet
            if asyncio.get_running_loop().time() > self._deadline:
                raise VerifyError(
                    f"cannot verify: not quiet after {self._deadline_s:g} s; got"
                    f" {quiet.busy or 'positions that still move'}; want workers that have done"
                    " everything; stop producers, or raise --deadline"
                )
            before = quiet
            await asyncio.sleep(QUIET_SECONDS)

    async def _look(self) -> Quiet:
        return await self._workers.quiet(await self._topics.ends(self._map.inputs()))

    async def _read(self, quiet: Quiet) -> None:
        """Read side topics, then sources, on to where the workers are."""

        def take_letter(_topic: str, _partition: int, record: Record) -> None:
            self._letters.take(record)

        def take(topic: str, partition: int, record: Record) -> None:
            self._partitions[self._sources[topic].name][partition].take(record)

        ends = await self._topics.ends(self._side_topics())
        await self._topics.read(self._side_at, ends, take_letter)
        self._side_at = ends
        every = [
            (source.topic, partition)
            for source in self._map.sources
            for partition in self._partitions[source.name]
        ]
        starts = {(topic, one.number): one.position for topic, one in every}
        stops = {place: quiet.positions[place] for place in starts}
        await self._topics.read(starts, stops, take)
        for topic, one in every:
            one.skip_to(stops[topic, one.number])
            await asyncio.to_thread(one.try_suspects)

    async def _check_begin(self, found: Found) -> None:
        """Compare ledgers, and refuse logs whose beginning the workers have seen and is gone."""
        ledgers = await self._workers.ledgers()
        for url, ledger in ledgers.items():
            for topic, source in self._sources.items():
                for number, row in ledger["records"].get(topic, {}).items():
                    base = row["position"] - row["read"]
                    first = self._partitions[source.name][int(number)].first
                    if base != first:
                        raise VerifyError(
                            f"cannot verify {topic}[{number}]: {url} has read it from offset"
                            f" {base}; got a log that begins at {first}; want all that was read:"
                            " keep raw topics as long as their rows are to be verified"
                        )
        compare_ledgers(self._map, self._partitions, ledgers, found)
        for source in self._map.sources:
            for partition in self._partitions[source.name]:
                for difference in partition.differences:
                    found.take(difference)
                for offset in self._letters.left(
                    source.topic, partition.number, partition.position
                ):
                    where = f"letter of {source.topic}[{partition.number}] offset {offset}"
                    found.add("letters", where, None, "a letter of a record that is not there")

    async def _compare(self, found: Found) -> list[LayerReport]:
        """Compare the rows of every layer."""
        rows = rows_of(self._map, self._partitions, early=self._settings.early_emit_ms > 0)
        now_ms = time.time_ns() // 1_000_000
        reports = {}
        for layer in self._map.layers:
            answers = await self._workers.rows(
                layer, rows[layer.name], everywhere=self._settings.archive == "embedded"
            )
            reports[layer.name] = compare_answers(layer, rows[layer.name], answers, found, now_ms)
        if self._with_archive:
            await asyncio.to_thread(self._compare_archive, rows, found, reports, now_ms)
        return list(reports.values())

    def _compare_archive(
        self, rows: dict[str, Rows], found: Found, reports: dict[str, LayerReport], now_ms: int
    ) -> None:
        with open_archive(self._settings) as archive:
            for layer in self._map.layers:
                archived = archive.read(self._map, layer)
                report = reports[layer.name]
                report.archived = len(archived)
                report.differing += compare_archive(
                    layer, rows[layer.name], archived, found, now_ms,
                    early=self._settings.early_emit_ms > 0,
                )  # fmt: skip

    def _report(self, layers: list[LayerReport], found: Found) -> Report:
        ledger: Counter[str] = Counter()
        partitions = {}
        offsets = 0
        for source in self._map.sources:
            for one in self._partitions[source.name]:
                ledger.update(one.ledger)
                counts = {name: count for name, count in sorted(one.ledger.items()) if count}
                partitions[f"{source.topic}[{one.number}]"] = counts
                offsets += one.position - one.first
        notes = list(self._notes)
        if not self._with_archive:
            notes.append("the archive was not read")
        if self._letters.unreadable:
            notes.append(f"{self._letters.unreadable} records of side topics are no letters")
        ttl = [layer.name for layer in self._map.layers if layer.archive_ttl_ms]
        if ttl:
            notes.append(f"rows past their TTL may be missing in {', '.join(ttl)}")
        if ledger["unreadable.too_many_cells"]:
            notes.append("records of too many cells were taken from their letters")
        return Report(
            layers=layers,
            ledger={name: count for name, count in sorted(ledger.items()) if count},
            partitions=partitions,
            offsets=offsets,
            differing=found.count,
            differences=found.kept,
            notes=notes,
        )

    def _side_topics(self) -> dict[str, int]:
        return {
            self._map.side_topic("dead"): self._map.side_partitions,
            self._map.side_topic("late"): self._map.side_partitions,
        }


def _own_url(settings: Settings) -> str:
    scheme = "https" if settings.web_cert_file else "http"
    return f"{scheme}://{settings.web_host}:{settings.web_port}"
