"""One run of the simulation: workers, whoever kills them, and the calm after.

workload -> source logs -> workers (real owners, agents, codecs, stores) -> layer topics, archive
^ chaos: kills, stops, takeovers, lost and old stores, upgrades, sinks that are away
calm: everything is healed, one new worker drains to quiescence -> oracle
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl

import agents.fold.small
import agents.partition.owner
import agents.partition.owners
import agents.partition.partition_io
import agents.partition.recovery
import agents.partition.writers
import tables.state.layer_table
import tables.state.snapshot
from tables.model.errors import JournalRefusedError, OutcomeUnknownError
from tables.model.layer import Map
from tests.simulation.faults import Faults
from tests.simulation.log import SimulatedLog
from tests.simulation.loop import SimulatedLoop
from tests.simulation.revisions import RAW
from tests.simulation.sink import SimulatedArchive
from tests.simulation.stores import Contents, Stores
from tests.simulation.worker import Key, Surroundings, Worker
from tests.simulation.workload import Workload, encode_record, make_workload, write_records

HOSTS = [Path(f"host{number}") for number in range(3)]
"""State folders, of which at most one living process uses each."""

STEPS = (20, 70)
"""Least and greatest number of steps of a run, before it is healed."""

STEP_S_MEAN = 0.6

AWAY_S_MEAN = 8.0
"""How long a sink is away."""

QUIET_S = 15.0
"""Without a request for so long, more than the longest wait before a retry, nothing will come."""

CALM_S_MAX = 900.0


@dataclasses.dataclass
class Statistics:
    """Counts of the events of a run."""

    workers: int = 0
    kills: int = 0
    stops: int = 0
    takeovers: int = 0
    old_stores: int = 0
    lost_stores: int = 0
    claims: int = 0


class World:
    """All that one seed decides."""

    def __init__(self, seed: int, stores: Stores, *, impure: bool, tail_loss: bool = False) -> None:
        rng = self.rng = random.Random(f"{seed} {impure}")
        self.loop = SimulatedLoop(rng, rng.choice((0.5, 0.5, 0.1)))
        self.faults = Faults(self.loop, rng, rng.choice((0.5, 1, 3)))
        self.log = SimulatedLog(self.faults)
        self.archive = SimulatedArchive(self.faults)
        self.work: Workload = make_workload(rng, impure=impure)
        self.stores = stores
        self.failures: list[str] = []
        self.workers: list[Worker] = []
        self.statistics = Statistics()
        self.revision = 0
        self._tail_loss = tail_loss
        self._copies: list[tuple[str, Contents]] = []
        numbers = range(len(self.work.records))
        # Some grow less than others, or not before all is healed.
        self._growing = rng.choices(numbers, k=rng.choice((1, 3, 9)))
        first = rng.choice((0, 0, 5))
        write_records(self.log, self.work, first)

    @property
    def map(self) -> Map:
        """The newest map in use."""
        return self.work.maps[self.revision]

    @property
    def keys(self) -> list[Key]:
        """Topic and partition of all inputs of the newest map."""
        inputs = self.map.inputs().items()
        return [(topic, number) for topic, count in inputs for number in range(count)]

    async def chaos(self) -> None:
        """Do to the workers all that the faults allow."""
        rng = self.rng
        self._start()
        for key in self.keys:
            self.workers[0].assign(key)
        for _ in range(rng.randint(*STEPS)):
            await self._sleep(rng.expovariate(1 / STEP_S_MEAN))
            act = rng.choices(
                (self._grow, self._start, self._take_over, self._kill, self._stop, self._go_on,
                 self._revoke, self._sink_away, self._lose_tail),
                (30, 10, 22, 10, 10, 10, 4, 8, 4 if self._tail_loss else 0),
            )  # fmt: skip
            act[0]()

    async def calm(self) -> Worker:
        """Heal everything, and let one new worker bring all to its end."""
        for worker in list(self.workers):
            worker.leave()
            # Some that were stopped wake up once more, as zombies.
            if worker.process.paused and len(self.workers) < len(HOSTS) and self.rng.random() < 0.5:
                self.loop.later(self.rng.uniform(0, QUIET_S), self._go_on)
                self.loop.later(QUIET_S, functools.partial(self._end, worker))
            else:
                self._end(worker)
        self._sinks_back()
        self.faults.heal()
        for (topic, _), partition in self.log.partitions.items():
            if topic == RAW:
                partition.hidden = 0
        self._start()
        worker = self.workers[-1]
        for key in self.keys:
            worker.assign(key)
        await self._quiet()
        self._close_all_windows()
        await self._quiet()
        return worker

    def _close_all_windows(self) -> None:
        """Write heartbeats that close every window, of which some are then sealed."""
        times = [
            t
            for records in self.work.records
            for record in records
            for t in ([record] if isinstance(record, int) else [t for _, t, *_ in record])
        ]
        newest = max(times, default=0)
        windows = [layer.window for layer in self.map.layers]
        rules = self.work.revisions[self.revision].rules.values()
        slack = max(rule.out_of_orderness_ms for rule in rules)
        end = max(window.end(window.start(newest)) for window in windows) + slack
        for number, records in enumerate(self.work.records):
            records.append(end)
            self.log.of(RAW, number).add(*encode_record(end))

    async def _quiet(self) -> None:
        deadline = self.loop.time() + CALM_S_MAX
        done = -1
        while done != self.faults.done or self.faults.under_way:
            done = self.faults.done
            await self._sleep(QUIET_S)
            if self.loop.time() > deadline:
                self.failures.append("livelock: it never comes to rest")
                return

    async def _sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.later(seconds, lambda: future.set_result(None))
        await future

    def _grow(self) -> None:
        partition = self.log.of(RAW, self.rng.choice(self._growing))
        partition.hidden = max(0, partition.hidden - self.rng.randint(1, 5))

    def _start(self) -> None:
        """Start a worker on a free host, of the newest map or the one before."""
        rng = self.rng
        used = {worker.folder for worker in self.workers}
        free = [host for host in HOSTS if host not in used]
        if not free:
            return
        folder = rng.choice(free)
        # A sink that is away has cells wait which the next revision must not forget.
        is_upgrade = not self.faults.calm and rng.random() < (0.8 if self._is_sink_away else 0.4)
        if is_upgrade:
            self._upgrade()
        back = 0 if self.faults.calm or not self.revision else rng.choice((0, 0, 1))
        themap = self.work.maps[self.revision - back]
        self._tamper(folder)
        self.statistics.workers += 1
        around = Surroundings(self.loop, self.faults, self.log, self.archive)
        early_emit_s = rng.choice((0, 0, 0.5, 3))
        self.workers.append(Worker(around, themap, folder, early_emit_s, self._stopped_itself))
        if is_upgrade:
            count = len(self.keys)
            for key in rng.sample(self.keys, rng.choice((count, count, rng.randrange(count)))):
                self.workers[-1].assign(key)

    def _upgrade(self) -> None:
        """Take a higher revision, perhaps not the next, perhaps while sinks are away."""
        before = self.revision
        self.revision = min(before + self.rng.choice((1, 1, 1, 1, 2)), len(self.work.maps) - 1)
        if self.revision > before:
            for _ in range(self.rng.choice((0, 1, 2))):
                self._sink_away()

    def _take_over(self) -> None:
        """Give a partition to another worker; the one that has it hears nothing of it."""
        if not self.workers:
            self._start()
        key = self.rng.choice(self.keys)
        self.statistics.takeovers += 1
        self.rng.choice(self.workers).assign(key)

    def _kill(self) -> None:
        if self.workers:
            self.statistics.kills += 1
            self._end(self.rng.choice(self.workers))

    def _stop(self) -> None:
        if self.workers:
            self.statistics.stops += 1
            self.rng.choice(self.workers).process.paused = True

    def _go_on(self) -> None:
        for worker in self.workers:
            worker.process.paused = False

    def _revoke(self) -> None:
        if self.workers:
            self.rng.choice(self.workers).revoke(self.rng.choice(self.keys))

    def _sink_away(self) -> None:
        """Take away the archive, all layer topics or all feeds, till some time later."""
        sink, name = self.rng.choice(
            (
                (self.archive, "away"),
                (self.log, "topics_away"),
                (self.log, "topics_away"),
                (self.log, "feeds_away"),
            )
        )
        setattr(sink, name, True)
        self.loop.later(self.rng.expovariate(1 / AWAY_S_MEAN), lambda: setattr(sink, name, False))

    @property
    def _is_sink_away(self) -> bool:
        return self.archive.away or self.log.topics_away or self.log.feeds_away

    def _sinks_back(self) -> None:
        self.archive.away = self.log.topics_away = self.log.feeds_away = False

    def _lose_tail(self) -> None:
        """Lose the acknowledged end of a journal, as an unclean election does."""
        topic, partition = self.rng.choice(self.keys)
        journal = self.log.of(self.map.journal_topic(topic), partition)
        kept = max(journal.start, len(journal.records) - self.rng.randint(1, 4))
        del journal.records[kept:]

    def _end(self, worker: Worker) -> None:
        """End a process; somebody may have copied its stores once it was dead."""
        worker.process.kill()
        self.workers = [other for other in self.workers if other is not worker]
        if self.rng.random() < 0.3:
            for place in self._places(worker.folder):
                if self.rng.random() < 0.3:
                    inside = place.relative_to(worker.folder)
                    self._copies.append((str(inside), self.stores.copy(place)))

    def _tamper(self, folder: Path) -> None:
        """Lose stores of a host, or put older copies in their place, of any host."""
        for place in self._places(folder):
            if self.rng.random() < 0.15:
                self.stores.lose(place)
                self.statistics.lost_stores += 1
        for inside, contents in self._copies:
            if self.rng.random() < 0.15:
                self.stores.put(folder / inside, contents)
                self.statistics.old_stores += 1

    def _places(self, host: Path) -> list[Path]:
        return [place for place in self.stores.places() if place.is_relative_to(host)]

    def _stopped_itself(self, worker: Worker, error: BaseException) -> None:
        """A worker stops with its reason, which must be one that a healthy one may have."""
        old = worker.map.revision < self.map.revision
        if isinstance(error, JournalRefusedError) and old and "map revision" in str(error):
            pass
        elif not isinstance(error, OutcomeUnknownError) or self.faults.calm:
            self.failures.append(f"a worker stopped: {error!r}")
        self.loop.later(0, lambda: self._end(worker) if worker in self.workers else None)


def _ordered(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of polars that keeps the order of rows, which it draws otherwise."""

    @functools.wraps(method)
    def ordered(*args: Any, **options: Any) -> Any:
        return method(*args, **options | {"maintain_order": True})

    return ordered


