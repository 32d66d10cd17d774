"""The archive inside the worker: one RocksDB in a folder of its own, for one process at a time.

Rows lie in sorted runs of columns (``tables.archive.embedded.runs``), so that one key's windows and
all keys of a range are both pieces of neighbours. Every write is synced before it is acknowledged.
RocksDB is only called from threads; writes and merges run one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import polars as pl
import rocksdict

from tables.archive.embedded import extent as archive_extent
from tables.archive.embedded.books import FORMAT, Books
from tables.archive.embedded.folder import open_folder, reopen_folder, rocks, synced
from tables.archive.embedded.runs import (
    PIECE_ROWS,
    RUNS_MAX,
    SETTLED_RUNS_MAX,
    WRITE_TIME,
    RunLayout,
    grown,
    worth_merging,
)
from tables.archive.identity import History, Whose, check_map, draw_id
from tables.archive.layout import check_key, not_expired, too_many_rows
from tables.archive.protocol import CellRange
from tables.model.clock import wall_clock_ms
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveDamagedError, ArchiveError
from tables.model.layer import Layer, Map
from tables.model.limits import INT64_MAX, INT64_MIN
from tables.threads import Threads

log = logging.getLogger(__name__)

READ_THREADS = 2
BUCKETS_KNOWN = 64
"""Buckets of a layer whose run sizes are cached, most recently written first.

