"""One worker without transport, over a log in memory: tests of owners drive and kill it."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections import defaultdict
from pathlib import Path

import polars as pl

from agents.ingest import Ingest
from agents.partition.owners import PartitionManager
from agents.rollup import Rollup
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model import ledger
from tables.model.errors import FencedError, OutcomeUnknownError
from tables.model.layer import Layer, Map
from tables.query.family import KeyFilter
from tables.query.live import LiveRead
from tables.record.chunk import Chunk, Run
from tables.state.cell import archive_schema, latest, merge_partitions
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, StoredRecord, flight, run_of, small_map
from tests.support.waiting import beats, until

MAP = small_map()
RAW = "flights.raw"
Event = tuple[int, str, str, int | None]


class LocalWorker:
    """One worker without transport: restores partitions, feeds them chunks, can be killed."""

    def __init__(
        self,
        log: MemoryLog,
        archive: EmbeddedArchive,
        folder: Path,
        themap: Map = MAP,
        early_emit_s: float = 0.0,
    ) -> None:
        self.log, self.archive, self.folder, self.map = log, archive, folder, themap
        self.early_emit_s = early_emit_s
        self.failures: list[BaseException] = []
        self.fenced: list[tuple[str, int]] = []
        self.misplaced: list[tuple[str, int, int]] = []
        self.start()

    def start(self) -> None:
        """Begin a new worker process, as far as memory goes."""
        self.owners = PartitionManager(
            self.map,
            self.log,
            self.archive,
            self.folder,
            failed=self.failures.append,
            fenced=lambda topic, partition, _: self.fenced.append((topic, partition)),
            misplaced=lambda *place: self.misplaced.append(place),
            early_emit_s=self.early_emit_s,
        )
        self.ingest = Ingest(self.owners)
        self.rollup = Rollup(self.owners)

    async def restore(self) -> None:
        """Restore every partition, again if the outcome was unknown."""
        for topic, partitions in self.map.inputs().items():
            for partition in range(partitions):
                while self.owners.get(topic, partition) is None:
                    with contextlib.suppress(FencedError, OutcomeUnknownError):
                        await self.owners.restore(topic, partition, 1)

    async def kill(self) -> None:
        """Forget all memory; give only the stores' locks back."""
        for topic, partitions in self.map.inputs().items():
            await self.owners.release({(topic, p) for p in range(partitions)})
        self.start()

    async def step(self, topic: str, records_max: int) -> bool:
        """Hand one chunk of ``topic`` over, if there is one."""
        runs = []
        for partition in range(self.map.inputs()[topic]):
            owner = self.owners.get(topic, partition)
            if owner is None:
                continue
            at = owner.position
            found = self.log.records.get((topic, partition), [])[at : at + records_max]
            if found:
                runs.append(as_run(topic, partition, at, found))
        if runs:
            agent = self.ingest if topic == RAW else self.rollup
            await agent.handle(Chunk(1, runs))
        return bool(runs)

    async def work_and_die(
        self, records_max: dict[str, int], seed: int, *, keep_state: bool
    ) -> None:
        """Take up to so many records of each topic a few times and be killed, five times over."""
        rng = random.Random(seed)
        for _ in range(5):
            await self.restore()
            turns = rng.randint(1, 6)
            async for turn in beats(lambda: rng.choice([0, 0.01])):
                if turn == turns:
                    break
                for topic, most in records_max.items():
                    await self.step(topic, rng.randint(1, most))
            await self.kill()
            if not keep_state:
                shutil.rmtree(self.folder)

    async def settle(self) -> None:
        """Work until nothing is left to read or to acknowledge."""
        await until(self.quiet)
        assert not self.failures

    async def quiet(self) -> bool:
        """Return whether everything read is applied, acknowledged and announced to the end."""
        await self.restore()
        busy = [await self.step(topic, 1_000) for topic in self.map.inputs()]
        waiting = sum(
            owner.sinks.unacknowledged(layer)
            for owner in self.owners.each()
            for layer in owner.plan.layers
        )
        announced = all(
            owner.state.closed_ms(layer) > 9 * DAY_MS
            for owner in self.owners.each()
            for layer in owner.plan.layers
        )
        return not any(busy) and not waiting and announced


def live_cells(house: LocalWorker, layer: Layer, keys: KeyFilter | None = None) -> pl.DataFrame:
    """Return the archive frame of a layer's live cells, of all times."""
    found = house.owners.live_job(LiveRead(layer, -(2**60), 2**60, keys or KeyFilter())).make()
    return pl.concat([pl.DataFrame(schema=archive_schema(layer)), *found.rows])


def serving(house: LocalWorker, layer: Layer) -> set[int]:
    """Return the partitions of a layer's input that are restored and answer."""
    return set(house.owners.live_job(LiveRead(layer)).facts)


def as_run(topic: str, partition: int, at: int, records: list[StoredRecord]) -> Run:
    """Return a run of log records, with the headers of heartbeats."""
    run = run_of([record.value for record in records], partition, at, topic)
    run.headers = {i: record.headers for i, record in enumerate(records) if record.headers}
    return run


def fill(
    log: MemoryLog, seed: int, count: int = 600, *, partitions: int = 2, keyed: bool = True
) -> list[Event]:
    """Write events of four days to all partitions, then heartbeats that close everything.

    If they are not ``keyed`` by origin they are spread at random, each up to an hour late.
    """
    rng = random.Random(seed)
    events: list[Event] = []
    for i in range(count):
        at = i * 4 * DAY_MS // count
        origin = rng.choice(["JFK", "LGA"])
        events.append((at, origin, rng.choice(["UA", "AA"]), rng.choice([None, -3, 2**62])))
    written = (
        events if keyed else sorted(events, key=lambda event: event[0] + rng.random() * HOUR_MS)
    )
    for at, origin, carrier, delay in written:
        partition = int(origin == "JFK") if keyed else rng.randrange(partitions)
        log.put(RAW, partition, flight(at, origin, carrier, delay))
    for partition in range(partitions):
        log.put(RAW, partition, 10 * DAY_MS)
    return events


async def archived(house: LocalWorker, name: str) -> pl.DataFrame:
    """Return a layer's cells from the archive."""
    layer = house.map.layer(name)
    rows = await house.archive.read(layer, CellRange(-(2**60), 2**60))
    return merge_partitions(layer, latest(layer, rows))


def expected(events: list[Event]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return count and sum of delay by carrier and day, from the events alone."""
    days: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for at, _, carrier, delay in events:
        count, total = days[carrier, at // DAY_MS * DAY_MS]
        days[carrier, at // DAY_MS * DAY_MS] = (count + 1, total + (delay or 0))
    return dict(days)


async def check(house: LocalWorker, events: list[Event]) -> None:
    """The archive's days equal the plain recomputation and the ledgers balance."""
    rows = (await archived(house, "day")).to_dicts()
    got = {(r["key_carrier"], r["window_start"]): (r["events"], r["sum_delay"]) for r in rows}
    assert got == expected(events)
    hours = await archived(house, "hour")
    assert hours["events"].sum() == len(events)
    for owner in house.owners.each():
        meta = owner.state.meta
        names = [layer.name for layer in owner.plan.layers]
        assert ledger.imbalances(meta.ledger, meta.next_offset - meta.base, names) == []