@contextlib.contextmanager
def prepared(rng: random.Random, stores: Stores) -> Iterator[None]:
    """Make the sizes small that decide when blocks are merged, state is copied, reads are cut.

    And take from polars the one chance that is not the seed's: the order of groups.
    """
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (agents.partition.owners, "PartitionStore", stores.open),
            (pl.DataFrame, "group_by", _ordered(pl.DataFrame.group_by)),
            (pl.DataFrame, "unique", _ordered(pl.DataFrame.unique)),
            (pl.Series, "unique", _ordered(pl.Series.unique)),
            (
                agents.partition.owner,
                "SNAPSHOT_TAIL_BYTES_MIN",
                rng.choice((1_000, 4_000, 1 << 20)),
            ),
            (agents.partition.partition_io, "READ_BYTES_MAX", rng.choice((2_000, 20_000))),
            (agents.partition.recovery, "LOOK_BACK_ENTRIES", rng.choice((2, 16))),
            (tables.state.snapshot, "PART_BYTES", rng.choice((1, 1 << 20))),
            (agents.partition.owner, "UNSAVED_DELTAS_MAX", rng.choice((1, 3, 16))),
            (agents.partition.writers, "THREAD_ROWS_MIN", rng.choice((1, 10_000))),
            (agents.fold.small, "SMALL_EVENTS_MAX", rng.choice((0, 4, 250))),
            (tables.state.layer_table, "AHEAD_ROWS_MIN", rng.choice((1, 20_000))),
            (tables.state.layer_table, "TAIL_BLOCKS_MAX", rng.choice((2, 4, 8))),
            (tables.state.layer_table, "TAIL_ROWS_MAX", rng.choice((0, 8, 256))),
            (tables.state.layer_table, "SMALL_TAIL_MAX", rng.choice((8, 64))),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
