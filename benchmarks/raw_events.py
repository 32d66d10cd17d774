"""The design that failed: raw events in Cassandra, sharded by the minute they happened in.

    events ((minute), at, place): key, value

A reader of any range reads every event of all its minutes, whatever the key, and adds them up
itself; a writer of now writes into one partition, however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
from cassandra.cluster import Cluster
from cassandra.concurrent import execute_concurrent_with_args
from cassandra.query import BatchStatement, BatchType, tuple_factory

MINUTE_MS = 60_000
BATCH_ROWS = 50
CONCURRENCY = 32
ROW_SCHEMA = {"at": pl.Int64(), "entity": pl.String(), "value": pl.Float64()}


class RawEvents:
    """A keyspace with one table of events.

    Args:
        host: a node.
        port: its port.
        keyspace: made if it is missing.
    """

    def __init__(self, host: str, port: int, keyspace: str) -> None:
        self._cluster = Cluster([host], port=port, protocol_version=5)
        self._session = self._cluster.connect()
        self._session.row_factory = tuple_factory
        self._session.execute(
            f'CREATE KEYSPACE IF NOT EXISTS "{keyspace}" WITH replication = '
            "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
        )
        self._session.set_keyspace(keyspace)
        self._session.execute(
            "CREATE TABLE IF NOT EXISTS events (minute bigint, at bigint, place int, entity text,"
            " value double, PRIMARY KEY ((minute), at, place))"
        )
        self._insert = self._session.prepare(
            "INSERT INTO events (minute, at, place, entity, value) VALUES (?, ?, ?, ?, ?)"
        )
        self._select = self._session.prepare(
            "SELECT at, entity, value FROM events WHERE minute = ? AND at >= ? AND at < ?"
        )

    def close(self) -> None:
        """Disconnect."""
        self._cluster.shutdown()

    def write(self, events: pl.DataFrame) -> None:
        """Write events with the columns at, entity and value, in batches of one partition."""
        waiting: list[Any] = []
        for batch in _batches(events):
            statement = BatchStatement(BatchType.UNLOGGED)
            for row in batch:
                statement.add(self._insert, row)
            waiting.append(self._session.execute_async(statement))
            if len(waiting) >= CONCURRENCY:
                waiting.pop(0).result()
        for future in waiting:
            future.result()

    def read(self, from_ms: int, to_ms: int) -> tuple[pl.DataFrame, int]:
        """Return all events of a range, and how many partitions that took."""
        minutes = range(from_ms // MINUTE_MS, -(-to_ms // MINUTE_MS))
        found = execute_concurrent_with_args(
            self._session, self._select, [(minute, from_ms, to_ms) for minute in minutes],
            concurrency=CONCURRENCY,
        )  # fmt: skip
        rows = [row for _, rows in found for row in rows]
        return pl.DataFrame(rows, schema=ROW_SCHEMA, orient="row"), len(minutes)


def _batches(events: pl.DataFrame) -> Iterator[Sequence[tuple[Any, ...]]]:
    placed = events.select(
        (pl.col("at") // MINUTE_MS).alias("minute"),
        "at",
        pl.int_range(pl.len(), dtype=pl.Int32).alias("place"),
        "entity",
        "value",
    )
    for part in placed.partition_by("minute", maintain_order=True):
        rows = part.rows()
        yield from (rows[at : at + BATCH_ROWS] for at in range(0, len(rows), BATCH_ROWS))
