"""Blocks: the rows that a delta adds to a layer, as bytes in journal and store, and in memory.

Many rows are a frame, as bytes an Arrow IPC stream, compressed with LZ4 from ``COMPRESS_ROWS_MIN``
rows on. A few are tuples, as bytes MessagePack: making a frame costs as much as fifty rows. The
version of a block's rows is a constant kept beside it, so a delta's bytes go to the store
unchanged.

A block has no checksum of its own: the bytes around it are sealed (``tables.record.sealed``).
One that comes out of anything else goes through :func:`check_block` first, because the reader of
Arrow ends the process over some broken streams.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec
import polars as pl

from tables.record.arrow_stream import CONTINUATION, ArrowError, check_stream
from tables.record.sealed import DamagedError, unpacked

COMPRESS_ROWS_MIN = 16
"""Measured on cells of 12 columns: 4 rows 2,056 bytes with LZ4 and 2,040 without; 16 rows 2,632 and
3,384; 512 rows 16,328 and 66,872."""

_NO_FRAME = (ArrowError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""Errors of reading bytes that are not an Arrow stream; flipped bits can make polars panic."""

INFLATED_BYTES_MAX = 1 << 30
"""Bytes of a block without checksum: a record of 16 MiB could claim 255 times as much. Ours have
a fraction of that, the cells of one chunk."""

_COLUMNS_FROM_ROWS = 60
"""Rows from which on a frame is made column by column."""

_VALUE_BYTES = 40.0
"""The approximate bytes of a value in a tuple."""

_PYTHON_TYPES: dict[type[pl.DataType], set[type]] = {
    pl.String: {str}, pl.Boolean: {bool}, pl.Int32: {int}, pl.Int64: {int}, pl.Int128: {int},
    pl.UInt64: {int}, pl.Float64: {float, int},
}  # fmt: skip

COMPRESS_BYTES_MIN = 1 << 16
"""Bytes from which on even few rows are compressed: one row is never larger than among others."""

_START = "window_start"

_tuples = msgspec.msgpack.Decoder(tuple[list[str], list[tuple[Any, ...]]])


