"""The archive inside the worker: one RocksDB in a folder of its own, for one process at a time.

Row keys sort by layer, bucket, key, window and source partition, so that one key's windows and all
keys of a range are both runs of neighbours. Every write is synced before it is acknowledged.
RocksDB is only called from threads; writes run one after the other, because each reads what it may
replace.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import orjson
import polars as pl
import rocksdict

from tables.archive import CellRange
from tables.archive_layout import (
    check_key,
    not_expired,
    too_many_rows,
    window_ms_max,
)
from tables.archive_rows import TAIL_BYTES, RowCodec, grown, ordered, write_time_us
from tables.errors import ArchiveError
from tables.keyhash import key_bytes
from tables.layer import Layer, Map

log = logging.getLogger(__name__)

FORMAT = "1"
BLOCK_CACHE_BYTES = 16 << 20
WRITE_BUFFER_BYTES = 16 << 20
OPEN_FILES_MAX = 256
BATCH_ROWS = 10_000
READ_THREADS = 2

# No layer's rows start with a zero byte: names of layers are not empty.
_META = b"\x00layer\x00"
_WRITE_TIME = "write_time"
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1

T = TypeVar("T")


class EmbeddedArchive:
    """An archive in one folder. Rows past their TTL are not returned, and dropped by the bucket.

    Args:
        folder: made where it is missing; not the folder of layer state, which may be wiped.
        clock_ms: the wall clock that TTLs are measured against.
    """

    def __init__(self, folder: Path, clock_ms: Callable[[], int] | None = None) -> None:
        self._folder = folder
        self._clock_ms = clock_ms or _wall_clock_ms
        self._running: _Running | None = None

    async def open(self, themap: Map) -> None:
        """Open the folder and check that the layers in it are the map's.

        Raises:
            ArchiveError: another process has the folder, or a stored layer differs from the map's.
        """
        assert self._running is None, "the archive is open"
        running = _Running(await asyncio.to_thread(_open, self._folder))
        self._running = running
        try:
            await _run(running.writer, lambda: self._take_layers(running, themap))
        except BaseException:
            await self.close()
            raise

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Store the rows whose write time is later than the stored one; see the protocol.

        Raises:
            ArchiveError: RocksDB did not take them, or the archive is closed.
        """
        running, codec = self._opened("write", layer)
        assert list(rows.schema.items()) == list(codec.schema.items()), "rows are an archive frame"
        assert len(write_times_us) == rows.height, "one write time a row"
        if rows.height:
            write = _Write(codec, rows.with_columns(write_times_us.alias(_WRITE_TIME)))
            running.waiting.append(write)
            await _run(running.writer, lambda: self._write_waiting(running, write))

    async def read(self, layer: Layer, cells: CellRange) -> pl.DataFrame:
        """Return the rows in range; see the protocol.

        Raises:
            ArchiveError: RocksDB cannot read, or the archive is closed.
            QueryError: more than ``cells.rows_max`` rows, or a field the key does not have.
        """
        check_key(layer, cells)
        running, codec = self._opened("read", layer)
        now_ms = self._clock_ms()
        return await _run(running.readers, lambda: _read(running.db, codec, cells, now_ms))

    async def close(self) -> None:
        """Finish what runs, then release the folder."""
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(running.close)

    def _opened(self, verb: str, layer: Layer) -> tuple[_Running, RowCodec]:
        if self._running is None:
            raise ArchiveError(f"cannot {verb} layer {layer.name}: the archive is closed; open it")
        return self._running, self._running.codecs[layer.name]

    def _take_layers(self, running: _Running, themap: Map) -> None:
        db = running.db
        for layer in themap.layers:
            place = _META + layer.name.encode()
            described = {"format": FORMAT} | RowCodec(layer).describe()
            with _rocks("open archive"):
                stored = db.get(place)
            if stored is not None:
                what = f"layer {layer.name} in {self._folder}"
                described = grown(what, orjson.loads(stored), described)
            codec = RowCodec(layer, described)
            # Before any row: values can only be read by the description they were written under.
            if stored is None or described != orjson.loads(stored):
                with _rocks("open archive"):
                    db.put(place, orjson.dumps(described), _synced())
            running.codecs[layer.name] = codec
            self._drop_expired(running, codec)

    def _write_waiting(self, running: _Running, write: _Write) -> None:
        """Write all that waits with one sync, ``write`` among it unless an earlier call has."""
        if not write.done:
            taken = []
            while running.waiting:
                taken.append(running.waiting.popleft())
            for one in taken:
                one.done = True
            try:
                self._write(running, taken)
            except ArchiveError as error:
                for one in taken:
                    one.error = error
        if write.error is not None:
            raise write.error

    def _write(self, running: _Running, writes: list[_Write]) -> None:
        if running.failed:
            running.db = _reopen(running.db, self._folder)
        running.failed = True
        by_layer: dict[str, list[_Write]] = {}
        for write in writes:
            by_layer.setdefault(write.codec.layer.name, []).append(write)
        row_keys: list[bytes] = []
        values: list[bytes] = []
        for some in by_layer.values():
            codec = some[0].codec
            self._drop_expired(running, codec)
            rows = pl.concat([write.rows for write in some])
            # In order of write time, so that of two writes of one row the larger stays.
            rows = rows.sort(_WRITE_TIME).filter(not_expired(codec.layer, self._clock_ms()))
            more_keys, more_values = codec.encode(rows.drop(_WRITE_TIME), rows[_WRITE_TIME])
            row_keys += more_keys
            values += more_values
        for first in range(0, len(row_keys), BATCH_ROWS):
            last = first + BATCH_ROWS
            with _rocks("write rows"):
                _write_batch(running.db, row_keys[first:last], values[first:last])
        running.failed = False

    def _drop_expired(self, running: _Running, codec: RowCodec) -> None:
        """Delete the buckets in which every row's window end + TTL has passed."""
        layer = codec.layer
        if layer.archive_ttl_ms == 0:
            return
        last_end_ms = self._clock_ms() - layer.archive_ttl_ms
        below = (last_end_ms - window_ms_max(layer)) // codec.bucket_ms
        if below > running.dropped_below.get(layer.name, _INT64_MIN):
            with _rocks(f"drop expired rows of layer {layer.name}"):
                running.db.delete_range(codec.prefix, codec.head(below), _synced())
            running.dropped_below[layer.name] = below


