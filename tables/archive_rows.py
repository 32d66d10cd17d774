"""Archive rows as bytes: how the embedded archive lays out keys and values of one layer.

A row key is ``name 00 bucket key window partition``; a value is the write time and the accumulators
at fixed places. docs/formats/archive.md lists the fields. Whole columns are split and joined by
polars; a row costs one ``struct`` call.

The columns of a value are only ever added to, at the end, so an older value is the beginning of a
newer one. What it lacks reads as zero bytes: 0 for counts and sums, absent for minimum and maximum.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence

import polars as pl

from tables.archive_layout import bucket_ms, missing_accumulators
from tables.block import conform
from tables.cell import archive_schema
from tables.keyhash import key_bytes, key_from_bytes
from tables.layer import Layer, Scalar

TAIL_BYTES = 12
"""Window start (8) and source partition (4) end every row key."""

_BIAS = 1 << 63  # makes signed numbers sort as unsigned bytes
_NUMBER = struct.Struct(">Q")
_TAIL = struct.Struct(">QI")
_WRITE_TIME = struct.Struct("<q")
_WORD = pl.lit(1 << 64, dtype=pl.Int128)
_ORDER = "column order"
_VALUE_TYPES: dict[str, pl.DataType] = {
    str(kind): kind for kind in (pl.Int64(), pl.Int128(), pl.Float64())
}


def ordered(number: int) -> bytes:
    """Return 8 bytes that sort as the signed ``number`` does."""
    return _NUMBER.pack(number + _BIAS)


def write_time_us(value: bytes) -> int:
    """Return the write time that a stored value begins with."""
    written: int = _WRITE_TIME.unpack_from(value)[0]
    return written


def grown(place: str, have: Mapping[str, str], want: Mapping[str, str]) -> dict[str, str]:
    """Return the stored description ``have`` with the accumulators it lacks added at the end.

    Both are like :meth:`RowCodec.describe`. Accumulators that are not wanted any more stay.

    Raises:
        ArchiveError: ``have`` is of another layer; names every difference.
    """
    added = missing_accumulators(place, {**have, _ORDER: ""}, {**want, _ORDER: ""})
    columns = {f"column {column}": want[f"column {column}"] for column in added}
    return {**have, **columns, _ORDER: ", ".join([have[_ORDER], *added])}


class RowCodec:
    """Encodes and decodes the rows of one layer.

    Args:
        layer: whose archive frames go in and come out.
        described: the stored description of the rows, grown to hold the layer; None where the
            layer has no rows yet.
    """

    def __init__(self, layer: Layer, described: Mapping[str, str] | None = None) -> None:
        self.layer = layer
        self.schema = archive_schema(layer)
        self.bucket_ms = bucket_ms(layer)
        self.prefix = layer.name.encode() + b"\x00"
        self._kinds = [field.type for field in layer.key]
        self._stored = self._value_columns(described or self.describe())
        self._split: list[pl.Expr] = []
        self._parts: dict[str, pl.DataType] = {}
        self._join: list[pl.Expr] = []
        formats = [_WRITE_TIME.format]
        for column in self._stored:
            formats += self._plan(column)
        self._value = struct.Struct("".join(formats))

    def describe(self) -> dict[str, str]:
        """Return what stored rows must agree on to be read: columns in order, key, window."""
        columns = {f"column {name}": str(kind) for name, kind in self.schema.items()}
        return columns | {
            _ORDER: ", ".join(self.schema),
            "key": ", ".join(self.layer.key_columns),
            "window": str(self.layer.window),
        }

    def head(self, bucket: int) -> bytes:
        """Return the beginning of every row key of a bucket."""
        return self.prefix + ordered(bucket)

    def bucket_of(self, row_key: bytes) -> int:
        """Return the bucket of a row key of this layer."""
        number: int = _NUMBER.unpack_from(row_key, len(self.prefix))[0]
        return number - _BIAS

    def key_part(self, row_key: bytes) -> bytes:
        """Return the canonical bytes of the cell's key in a row key."""
        return row_key[len(self.prefix) + 8 : -TAIL_BYTES]

    def key_values(self, key_part: bytes) -> tuple[Scalar, ...]:
        """Return the values of a cell's key."""
        return key_from_bytes(key_part, self._kinds)

    def encode(
        self, rows: pl.DataFrame, write_times_us: pl.Series
    ) -> tuple[list[bytes], list[bytes]]:
        """Return row keys and values of an archive frame, row by row."""
        heads: dict[tuple[int, tuple[Scalar, ...]], bytes] = {}
        tails: dict[tuple[int, int], bytes] = {}
        row_keys = []
        starts = rows["window_start"]
        buckets = (starts // self.bucket_ms).to_list()
        places = zip(starts.to_list(), rows["source_partition"].to_list(), strict=True)
        keys = rows.select(self.layer.key_columns).rows() if self.layer.key else [()] * rows.height
        for bucket, key, place in zip(buckets, keys, places, strict=True):
            head = heads.get((bucket, key))
            if head is None:
                head = heads[bucket, key] = self.head(bucket) + key_bytes(key)
            tail = tails.get(place)
            if tail is None:
                start, partition = place
                tail = tails[place] = _TAIL.pack(start + _BIAS, partition)
            row_keys.append(head + tail)
        values = conform(rows, self._stored)
        parts = values.select(write_times_us.alias("write_time"), *self._split)
        return row_keys, list(itertools.starmap(self._value.pack, parts.rows()))

    def decode(self, row_keys: Sequence[bytes], values: Sequence[bytes]) -> pl.DataFrame:
        """Return the archive frame of stored rows."""
        known: dict[bytes, tuple[Scalar, ...]] = {}
        unpack, size = self._value.unpack, self._value.size
        rows = []
        for row_key, value in zip(row_keys, values, strict=True):
            part = self.key_part(row_key)
            key = known.get(part)
            if key is None:
                key = known[part] = self.key_values(part)
            start, partition = _TAIL.unpack_from(row_key, len(row_key) - TAIL_BYTES)
            whole = value if len(value) == size else value.ljust(size, b"\x00")
            rows.append((*key, start - _BIAS, partition, *unpack(whole)))
        keys = {name: self.schema[name] for name in (*self.layer.key_columns, "window_start")}
        schema = keys | {"source_partition": pl.Int32(), "write_time": pl.Int64()} | self._parts
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        return frame.with_columns(self._join).select(list(self.schema))

    def _value_columns(self, described: Mapping[str, str]) -> dict[str, pl.DataType]:
        """Return the columns of a value with their types, in the order they are stored in."""
        in_row_key = {*self.layer.key_columns, "window_start", "source_partition"}
        return {
            column: _VALUE_TYPES[described[f"column {column}"]]
            for column in described[_ORDER].split(", ")
            if column not in in_row_key
        }

    def _plan(self, column: str) -> list[str]:
        """Plan how one column is split into fixed fields and joined again; return their formats."""
        kind = self._stored[column]
        stored = pl.col(column)
        if kind == pl.Int128():
            low, high = f"{column}.low", f"{column}.high"
            low_word = stored & pl.lit((1 << 64) - 1, dtype=pl.Int128)
            self._split += [
                low_word.cast(pl.UInt64).alias(low),
                ((stored - low_word) // _WORD).cast(pl.Int64).alias(high),
            ]
            self._parts |= {low: pl.UInt64(), high: pl.Int64()}
            joined = pl.col(high).cast(pl.Int128) * _WORD + pl.col(low).cast(pl.Int128)
            self._join.append(joined.alias(column))
            return ["Q", "q"]
        letter = "d" if kind == pl.Float64() else "q"
        if not column.startswith(("min_", "max_")):
            self._split.append(stored)
            self._parts[column] = kind
            return [letter]
        present = f"{column}.present"
        self._split += [stored.is_not_null().alias(present), stored.fill_null(0)]
        self._parts |= {present: pl.Boolean(), column: kind}
        self._join.append(pl.when(present).then(column).alias(column))
        return ["?", letter]