Any other bucket is scanned once before it is merged."""

READ_ROWS = 1 << 16
"""Rows read before they are filtered."""

_RUNS_PER_OPEN = 1 << 32

T = TypeVar("T")


class EmbeddedArchive:
    """An archive in one folder, which is made if it is missing.

    Rows past their TTL, by ``clock_ms``, are not returned, and dropped by the bucket.
    """

    def __init__(self, folder: Path, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._folder = folder
        self._clock_ms = clock_ms
        self._running: _Running | None = None

    @property
    def is_open(self) -> bool:
        """Whether the folder is open."""
        return self._running is not None

    @property
    def id(self) -> str:
        """The archive's own id; empty while it is closed."""
        return self._running.whose.id if self._running is not None else ""

    async def open(self, themap: Map) -> None:
        """Open the folder and check that it is the map's, and so are the layers in it.

        Raises:
            ArchiveDamagedError: it is damaged.
            ArchiveError: another process has the folder, it is another map's or another program's,
                or a stored layer differs from the map's.
        """
        assert self._running is None, "the archive is open"
        running = _Running(await asyncio.to_thread(open_folder, self._folder))
        self._running = running
        try:
            await _run(running.writer, lambda: self._take(running, themap))
        except BaseException as error:
            await self.close()
            if isinstance(error, ArchiveDamagedError):
                raise ArchiveDamagedError(f"{error} (folder {self._folder})") from error
            raise

    async def check(self) -> None:
        """Return if it is open: it is in this process."""
        if self._running is None:
            raise ArchiveError("cannot reach the archive: it is closed")

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Store the rows whose write time is later than the stored one; see the protocol."""
        running = self._running_for(f"write layer {layer.name}")
        layout = running.layouts[layer.name]
        assert list(rows.schema.items()) == list(layout.schema.items()), "rows are an archive frame"
        assert len(write_times_us) == rows.height, "one write time a row"
        if rows.height:
            write = _Write(layout, rows.hstack([write_times_us.alias(WRITE_TIME)]))
            running.waiting.append(write)
            await _run(running.writer, lambda: self._write_waiting(running, write))

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Return the rows in range; see the protocol."""
        check_key(layer, cells)
        running = self._running_for(f"read layer {layer.name}")
        layout = running.layouts[layer.name]
        now_ms, spent, stop = self._clock_ms(), cost or QueryCost(), threading.Event()
        return await running.readers.run(
            lambda: _read(running.db, layout, cells, now_ms, spent, stop=stop), stop=stop
        )

    @property
    def place(self) -> str:
        """The folder, from the root."""
        return f"folder {self._folder.absolute()}"

    async def history(self, topic: str, partition: int) -> History | None:
        """Return the journal that the rows of a partition come from; see the protocol."""
        running = self._running_for(f"read the history of {topic}")
        return await _run(running.writer, lambda: Books(running.db).history(topic, partition))

    async def remember(self, topic: str, partition: int, history: History) -> History:
        """Return the journal that they come from, ``history`` from now on; see the protocol."""
        running = self._running_for(f"remember the history of {topic}")

        def take() -> History:
            books = Books(running.db)
            known = books.history(topic, partition)
            if known is None:
                books.put_history(topic, partition, history)
            return known or history

        return await _run(running.writer, take)

    async def close(self) -> None:
        """Finish running calls, then release the folder."""
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(running.close)

    def _running_for(self, step: str) -> _Running:
        if self._running is None:
            raise ArchiveError(f"cannot {step}: the archive is closed; open it")
        return self._running

    def _take(self, running: _Running, themap: Map) -> None:
        """Make the folder the map's own, or refuse it before anything in it is changed."""
        books = Books(running.db)
        books.check()
        stored = books.whose()
        if stored is not None:
            check_map(str(self._folder), stored, themap.name)
        # New, or of a release that gave no ids: then it becomes that of the first map it meets.
        running.whose = stored or Whose(draw_id(), themap.name)
        books.seal()
        self._take_layers(running, themap)
        if stored is None:
            books.put_whose(running.whose)
        self._write_down(running)

    def _take_layers(self, running: _Running, themap: Map) -> None:
        books = Books(running.db)
        for layer in themap.layers:
            described = {"format": FORMAT} | RunLayout(layer).describe()
            stored = books.layer(layer.name)
            if stored is not None:
                described = grown(f"layer {layer.name} in {self._folder}", stored, described)
            layout = RunLayout(layer, described)
            # Before any row: blocks can only be merged by the description they are written under.
            books.put_layer(layer.name, described)
            running.layouts[layer.name] = layout
            self._drop_expired(running, layout)
        opened = books.opened() + 1
        books.put_opened(opened)
        running.next_run = opened * _RUNS_PER_OPEN

    def _write_waiting(self, running: _Running, write: _Write) -> None:
        """Write all that waits with one sync, ``write`` among it unless an earlier call has.

        A write that is neither made nor refused is still waiting: the outcome is only set once it
        is known, and whatever ends the common write is the outcome of each.
        """
        if write.outcome is None:
            taken = []
            while running.waiting:
                taken.append(running.waiting.popleft())
            try:
                self._write(running, taken)
            except BaseException as error:  # noqa: BLE001 - carried to all whose rows are not there
                for one in taken:
                    one.outcome = error
            else:
                for one in taken:
                    one.outcome = "made"
        if isinstance(write.outcome, BaseException):
            raise write.outcome
        assert write.outcome == "made", "a write that waits is taken by its own call at the latest"

    def _write(self, running: _Running, writes: list[_Write]) -> None:
        if running.failed:
            running.db = reopen_folder(running.db, self._folder)
            # A write that broke off half-way may have left runs that are not known.
            running.runs.clear()
        running.failed = True
        by_layer: dict[str, list[_Write]] = {}
        for write in writes:
            by_layer.setdefault(write.layout.layer.name, []).append(write)
        added: list[tuple[RunLayout, int, int, int]] = []
        batch = rocksdict.WriteBatch(raw_mode=True)
        for some in by_layer.values():
            layout = some[0].layout
            self._drop_expired(running, layout)
            rows = pl.concat([write.rows for write in some])
            if layout.layer.archive_ttl_ms:
                rows = rows.filter(not_expired(layout.layer, self._clock_ms()))
            for bucket, part in layout.by_bucket(rows):
                run, ordered = running.new_run(), layout.in_order(part)
                for key, block in layout.pieces(bucket, run, ordered):
                    batch.put(key, block)
                added.append((layout, bucket, run, ordered.height))
        with rocks("write rows"):
            runs = [running.runs_of(layout, bucket) for layout, bucket, _, _ in added]
            if not batch.is_empty():
                running.db.write(batch, synced())
            for known, (_, _, run, rows_of_it) in zip(runs, added, strict=True):
                known[run] = rows_of_it
            for some in by_layer.values():
                self._merge(running, some[0].layout)
        self._write_down(running)
        running.failed = False

    def _write_down(self, running: _Running) -> None:
        """Keep the archive's extent, so that a copy that ends before it is recognised."""
        try:
            with rocks("write down its extent"):
                extent = archive_extent.reached(self._folder, running.db)
            archive_extent.write_down(self._folder, extent, running.whose.map)
        except OSError as error:
            raise ArchiveError(
                f"cannot write to the archive's folder {self._folder}: {error}; check its disk"
            ) from error

    def _merge(self, running: _Running, layout: RunLayout) -> None:
        """Merge runs if a bucket has too many; forget buckets that were written long ago."""
        buckets = running.runs[layout.layer.name]
        newest = max(buckets, default=0)
        for bucket, runs in list(buckets.items()):
            runs_max = RUNS_MAX if bucket == newest else SETTLED_RUNS_MAX
            while chosen := worth_merging(runs, runs_max):
                run, batch = running.new_run(), rocksdict.WriteBatch(raw_mode=True)
                try:
                    with rocks(f"merge rows of layer {layout.layer.name}"):
                        rows = layout.merge(running.db, batch, bucket, chosen, run)
                except ArchiveDamagedError as error:
                    # Its rows are refused to readers; writes beside them are still accepted.
                    log.warning("runs stay as they are: %s", error)
                    rows = 0
                else:
                    running.db.write(batch, synced())
                for old in chosen:
                    del runs[old]
                if rows:
                    runs[run] = rows
        for bucket in list(itertools.islice(buckets, max(0, len(buckets) - BUCKETS_KNOWN))):
            del buckets[bucket]

    def _drop_expired(self, running: _Running, layout: RunLayout) -> None:
        """Delete the buckets in which every row's window end + TTL has passed."""
        layer = layout.layer
        if layer.archive_ttl_ms == 0:
            return
        last_end_ms = self._clock_ms() - layer.archive_ttl_ms
        below = (last_end_ms - layer.window.longest_ms) // layout.bucket_ms
        if below > running.dropped_below.get(layer.name, INT64_MIN):
            with rocks(f"drop expired rows of layer {layer.name}"):
                running.db.delete_range(layout.prefix, layout.head(below), synced())
            for bucket in [b for b in running.runs[layer.name] if b < below]:
                del running.runs[layer.name][bucket]
            running.dropped_below[layer.name] = below