@dataclasses.dataclass(slots=True)
class _Write:
    """Rows of one layer that wait to be written, and what came of it."""

    codec: RowCodec
    rows: pl.DataFrame
    done: bool = False
    error: ArchiveError | None = None


class _Running:
    """What an open archive holds: the database, its threads, and what is known of its layers.

    ``waiting`` is what the next write takes: syncing the disk costs more than writing, so all that
    comes meanwhile is written at once.
    """

    def __init__(self, db: rocksdict.Rdict) -> None:
        self.db = db
        self.writer = ThreadPoolExecutor(1, "archive-write")
        self.readers = ThreadPoolExecutor(READ_THREADS, "archive-read")
        self.waiting: deque[_Write] = deque()
        self.codecs: dict[str, RowCodec] = {}
        self.dropped_below: dict[str, int] = {}
        self.failed = False

    def close(self) -> None:
        self.readers.shutdown()
        self.writer.shutdown()
        with _rocks("close archive"):
            self.db.close()


def _open(folder: Path) -> rocksdict.Rdict:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create_if_missing=True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_keep_log_file_num(2)
    tables = rocksdict.BlockBasedOptions()
    tables.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
    # Most rows written are new: the filter answers "not there" without reading a block.
    tables.set_bloom_filter(10, block_based=False)
    tables.set_cache_index_and_filter_blocks(True)
    options.set_block_based_table_factory(tables)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _rocks("open archive"):
            return rocksdict.Rdict(str(folder), options)
    except (ArchiveError, OSError) as error:
        locked = "lock" in str(error).lower()
        what = (
            "another worker has it open; stop that worker, or use Cassandra, which serves many"
            if locked
            else "check that the folder is this worker's to write"
        )
        raise ArchiveError(f"cannot open archive in {folder}: {error}; {what}") from error


def _reopen(db: rocksdict.Rdict, folder: Path) -> rocksdict.Rdict:
    """Open the database again: after one write that failed, a full disk, RocksDB takes no other."""
    try:
        with _rocks("close archive"):
            db.close()
    except ArchiveError as error:
        # It is closed nevertheless; nothing that was acknowledged is in doubt, all of it is synced.
        log.warning("an archive whose disk failed was closed with its error: %s", error)
    return _open(folder)