@dataclasses.dataclass(slots=True, frozen=True)
class TupleRows:
    """Rows as tuples in the order of ``schema``, the columns and their types."""

    schema: Mapping[str, pl.DataType]
    rows: list[tuple[Any, ...]]

    @property
    def height(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def values(self, name: str) -> list[Any]:
        """Return the values of one column."""
        at = list(self.schema).index(name)
        return [row[at] for row in self.rows]

    def frame(self) -> pl.DataFrame:
        """Return the rows as a frame."""
        if len(self.rows) < _COLUMNS_FROM_ROWS:
            return pl.DataFrame(self.rows, schema=self.schema, orient="row")
        columns = zip(self.schema.items(), zip(*self.rows, strict=True), strict=True)
        return pl.DataFrame([pl.Series(name, values, kind) for (name, kind), values in columns])


def encode_block(rows: pl.DataFrame | TupleRows) -> bytes:
    """Return the bytes of rows."""
    if isinstance(rows, TupleRows):
        try:
            return msgspec.msgpack.encode((list(rows.schema), rows.rows))
        except OverflowError:
            # A sum of integers that 64 bits do not hold.
            rows = rows.frame()
    out = io.BytesIO()
    compress = rows.height >= COMPRESS_ROWS_MIN or rows.estimated_size() > COMPRESS_BYTES_MIN
    rows.write_ipc_stream(out, compression="lz4" if compress else "uncompressed")
    return out.getvalue()


def encoded_pieces(rows: pl.DataFrame, rows_max: int, bytes_max: int) -> Iterator[bytes]:
    """Yield the bytes of rows, in order: pieces of bounded rows and bytes, or one row."""
    at = 0
    while at < rows.height:
        piece = rows[at : at + rows_max]
        data = encode_block(piece)
        if len(data) > bytes_max and piece.height > 1:
            fitting = piece.height * bytes_max // len(data)
            rows_max = max(1, min(piece.height // 2, fitting))
            continue
        at += piece.height
        yield data


def check_block(data: bytes) -> None:
    """Check the structure of a block that no checksum vouches for.

    Raises:
        DamagedError: it must not be decoded.
    """
    if data.startswith(CONTINUATION):
        try:
            check_stream(data, INFLATED_BYTES_MAX)
        except ArrowError as error:
            raise DamagedError(f"its block is unreadable: {error}") from error
        return
    names, rows = unpacked(_tuples, data)
    if any(len(row) != len(names) for row in rows):
        raise DamagedError("its block is unreadable: a row has more or fewer values than columns")


def decode_frame(data: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return the frame of ``data``, which must be one; the same as :func:`decode_rows`."""
    try:
        frame = conform(pl.read_ipc_stream(io.BytesIO(data)), schema)
    except _NO_FRAME as error:
        raise DamagedError(f"its block is unreadable: {error}") from error
    if frame.dtypes != list(schema.values()):
        found = {name: str(kind) for name, kind in frame.schema.items()}
        want = {name: str(kind) for name, kind in schema.items()}
        raise DamagedError(f"its block holds other cells: got {found}; want {want}")
    if _START in schema and frame[_START].null_count():
        raise DamagedError("its block holds cells of no window")
    return frame


def decode_rows(data: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame | TupleRows:
    """Return the rows of ``data`` with exactly the columns of ``schema``.

    A column that the block does not know (a measure added by a later revision of the map) is null:
    nobody knows its values (``tables.state.cell``). A column that the schema does not know is
    dropped.

    Raises:
        DamagedError: it is not a block, or is one of other columns.
    """
    if data.startswith(CONTINUATION):
        return decode_frame(data, schema)
    names, rows = unpacked(_tuples, data)
    if names != list(schema):
        at = {name: index for index, name in enumerate(names)}
        indexes = [at.get(name) for name in schema]
        rows = [tuple(None if at is None else row[at] for at in indexes) for row in rows]
    for (name, kind), column in zip(schema.items(), zip(*rows, strict=True), strict=False):
        if not _fit(kind, column) or (name == _START and None in column):
            raise DamagedError(f"its block holds other cells: a {name} is not {kind}")
    return TupleRows(schema, rows)


def decode_block(data: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return the frame of ``data``; the same as :func:`decode_rows`."""
    rows = decode_rows(data, schema)
    return rows.frame() if isinstance(rows, TupleRows) else rows


def conform(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return ``frame`` with the columns of ``schema``, filled as in :func:`decode_rows`."""
    if frame.columns == list(schema):
        return frame
    filled = [
        pl.lit(None, dtype=kind).alias(name)
        for name, kind in schema.items()
        if name not in frame.columns
    ]
    return frame.with_columns(filled).select(list(schema))


def _fit(kind: pl.DataType, column: tuple[Any, ...]) -> bool:
    """Return whether all values are null or of a column's type."""
    types = set(map(type, column))
    types.discard(type(None))
    if types - _PYTHON_TYPES[type(kind)]:
        return False
    if kind not in (pl.Int32, pl.Int64) or not types:
        return True
    bits = 31 if kind == pl.Int32 else 63
    numbers: list[int] = [value for value in column if value is not None]
    return -1 << bits <= min(numbers) and max(numbers) < 1 << bits


def repeated(value: int, rows: int, kind: type[pl.DataType]) -> pl.Series:
    """Return a column of one value; ``pl.repeat`` and ``pl.lit`` cost a query each."""
    return pl.Series([value], dtype=kind).new_from_index(0, rows)


class Block:
    """One block in memory: its rows, the windows that they are of, the first and the last of them.

    ``version`` is that of all rows, or -1 if they have the column. A few rows stay tuples until
    somebody asks for their frame.
    """

    __slots__ = ("_rows", "_version", "_window_bytes", "first", "last", "windows")

    def __init__(self, rows: pl.DataFrame | TupleRows, version: int = -1) -> None:
        self._rows = rows
        self._version = version
        self._window_bytes: dict[int, float] = {}
        self.windows: frozenset[int] = frozenset()
        if isinstance(rows, TupleRows):
            if _START in rows.schema:
                self.windows = frozenset(rows.values(_START))
        elif (starts := rows.get_column(_START, default=None)) is not None:
            self.windows = different(starts)
        self.first = min(self.windows, default=0)
        self.last = max(self.windows, default=0)

    @property
    def height(self) -> int:
        """The number of rows."""
        return self._rows.height

    def values(self, name: str) -> list[Any]:
        """Return the values of a column other than the version."""
        rows = self._rows
        return rows.values(name) if isinstance(rows, TupleRows) else rows[name].to_list()

    def bytes_of(self, windows: Collection[int]) -> float:
        """Return the approximate bytes of memory of these windows' rows; the result is kept."""
        if not self._window_bytes:
            counts = Counter(self.values(_START)) if len(self.windows) > 1 else {}
            if isinstance(self._rows, TupleRows):
                size = _VALUE_BYTES * len(self._rows.schema)
            else:
                versions = 8 if self._version >= 0 else 0
                size = self._rows.estimated_size() / max(1, self.height) + versions
            self._window_bytes = {w: counts.get(w, self.height) * size for w in self.windows}
        return sum(size for window, size in self._window_bytes.items() if window in windows)

    @property
    def frame(self) -> pl.DataFrame:
        """The rows with their versions."""
        if isinstance(self._rows, TupleRows):
            self._rows = self._rows.frame()
        if self._version >= 0:
            versions = repeated(self._version, self.height, pl.Int64)
            self._rows = self._rows.hstack([versions.alias("version")])
            self._version = -1
        return self._rows

    def without(self, windows: frozenset[int]) -> pl.DataFrame:
        """Return the rows of other windows than these."""
        frame = self.frame
        if self.windows <= windows:
            return frame.clear()
        return frame.filter(~is_among(frame["window_start"], windows))

    def tuples(self) -> list[tuple[Any, ...]] | None:
        """Return the rows as tuples with their versions, None if they are a frame."""
        if not isinstance(self._rows, TupleRows):
            return None
        version = self._version
        return [(*row, version) for row in self._rows.rows] if version >= 0 else self._rows.rows


def frames_of(
    blocks: Iterable[Block],
    schema: Mapping[str, pl.DataType],
    key: Mapping[str, Any] | None = None,
) -> list[pl.DataFrame]:
    """Return the rows of blocks with their versions, in order; neighbours of a few rows joined.

    Of a few rows only those are made a frame whose columns have the values of ``key``.
    """
    frames: list[pl.DataFrame] = []
    small: list[tuple[Any, ...]] = []
    names = list(schema)
    wanted = [(names.index(name), value) for name, value in (key or {}).items()]
    for block in blocks:
        rows = block.tuples()
        if rows is not None:
            for at, value in wanted:
                rows = [row for row in rows if row[at] == value]
            small += rows
            continue
        if small:
            frames.append(TupleRows(schema, small).frame())
            small = []
        frames.append(block.frame)
    if small:
        frames.append(TupleRows(schema, small).frame())
    return frames


def is_among(starts: pl.Series, windows: frozenset[int]) -> pl.Series:
    """Return which window starts are among these; one comparison costs a tenth of a set."""
    if len(windows) == 1:
        (window,) = windows
        return starts == window
    return starts.is_in(list(windows))


def different(windows: pl.Series) -> frozenset[int]:
    """Return the different values; most blocks have one window."""
    first, last = windows.min(), windows.max()
    if first is None:
        return frozenset()
    if first == last:
        return frozenset((cast("int", first),))
    return frozenset(windows.unique().to_list())
