"""Runs: how the embedded archive lays out the rows of one layer.

One write into a bucket is a *run*: rows in order of key, window and source partition,
cut into *pieces*. A run never changes; if a bucket has many, some are merged into one that replaces
them. docs/formats/archive.md has the bytes, docs/decisions/0008-archive-runs.md the reasons.

    layer 00 | bucket | run | first key of the piece | number of the piece  ->  block of its rows
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Iterator, Mapping

import polars as pl
import rocksdict

from tables.archive.layout import bucket_ms, missing_accumulators
from tables.archive.protocol import CellRange
from tables.model.layer import Layer, Scalar
from tables.record.sealed import seal, unsealed
from tables.state.block import check_block, conform, decode_block, encode_block
from tables.state.cell import archive_schema, in_order

PIECE_ROWS = 1_024
"""Rows of a piece: a read of one key decodes one piece of every run, in some 0.1 ms."""

RUNS_MAX = 32
"""The largest number of runs of the newest bucket, where each closed window adds one."""

SETTLED_RUNS_MAX = 4
"""The largest number of runs of an older bucket, which late events alone still change."""

MERGE_ROWS_MAX = 1 << 18
"""The largest number of rows of a merged run: a merge holds them in memory, and other writes up."""

WRITE_TIME = "write_time"

SEALED = 3
"""The first byte of blocks since format 3. Those of format 2, without checksum, begin as Arrow."""

_ORDER = "column order"
_BIAS = 1 << 63  # makes signed numbers sort as unsigned bytes
_NUMBER = struct.Struct(">Q")
_PIECE = struct.Struct(">I")
_KINDS = pl.String(), pl.Boolean(), pl.Int32(), pl.Int64(), pl.Int128(), pl.Float64()
_TYPES: dict[str, pl.DataType] = {str(kind): kind for kind in _KINDS}


def grown(place: str, have: Mapping[str, str], want: Mapping[str, str]) -> dict[str, str]:
    """Return the stored description ``have`` with the accumulators it lacks added at the end.

    Both are like :meth:`RunLayout.describe`. Accumulators that are not wanted any more stay.

    Raises:
        ArchiveError: ``have`` is of another layer; names every difference.
    """
    added = missing_accumulators(place, {**have, _ORDER: ""}, {**want, _ORDER: ""})
    columns = {f"column {column}": want[f"column {column}"] for column in added}
    return {**have, **columns, _ORDER: ", ".join([have[_ORDER], *added])}


def is_description(found: Mapping[str, str]) -> bool:
    """Return whether it describes rows that can be stored: each column in the order has a type."""
    columns = found.get(_ORDER, "").split(", ")
    return all(found.get(f"column {column}") in _TYPES for column in columns)


class RunLayout:
    """The keys and bytes of the rows of one layer.

    ``described`` is their stored description, grown to hold the layer; None if it has no rows yet.
    """

    def __init__(self, layer: Layer, described: Mapping[str, str] | None = None) -> None:
        self.layer = layer
        self.schema = archive_schema(layer)
        self.bucket_ms = bucket_ms(layer)
        self.prefix = layer.name.encode() + b"\x00"
        described = described or self.describe()
        columns = described[_ORDER].split(", ")
        self._stored = {column: _TYPES[described[f"column {column}"]] for column in columns}
        self._stored[WRITE_TIME] = pl.Int64()
        self._identity = [*layer.key_columns, "window_start", "source_partition"]
        self._repeated = pl.all_horizontal(
            pl.col(name) == pl.col(name).shift(-1) for name in self._identity
        ).fill_null(value=False)

    def describe(self) -> dict[str, str]:
        """Return the shape that stored rows must have to be read: columns in order, key, window."""
        columns = {f"column {name}": str(kind) for name, kind in self.schema.items()}
        return columns | {
            _ORDER: ", ".join(self.schema),
            "key": ", ".join(self.layer.key_columns),
            "window": str(self.layer.window),
        }

    def head(self, bucket: int) -> bytes:
        """Return the beginning of every key in a bucket."""
        return self.prefix + _ordered(bucket)

    def run_head(self, bucket: int, run: int) -> bytes:
        """Return the beginning of every key of a run."""
        return self.head(bucket) + _NUMBER.pack(run)

    def bucket_and_run(self, key: bytes) -> tuple[int, int]:
        """Return the bucket and the run in a key of this layer."""
        bucket, run = struct.unpack_from(">QQ", key, len(self.prefix))
        return bucket - _BIAS, run

    def first_key(self, key: bytes) -> bytes:
        """Return the key of the piece's first row, as :func:`lead` writes it."""
        return key[len(self.prefix) + 2 * _NUMBER.size : -_PIECE.size]

    def by_bucket(self, rows: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the rows of each bucket."""
        buckets = rows["window_start"] // self.bucket_ms
        different = buckets.unique().to_list()
        for bucket in different:
            yield bucket, rows if len(different) == 1 else rows.filter(buckets == bucket)

    def in_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return rows as a run has them: in order, and of each the one of the largest write time.

        ``rows`` are an archive frame, or rows of runs, with the column ``write_time``.
        """
        rows = in_order(rows, [*self._identity, WRITE_TIME])
        repeated = rows.select(self._repeated.alias("")).to_series()
        return rows.filter(~repeated) if repeated.any() else rows

    def pieces(self, bucket: int, run: int, rows: pl.DataFrame) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and blocks of a run; ``rows`` are in order."""
        head = self.run_head(bucket, run)
        rows = conform(rows, self._stored)
        keys = [rows[name] for name in self.layer.key_columns]
        for number, first in enumerate(range(0, rows.height, PIECE_ROWS)):
            key = lead(column[first] for column in keys)
            block = encode_block(rows[first : first + PIECE_ROWS])
            yield head + key + _PIECE.pack(number), seal(SEALED, block)

    def rows_of(self, blocks: Iterable[bytes]) -> pl.DataFrame:
        """Return the stored rows of blocks, with all columns that were ever stored.

        Raises:
            DamagedError: one differs from the stored one.
        """
        frames = [decode_block(_opened(block), self._stored) for block in blocks]
        return pl.concat(frames) if frames else pl.DataFrame(schema=self._stored)

    def matching(self, cells: CellRange) -> list[pl.Expr]:
        """Return the conditions that rows in range meet."""
        start = pl.col("window_start")
        return [
            start >= cells.from_ms,
            start < cells.to_ms,
            *(pl.col(f"key_{name}") == value for name, value in cells.key.items()),
        ]

    def scan(
        self, db: rocksdict.Rdict, cells: CellRange, from_ms: int, to_ms: int
    ) -> Generator[tuple[int, int, bytes], None, None]:
        """Yield bucket, run and block of each piece that may hold rows of the range.

        The key fields named from the first one on lead the order of a run, so pieces before and
        after them are skipped.
        """
        names = [field.name for field in self.layer.key]
        named = next((i for i, name in enumerate(names) if name not in cells.key), len(names))
        wanted = lead(cells.key[name] for name in names[:named])
        options = rocksdict.ReadOptions()
        options.set_iterate_upper_bound(self.head((to_ms - 1) // self.bucket_ms + 1))
        cursor = db.iter(options)
        try:
            cursor.seek(self.head(from_ms // self.bucket_ms))
            while cursor.valid():
                bucket, run = self.bucket_and_run(cursor.key())
                head = self.run_head(bucket, run)
                if wanted:
                    # The piece before the first that begins with the key may end with it.
                    cursor.seek_for_prev(head + wanted)
                    if not cursor.valid() or not cursor.key().startswith(head):
                        cursor.seek(head)
                while cursor.valid() and (key := cursor.key()).startswith(head):
                    first = self.first_key(key)
                    if first > wanted and not first.startswith(wanted):
                        break
                    yield bucket, run, cursor.value()
                    cursor.next()
                else:
                    continue
                cursor.seek(self.run_head(bucket, run + 1))
            cursor.status()
        finally:
            del cursor  # as in between()

    def runs_of(self, db: rocksdict.Rdict, bucket: int) -> dict[int, int]:
        """Return the runs of a bucket, oldest first, with the approximate rows of each."""
        runs: dict[int, int] = {}
        for key, _ in between(db, self.head(bucket), self.head(bucket + 1)):
            _, run = self.bucket_and_run(key)
            runs[run] = runs.get(run, 0) + PIECE_ROWS
        return runs

    def merge(
        self, db: rocksdict.Rdict, batch: rocksdict.WriteBatch, bucket: int, chosen: list[int],
        run: int,
    ) -> int:  # fmt: skip
        """Add to ``batch`` the writes that replace the ``chosen`` runs by ``run``.

        Returns:
            How many rows it has.
        """
        blocks = []
        for old in chosen:
            ends = self.run_head(bucket, old), self.run_head(bucket, old + 1)
            for key, block in between(db, *ends):
                blocks.append(block)
                batch.delete(key)
        rows = self.in_order(self.rows_of(blocks))
        for key, block in self.pieces(bucket, run, rows):
            batch.put(key, block)
        return rows.height


def worth_merging(runs: Mapping[int, int], runs_max: int) -> list[int]:
    """Return the runs of a bucket to merge, empty if there are at most ``runs_max``.

    They are the newest, with older ones of up to twice their size, so that a row is merged
    O(log n) times.
    """
    if len(runs) <= runs_max:
        return []
    chosen: list[int] = []
    total = 0
    for run in sorted(runs, reverse=True):
        rows = runs[run]
        if total + rows > MERGE_ROWS_MAX or (len(chosen) >= runs_max and rows > 2 * total):
            break
        chosen.append(run)
        total += rows
    return chosen if len(chosen) > 1 else []


def lead(values: Iterable[Scalar]) -> bytes:
    """Return bytes that sort as the values of leading key fields do, one after the other.

    Those of the first fields are the beginning of those of all. A string is its UTF-8 with FF
    after each zero byte, then two zero bytes.
    """
    parts = []
    for value in values:
        if isinstance(value, bool):
            parts.append(b"\x01" if value else b"\x00")
        elif isinstance(value, int):
            parts.append(_ordered(value))
        else:
            assert isinstance(value, str), f"a key field is a string, int or bool; got {value!r}"
            parts.append(value.encode().replace(b"\x00", b"\x00\xff") + b"\x00\x00")
    return b"".join(parts)


def _opened(stored: bytes) -> bytes:
    if stored[:1] == bytes((SEALED,)):
        return bytes(unsealed(stored))
    check_block(stored)
    return stored


def _ordered(number: int) -> bytes:
    """Return 8 bytes that sort as the signed ``number`` does."""
    return _NUMBER.pack(number + _BIAS)


def between(db: rocksdict.Rdict, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a range, in order."""
    options = rocksdict.ReadOptions()
    options.set_iterate_upper_bound(stop)
    cursor = db.iter(options)
    try:
        cursor.seek(start)
        while cursor.valid():
            yield cursor.key(), cursor.value()
            cursor.next()
        cursor.status()
    finally:
        # A live iterator would keep the folder locked after the database is closed.
        del cursor
