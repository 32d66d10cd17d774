"""Feed records: closed cells of a published layer as bytes for other people's programs.

A record of JSON is one cell, with a key that is the same for all its versions; a record of Arrow is
many cells of one partition, without key. The meaning of their fields is described in
``docs/formats/feed.md``. A key's cells are in one partition, by the hash that archives use too.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import orjson
import polars as pl

from tables.model.keyhash import key_hashes
from tables.model.layer import Layer
from tables.query.cell_query import arrow_bytes, cell_rows, measure_columns
from tables.state.block import repeated

ARROW_BYTES_MAX = 512 * 1024
"""Bytes of the cells in one record, before compression: topics of others take 1 MiB by default."""


class PublishedRecord(NamedTuple):
    """One record, and the partition of the feed that it goes to."""

    partition: int
    key: bytes | None
    value: bytes


def feed_records(
    layer: Layer, revision: int, source_partition: int, cells: pl.DataFrame
) -> list[PublishedRecord]:
    """Return the records of a cell frame, in its order within each partition of the feed."""
    targets = key_hashes(cells, layer.key_columns) % layer.partitions
    if layer.publish == "json":
        return _json_records(layer, revision, source_partition, cells, targets)
    rows = _arrow_frame(layer, revision, source_partition, cells)
    parts = rows.hstack([targets.alias("target")]).partition_by(
        "target", as_dict=True, include_key=False, maintain_order=True
    )
    found = []
    for (target, *_), part in parts.items():
        pieces = -(-int(part.estimated_size()) // ARROW_BYTES_MAX)
        found += [
            PublishedRecord(int(target), None, arrow_bytes(piece))
            for piece in part.iter_slices(max(1, part.height // max(1, pieces)))
        ]
    return found


def _json_records(
    layer: Layer, revision: int, source_partition: int, cells: pl.DataFrame, targets: pl.Series
) -> list[PublishedRecord]:
    about = {"layer": layer.name, "map_revision": revision}
    records = []
    for cell, target in zip(cell_rows(layer, cells), targets.to_list(), strict=True):
        key = [*cell.key.values(), cell.window_start, source_partition]
        value = about | msgspec.structs.asdict(cell) | {"source_partition": source_partition}
        records.append(PublishedRecord(target, orjson.dumps(key), orjson.dumps(value)))
    return records


def _arrow_frame(
    layer: Layer, revision: int, source_partition: int, cells: pl.DataFrame
) -> pl.DataFrame:
    rows = cells.height
    return pl.DataFrame(
        [
            pl.Series([layer.name], dtype=pl.String).new_from_index(0, rows).alias("layer"),
            repeated(revision, rows, pl.Int32).alias("map_revision"),
            *(cells[name] for name in layer.key_columns),
            cells["window_start"],
            layer.window.ends(cells["window_start"]).alias("window_end"),
            *measure_columns(layer, cells),
            cells["version"],
            repeated(source_partition, rows, pl.Int32).alias("source_partition"),
        ]
    )