@dataclasses.dataclass(slots=True)
class _Write:
    """Rows of one layer that wait to be written, and the outcome: None while they wait."""

    layout: RunLayout
    rows: pl.DataFrame
    outcome: Literal["made"] | BaseException | None = None


class _Running:
    """The parts of an open archive: the database, its threads, and the shapes of its layers.

    ``waiting`` has the rows of the next write: syncing the disk costs more than writing, so all
    that comes meanwhile is written at once. ``runs`` has, by layer and bucket, the rows of each
    run, for buckets that are being written.
    """

    def __init__(self, db: rocksdict.Rdict) -> None:
        self.db = db
        self.writer = ThreadPoolExecutor(1, "archive-write")
        self.readers = Threads(READ_THREADS, "archive-read")
        self.waiting: deque[_Write] = deque()
        self.layouts: dict[str, RunLayout] = {}
        self.runs: defaultdict[str, dict[int, dict[int, int]]] = defaultdict(dict)
        self.whose = Whose("", "")
        self.next_run = 0
        self.dropped_below: dict[str, int] = {}
        self.failed = False

    def new_run(self) -> int:
        """Return a number greater than that of all runs so far."""
        self.next_run += 1
        return self.next_run

    def runs_of(self, layout: RunLayout, bucket: int) -> dict[int, int]:
        """Return the runs of a bucket with their rows, to be kept up to date.

        Those of a damaged bucket are left out: writes beside them are still accepted.
        """
        known = self.runs[layout.layer.name]
        runs = known.pop(bucket, None)
        if runs is None:
            try:
                with rocks(f"list rows of layer {layout.layer.name}"):
                    runs = layout.runs_of(self.db, bucket)
            except ArchiveDamagedError as error:
                log.warning("runs stay as they are: %s", error)
                runs = {}
        known[bucket] = runs
        return runs

    def close(self) -> None:
        self.readers.finish()
        self.writer.shutdown()
        with rocks("close archive"):
            self.db.close()


def _read(
    db: rocksdict.Rdict, layout: RunLayout, cells: CellRange, now_ms: int, cost: QueryCost,
    *, stop: threading.Event,
) -> pl.DataFrame:  # fmt: skip
    """Return the rows in range; some of them once ``stop`` is set: nobody waits for them then."""
    layer = layout.layer
    from_ms = max(cells.from_ms, INT64_MIN)
    if layer.archive_ttl_ms:
        from_ms = max(from_ms, now_ms - layer.archive_ttl_ms - layer.window.longest_ms)
    to_ms = min(cells.to_ms, INT64_MAX)
    within = dataclasses.replace(cells, from_ms=from_ms, to_ms=to_ms)
    found = layout.rows_of(())
    if from_ms < to_ms:
        # Closed here, whatever happens: an error's traceback would keep the iterator alive.
        scan = contextlib.closing(layout.scan(db, within, from_ms, to_ms))
        with rocks(f"read layer {layer.name}"), scan as pieces:
            runs: set[tuple[int, int]] = set()
            several = False
            while not stop.is_set() and (
                some := list(itertools.islice(pieces, READ_ROWS // PIECE_ROWS))
            ):
                runs |= {(bucket, run) for bucket, run, _ in some}
                cost.archive_partitions += len(some)
                more = layout.rows_of(block for _, _, block in some)
                found = pl.concat([found, more.filter(*layout.matching(within))])
                # Rows of one run differ; those of several may replace each other.
                several = len(runs) > len({bucket for bucket, _ in runs})
                if several and found.height > cells.rows_max:
                    found = layout.in_order(found)
                if found.height > cells.rows_max:
                    raise too_many_rows(layer, cells)
            if several:
                found = layout.in_order(found)
    return found.select(list(layout.schema)).filter(not_expired(layer, now_ms))


async def _run(pool: ThreadPoolExecutor, step: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, step)
