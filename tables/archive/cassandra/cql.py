"""The archive's tables in CQL: names, columns, statements, partitions. Pure text and numbers.

A table's primary key is ``((slot, bucket), key columns, window_start, source_partition)``: one
key's windows are one slice of a partition, all keys of a range are ``slots`` partitions a bucket.
Reasons and measurements: docs/decisions/0002-archive-tables.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

import polars as pl

from tables.archive.layout import bucket_ms, not_expired
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveError, QueryError
from tables.model.keyhash import key_hash, key_hashes
from tables.model.layer import Layer, Map
from tables.model.window import DAY_MS
from tables.state.cell import archive_schema, no_rows

FORMAT = 1


def create_keyspace(keyspace: str, copies: Mapping[str, int]) -> str:
    """Return the statement that makes a missing keyspace, with copies of a row by data centre."""
    each = ", ".join(f"'{centre}': {number}" for centre, number in copies.items())
    return (
        f'CREATE KEYSPACE IF NOT EXISTS "{keyspace}" WITH replication = '
        f"{{'class': 'NetworkTopologyStrategy', {each}}}"
    )


REGISTER_TABLE = "archives"
"""The table of owners of archives. Names of layers' tables differ: they have an underscore."""

TABLE_NAME_CHARS_MAX = 48
"""Cassandra's own limit on names of keyspaces and tables."""

PARTITIONS_MAX = 20_000
"""Partitions one read may ask for: at 3,000 a second the longest read a person waits for."""

BATCH_ROWS_MAX = 20
"""33,000 rows per CPU-second at 20 rows a batch, 17,600 at 100 (one node, driver 3.30)."""

BATCH_BYTES_MAX = 16_384
"""Cassandra as shipped refuses batches past 50 KiB; this leaves room for a poor estimate."""

TTL_SECONDS_MAX = 630_720_000
"""Cassandra's own limit: 20 years."""

COMPACTION_WINDOWS_MAX = 45
"""Time windows a TTL; TimeWindowCompactionStrategy wants fewer than 50."""

COMPACTION_WINDOW_FOREVER_MS = 30 * DAY_MS
"""Size of a compaction window if rows never expire."""

_INT_MAX = (1 << 31) - 1
_MINUTE_MS = 60_000
_TYPES: dict[pl.DataType, str] = {
    pl.String(): "text", pl.Int32(): "int", pl.Int64(): "bigint", pl.Int128(): "varint",
    pl.Boolean(): "boolean", pl.Float64(): "double",
}  # fmt: skip
Row = tuple[object, ...]
Numbers = int | tuple[int, ...]


