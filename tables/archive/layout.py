"""The bucket of a cell in an archive, and the time until which it is kept. All archives share it.

A bucket is a run of consecutive windows that are stored together. Its length follows from the size
of the window alone, because it is part of the key of rows. Reasons:
docs/decisions/0002-archive-tables.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from tables.archive.protocol import CellRange
from tables.measures.registry import is_accumulator
from tables.model.errors import ArchiveError, QueryError
from tables.model.layer import Layer

BUCKET_WINDOWS = 32
"""Windows a bucket: 1,000 keys a slot at about 128 bytes a row make 4 MiB a Cassandra partition."""

BUCKET_MS_MIN = 10_000
"""The shortest bucket. Its windows are seldom all there, and a small partition costs as much as
a full one. At 128 bytes a row, 10 MiB in 10 s would be 8,000 rows a second and slot: more than is
archived."""

_COLUMN = "column "


def bucket_ms(layer: Layer) -> int:
    """Return the length of the layer's buckets: bucket = window start // bucket length, floored."""
    return max(BUCKET_MS_MIN, BUCKET_WINDOWS * layer.window.nominal_ms)


def not_expired(layer: Layer, now_ms: int) -> pl.Expr:
    """Return the condition that a row's window end + archive TTL lies after ``now_ms``."""
    if layer.archive_ttl_ms == 0:
        return pl.lit(value=True)
    return layer.window.ends(pl.col("window_start")) + layer.archive_ttl_ms > now_ms


def check_key(layer: Layer, cells: CellRange) -> None:
    """Refuse a key filter that names fields the layer's key does not have.

    Raises:
        QueryError: names the field.
    """
    names = [field.name for field in layer.key]
    unknown = sorted(set(cells.key) - set(names))
    if unknown:
        raise QueryError(
            f"cannot read layer {layer.name}: its key has no field {unknown[0]}; "
            f"got {', '.join(unknown)}; want some of {', '.join(names)}; "
            "name fields of the layer's key"
        )


def too_many_rows(layer: Layer, cells: CellRange) -> QueryError:
    """Return the error for a range that holds more rows than the reader allows."""
    return QueryError(
        f"cannot read layer {layer.name}: more than {cells.rows_max} archive rows in "
        f"[{cells.from_ms}, {cells.to_ms}); narrow the range, name more of the key, "
        "or ask a coarser layer"
    )


def missing_accumulators(place: str, have: Mapping[str, str], want: Mapping[str, str]) -> list[str]:
    """Return the accumulator columns that a stored table lacks, by name, in the layer's order.

    A higher revision of the map may add measures and take measures away, so accumulators may stand
    on one side only. Everything else has to be the same, and so have the types of accumulators.
    Both sides are properties of ``place``: columns with their types, keys, format.

    Raises:
        ArchiveError: it is of another layer; names every difference.
    """
    one_sided = [name for name in {**want, **have} if (name in have) != (name in want)]
    columns = {name for name in one_sided if name.startswith(_COLUMN)}
    allowed = {name for name in columns if is_accumulator(name.removeprefix(_COLUMN))}
    differences = [
        f"{name} is {have.get(name, 'absent')}, want {want.get(name, 'absent')}"
        for name in {**want, **have}
        if have.get(name) != want.get(name) and name not in allowed
    ]
    if differences:
        raise ArchiveError(
            f"cannot use {place}: it was made for another layer: {'; '.join(differences)}; "
            "give the changed layer a new name in the map, or use another archive"
        )
    return [name.removeprefix(_COLUMN) for name in want if name in allowed]