def _write_batch(db: rocksdict.Rdict, row_keys: list[bytes], values: list[bytes]) -> None:
    batch = rocksdict.WriteBatch(raw_mode=True)
    for row_key, value, stored in zip(row_keys, values, db.get(row_keys), strict=True):
        if stored is None or write_time_us(stored) < write_time_us(value):
            batch.put(row_key, value)
    if not batch.is_empty():
        db.write(batch, _synced())


def _read(db: rocksdict.Rdict, codec: RowCodec, cells: CellRange, now_ms: int) -> pl.DataFrame:
    layer = codec.layer
    from_ms = max(cells.from_ms, _INT64_MIN)
    if layer.archive_ttl_ms:
        from_ms = max(from_ms, now_ms - layer.archive_ttl_ms - window_ms_max(layer))
    to_ms = min(cells.to_ms, _INT64_MAX)
    row_keys: list[bytes] = []
    values: list[bytes] = []
    if from_ms < to_ms:
        # Closed here, whatever happens: an error's traceback would keep the iterator alive.
        scan = contextlib.closing(_scan(db, codec, cells, from_ms, to_ms))
        with _rocks(f"read layer {layer.name}"), scan as rows:
            for row_key, value in rows:
                row_keys.append(row_key)
                values.append(value)
                if len(values) > cells.rows_max:
                    raise too_many_rows(layer, cells)
    return codec.decode(row_keys, values).filter(not_expired(layer, now_ms))


def _scan(
    db: rocksdict.Rdict, codec: RowCodec, cells: CellRange, from_ms: int, to_ms: int
) -> Generator[tuple[bytes, bytes], None, None]:
    """Walk the rows of the range, and leap over what lies between.

    The key fields named from the first one on lead the row keys of a bucket, so rows before and
    after them are leapt over; fields named after a gap are compared.
    """
    names = [field.name for field in codec.layer.key]
    named = next((i for i, name in enumerate(names) if name not in cells.key), len(names))
    lead = key_bytes(cells.key[name] for name in names[:named])
    whole = named == len(names)
    low, high = ordered(from_ms), ordered(to_ms)
    start = low if whole else b""
    matches = _matcher(codec, cells)

    options = rocksdict.ReadOptions()
    options.set_iterate_upper_bound(codec.head((to_ms - 1) // codec.bucket_ms + 1))
    rows = db.iter(options)
    try:
        head = codec.head(from_ms // codec.bucket_ms) + lead
        rows.seek(head + start)
        while rows.valid():
            row_key: bytes = rows.key()
            if not row_key.startswith(head):
                bucket = codec.bucket_of(row_key)
                head = codec.head(bucket) + lead
                if not row_key.startswith(head):
                    if row_key > head:
                        head = codec.head(bucket + 1) + lead
                    rows.seek(head + start)
                    continue
            window = row_key[-TAIL_BYTES:-4]
            if low <= window < high:
                if whole or matches(codec.key_part(row_key)):
                    yield row_key, rows.value()
            elif whole and window >= high:
                break
            rows.next()
        rows.status()
    finally:
        # A live iterator would keep the folder locked after the database is closed.
        del rows


def _matcher(codec: RowCodec, cells: CellRange) -> Callable[[bytes], bool]:
    wanted = [
        (i, cells.key[field.name])
        for i, field in enumerate(codec.layer.key)
        if field.name in cells.key
    ]
    known: dict[bytes, bool] = {}

    def matches(part: bytes) -> bool:
        answer = known.get(part)
        if answer is None:
            key = codec.key_values(part)
            answer = known[part] = all(key[i] == value for i, value in wanted)
        return answer

    return matches


async def _run(pool: ThreadPoolExecutor, step: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, step)


@contextlib.contextmanager
def _rocks(what: str) -> Iterator[None]:
    """Turn RocksDB's errors, which are bare exceptions, into the archive's."""
    try:
        yield
    except Exception as error:
        if type(error) not in (Exception, rocksdict.DbClosedError):
            raise
        raise ArchiveError(
            f"cannot {what}: RocksDB says {error}; check the archive's folder and disk"
        ) from error


def _synced() -> rocksdict.WriteOptions:
    options = rocksdict.WriteOptions()
    options.sync = True
    return options


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000