class CassandraTable:
    """The CQL of one layer's table in one keyspace.

    Attributes:
        name: the table, ``<map>_<layer>``, unquoted.
        schema: the columns of an archive frame, in order.
        create: the statement that makes the table if it is missing.
        insert: the statement that writes one row: slot, bucket, columns, write time (us), TTL (s).
        check: a statement that reads as queries do, and next to nothing.
    """

    def __init__(self, themap: Map, layer: Layer, keyspace: str) -> None:
        self.layer = layer
        self.name = f"{themap.name}_{layer.name}"
        if len(self.name) > TABLE_NAME_CHARS_MAX or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ArchiveError(
                f"cannot name the table of layer {layer.name}: got {self.name!r}; want letters, "
                f"digits and underscores, at most {TABLE_NAME_CHARS_MAX}; shorten the names of "
                "map or layer"
            )
        self.schema = archive_schema(layer)
        self._table = f'"{keyspace}"."{self.name}"'
        self._types = {"slot": "int", "bucket": "bigint"} | {
            column: _TYPES[kind] for column, kind in self.schema.items()
        }
        self._clustering = [*layer.key_columns, "window_start", "source_partition"]
        self.comment = (
            f"treasure-map archive {FORMAT}: map {themap.name}, layer {layer.name}, "
            f"window {layer.window}, slots {layer.slots}"
        )
        self.create = self._create()
        columns = ", ".join(f'"{column}"' for column in self._types)
        marks = ", ".join("?" for _ in self._types)
        self.insert = (
            f"INSERT INTO {self._table} ({columns}) VALUES ({marks}) "  # noqa: S608 - names of a map
            "USING TIMESTAMP ? AND TTL ?"
        )
        self.check = (
            f"SELECT window_start FROM {self._table} "  # noqa: S608 - names of a checked map
            'WHERE "slot" = 0 AND "bucket" = 0 LIMIT 1'
        )

    def describe(self) -> dict[str, str]:
        """Return the comment, columns and keys that this layer's table must have."""
        columns = {f"column {column}": kind for column, kind in self._types.items()}
        return columns | {
            "partition key": "slot, bucket",
            "clustering key": ", ".join(self._clustering),
            "comment": self.comment,
        }

    def add(self, columns: Sequence[str]) -> str:
        """Return the statement that adds columns of this layer to a table that lacks them."""
        added = ", ".join(f'"{column}" {self._types[column]}' for column in columns)
        return f"ALTER TABLE {self._table} ADD ({added})"

    def frame(self, rows: Sequence[Row], now_ms: int) -> pl.DataFrame:
        """Return the archive frame of those selected rows that have not expired.

        A row that was written before a measure was added has nulls there (``tables.state.cell``).
        """
        if self.layer.archive_ttl_ms:
            since_ms = now_ms - self.layer.archive_ttl_ms
            end, at = self.layer.window.end, list(self.schema).index("window_start")
            starts = {cast("int", row[at]) for row in rows}
            alive = {start for start in starts if end(start) > since_ms}
            rows = [row for row in rows if row[at] in alive]
        if not rows:
            return no_rows(self.layer)
        # Column by column: a query over the frame would wake a thread, for one row as for many.
        columns = zip(self.schema.items(), zip(*rows, strict=True), strict=True)
        return pl.DataFrame([pl.Series(name, values, kind) for (name, kind), values in columns])

    def select(self, cells: CellRange, *, several: bool = False) -> str:
        """Return the statement that reads one partition; :meth:`select_values` has its values.

        With ``several`` it reads any slots of any buckets. If the whole key is named, the
        partition's rows are one slice. Otherwise Cassandra filters inside the partition, which is
        at most some MiB and spares the reader the other rows.
        """
        named = self._named(cells)
        keys = "".join(f' AND "{column}" = ?' for column in named)
        columns = ", ".join(f'"{column}"' for column in self.schema)
        is_ = "IN" if several else "="
        statement = (
            f"SELECT {columns} FROM {self._table} "  # noqa: S608 - names of a checked map
            f'WHERE "slot" {is_} ? AND "bucket" {is_} ?{keys} '
            'AND "window_start" >= ? AND "window_start" < ? LIMIT ?'
        )
        return statement if self.is_whole(cells) else f"{statement} ALLOW FILTERING"

    def is_whole(self, cells: CellRange) -> bool:
        """Return whether the whole key is named."""
        return len(self._named(cells)) == len(self.layer.key)

    def select_values(self, cells: CellRange, slots: Numbers, buckets: Numbers) -> Row:
        """Return the values of :meth:`select` for one slot of a bucket, or for several of each."""
        most = min(cells.rows_max, _INT_MAX - 1) + 1
        return (slots, buckets, *self._named(cells).values(), cells.from_ms, cells.to_ms, most)

    def partitions(self, cells: CellRange, now_ms: int) -> list[tuple[int, int]]:
        """Return the partitions (slot, bucket) that hold the range: slots x buckets, or one slot.

        Raises:
            QueryError: more than ``PARTITIONS_MAX``.
        """
        layer = self.layer
        from_ms = cells.from_ms
        if layer.archive_ttl_ms:
            from_ms = max(from_ms, now_ms - layer.archive_ttl_ms - layer.window.longest_ms)
        if from_ms >= cells.to_ms:
            return []
        first = from_ms // bucket_ms(layer)
        last = (cells.to_ms - 1) // bucket_ms(layer)
        slots = list(range(layer.slots))
        if self.is_whole(cells):
            slots = [key_hash(self._named(cells).values()) % layer.slots]
        count = (last - first + 1) * len(slots)
        if count > PARTITIONS_MAX:
            raise QueryError(
                f"cannot read layer {layer.name}: the range spans {count} archive partitions; "
                f"want at most {PARTITIONS_MAX}; narrow the range, name the whole key, "
                "or ask a coarser layer"
            )
        return [(slot, bucket) for bucket in range(first, last + 1) for slot in slots]

    def batches(
        self, rows: pl.DataFrame, write_times_us: pl.Series, now_ms: int
    ) -> list[list[Row]]:
        """Return the values of :attr:`insert` by batches of one partition, without expired rows."""
        layer = self.layer
        end = layer.window.ends(pl.col("window_start"))
        seconds = pl.lit(0)
        if layer.archive_ttl_ms:
            left_ms = end + (layer.archive_ttl_ms - now_ms)
            seconds = ((left_ms + 999) // 1_000).clip(1, TTL_SECONDS_MAX)
        slots = (key_hashes(rows, layer.key_columns) % layer.slots).alias("slot")
        buckets = (pl.col("window_start") // bucket_ms(layer)).alias("bucket")
        written = (
            rows.with_columns(write_times_us.alias("write_time"))
            .select(slots, buckets, *self.schema, "write_time", seconds.alias("ttl"))
            .filter(not_expired(layer, now_ms))
        )
        size = self._batch_rows(rows)
        batches = []
        for part in written.partition_by("slot", "bucket"):
            values = part.rows()
            batches += [values[i : i + size] for i in range(0, len(values), size)]
        return batches

    def _batch_rows(self, rows: pl.DataFrame) -> int:
        texts = [column for column in self.layer.key_columns if rows[column].dtype == pl.String()]
        row_bytes = 16 * len(self._types) + sum(
            max(rows[column].str.len_bytes().to_list(), default=0) for column in texts
        )
        return max(1, min(BATCH_ROWS_MAX, BATCH_BYTES_MAX // row_bytes))

    def _named(self, cells: CellRange) -> Mapping[str, str | int | float | bool]:
        return {
            field.column: cells.key[field.name]
            for field in self.layer.key
            if field.name in cells.key
        }

    def _create(self) -> str:
        columns = ", ".join(f'"{column}" {kind}' for column, kind in self._types.items())
        clustering = ", ".join(f'"{column}"' for column in self._clustering)
        unit, size = compaction_window(self.layer)
        return (
            f"CREATE TABLE IF NOT EXISTS {self._table} ({columns}, "
            f'PRIMARY KEY (("slot", "bucket"), {clustering})) '
            f"WITH comment = '{self.comment}' AND compaction = "
            "{'class': 'TimeWindowCompactionStrategy', "
            f"'compaction_window_unit': '{unit}', 'compaction_window_size': {size}}}"
        )


def compaction_window(layer: Layer) -> tuple[str, int]:
    """Return unit and size of compaction windows: fewer than 50 a TTL, no less than a bucket."""
    window_ms = COMPACTION_WINDOW_FOREVER_MS
    if layer.archive_ttl_ms:
        window_ms = math.ceil(layer.archive_ttl_ms / COMPACTION_WINDOWS_MAX)
    minutes = math.ceil(max(window_ms, bucket_ms(layer), _MINUTE_MS) / _MINUTE_MS)
    for unit, unit_minutes in (("DAYS", 1_440), ("HOURS", 60)):
        if minutes >= unit_minutes:
            return unit, math.ceil(minutes / unit_minutes)
    return "MINUTES", minutes
