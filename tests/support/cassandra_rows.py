"""Rows and settings of a real Cassandra node."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tables.model.layer import Accumulator, KeyField, Layer, Map, Measure
from tables.model.window import Window
from tables.state.cell import archive_schema

archive_cassandra = pytest.importorskip("tables.archive.cassandra.archive")
HOUR_MS = 3_600_000
BUCKET_MS = 32 * HOUR_MS
LAYER = Layer(
    name="hours",
    key=(KeyField("origin", "string"),),
    window=Window(HOUR_MS),
    measures=(Measure("count"),),
    accumulators=(Accumulator("events", None, "int"), Accumulator("sum", "delay", "int")),
    max_out_of_orderness_ms=0,
    allowed_lateness_ms=0,
    partitions=1,
    source="flights",
)


def map_of(*layers: Layer, name: str = "flights") -> Map:
    """Return a map of layers."""
    return Map(revision=1, name=name, sources=(), layers=layers, digest="")


def settings_of(cassandra: tuple[str, int], keyspace: str) -> Any:
    """Return how to reach a node under test, in a keyspace of one replica."""
    host, port = cassandra
    return archive_cassandra.CassandraSettings(
        hosts=(host,), port=port, keyspace=keyspace, replication=1, request_timeout_s=60
    )


def rows(keys: list[str], starts: list[int]) -> pl.DataFrame:
    """Return archive rows of every key and window start."""
    cells = [(key, start, 1, 1, 1, 0) for start in starts for key in keys]
    return pl.DataFrame(cells, schema=archive_schema(LAYER), orient="row")


def times(frame: pl.DataFrame) -> pl.Series:
    """Return a write time for each row."""
    return pl.Series("write_time", [1] * frame.height, dtype=pl.Int64)
