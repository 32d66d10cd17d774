"""Answers: cells from live tables and archive, each of them once, as the rows that were asked for.

The facts that came with the live rows decide which rows of an archive count: windows that a
partition has not evicted are all in its table, and evicted ones are final. So the two never
overlap, whatever is archived between the two reads (``tables.query.facts`` has the picture). For
one key, two partitions and two hours, rows of the archive in brackets do not count::

    evicted up to             10:00       11:00       answer
    partition 0   11:00       archive 5   table 8 [7]
    partition 1   10:00       table 2 [1] table 3
                              5 + 2 = 7   8 + 3 = 11

A merged layer's open windows are read in parts, so that the answer is of one position of each
source partition: a sender's settled values come from the merge stage, the rest of its cells from
its combiner, which was read after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from tables.model.keyhash import key_hashes
from tables.model.layer import Layer
from tables.model.window import NEVER_MS
from tables.query.facts import with_fact
from tables.query.family import FamilyQuery, KeyFilter
from tables.query.live import LiveRows
from tables.state.block import TupleRows
from tables.state.cell import archive_schema, cell_schema, merge_rows, no_rows, stacked
from tables.state.rollup_table import rollup_schema
from tables.state.small_merge import SMALL_ROWS_MAX, columns_of, merge_small

_SENDER_AT = ["held_by", "source_partition"]


def cells_of(
    layer: Layer, live: LiveRows, archived: pl.DataFrame, final: pl.DataFrame
) -> pl.DataFrame:
    """Return the archive frame of a layer's live and archived rows, each of them once.

    ``archived`` is an archive frame of windows that were read from live tables too, ``final``
    one of others. Of a partition without facts every row counts: the answer is partial then.
    """
    columns = list(archive_schema(layer))
    rows = [frame if frame.columns == columns else frame[columns] for frame in live.rows]
    return stacked([*rows, _evicted(layer, archived, live), final], no_rows(layer))


def merged_cells_of(
    layer: Layer, parts: LiveRows, combined: LiveRows, archived: pl.DataFrame, final: pl.DataFrame
) -> pl.DataFrame:
    """Return parts of the cells of a merged layer, each once, with the columns of a cell frame.

    ``parts`` are contributions at the merge stage, ``combined`` archive frames of the combiners,
    read after; the others are of the merge stage, as for :func:`cells_of`.
    """
    wanted = list(cell_schema(layer))
    rows = [_evicted(layer, archived, parts)[wanted], final[wanted]]
    heard = _heard(parts)
    end = layer.window.ends(pl.col("window_start"))
    is_settled = (end <= pl.col("final_ms")).fill_null(value=False)
    if parts.rows:
        held = pl.concat([frame.select([*rollup_schema(layer), "held_by"]) for frame in parts.rows])
        # If a combiner does not answer, its earlier contributions are better than nothing.
        answers = pl.col("source_partition").is_in(list(combined.facts))
        is_sum = pl.col("source_partition").is_null()
        held = held.join(heard, _SENDER_AT, "left", maintain_order="left")
        rows.append(held.filter(is_sum | is_settled | ~answers).select(wanted))
    if combined.rows:
        open_rows = pl.concat(
            [frame.select([*wanted, "source_partition"]) for frame in combined.rows]
        )
        holder = (key_hashes(open_rows, layer.key_columns) % layer.partitions).cast(pl.Int32)
        open_rows = open_rows.hstack([holder.alias("held_by")])
        open_rows = open_rows.filter(pl.col("held_by").is_in(list(parts.facts)))
        open_rows = open_rows.join(heard, _SENDER_AT, "left", maintain_order="left")
        rows.append(open_rows.filter(~is_settled).select(wanted))
    return stacked(rows, rows[0])


def are_torn(layer: Layer, parts: LiveRows, combined: LiveRows, from_ms: int, to_ms: int) -> bool:
    """Return whether parts and combiners differ in position: they are read again then.

    A combiner may have evicted windows that the merge stage had not settled: they are on their way
    through the layer's topic. Or an owner that was replaced without knowing it, and is behind,
    answered for a combiner. ``from_ms`` and ``to_ms`` are starts of windows of the layer.
    """
    for fact in parts.facts.values():
        for sender, combiner in combined.facts.items():
            final_ms = fact.heard.get(sender, NEVER_MS)
            if _has_end(layer, from_ms, to_ms, final_ms, combiner.evicted_ms):
                return True
            if _has_end(layer, from_ms, to_ms, combiner.floor_ms, final_ms):
                return True
    return False


def are_behind(base: LiveRows, sealed_ms: int) -> bool:
    """Return whether an owner of the base has sealed less than the coarser cells that were read.

    Then it was replaced without knowing it, and its position is not that of the coarser cells.
    """
    return any(fact.floor_ms < sealed_ms for fact in base.facts.values())


def matching(layer: Layer, cells: pl.DataFrame, keys: KeyFilter) -> pl.DataFrame:
    """Return the rows whose key passes a filter."""
    columns = {field.name: pl.col(field.column) for field in layer.key}
    conditions = [columns[name].is_in(list(some)) for name, some in keys.values.items()]
    conditions += [columns[name].str.starts_with(some) for name, some in keys.prefixes.items()]
    return cells.filter(conditions) if conditions else cells


def rows_of(query: FamilyQuery, parts: Sequence[tuple[Layer, pl.DataFrame]]) -> pl.DataFrame:
    """Return the rows of a request: a cell frame of ``query.rows``; many are in no order.

    ``parts`` are cells of layers, or parts of them with the columns of a cell frame, of the keys
    that are asked for; together they have every event once.
    """
    rows = query.rows
    if sum(cells.height for _, cells in parts) <= SMALL_ROWS_MAX:
        return _small_rows_of(query, [cells for _, cells in parts if cells.height])
    start = pl.lit(query.from_ms, pl.Int64)
    if query.step is not None:
        start = query.step.starts(pl.col("window_start")).clip(query.from_ms)
    columns = [*rows.key_columns, *(acc.column for acc in rows.accumulators), "version"]
    frames = [
        cells.select(*columns, start.alias("window_start")) for _, cells in parts if cells.height
    ]
    if not frames:
        return pl.DataFrame(schema=cell_schema(rows))
    keys = ["window_start", *rows.key_columns]
    cells = merge_rows(stacked(frames, frames[0]), keys, rows.accumulators)
    return cells.select(list(cell_schema(rows)))


def _small_rows_of(query: FamilyQuery, frames: list[pl.DataFrame]) -> pl.DataFrame:
    rows = query.rows
    names = [acc.column for acc in rows.accumulators]
    cells: list[tuple[Any, Any]] = []
    for frame in frames:
        starts = [query.from_ms] * frame.height
        if query.step is not None:
            windows = frame.get_column("window_start").to_list()
            starts = [max(query.step.start(window), query.from_ms) for window in windows]
        keys = zip(starts, *columns_of(frame, rows.key_columns), strict=True)
        values = zip(*columns_of(frame, [*names, "version"]), strict=True)
        cells += zip(keys, values, strict=True)
    merged = sorted(merge_small(rows.accumulators, cells).items())
    found = [(*key, start, *values) for (start, *key), values in merged]
    return TupleRows(cell_schema(rows), found).frame()


def row_end(query: FamilyQuery, start_ms: int) -> int:
    """Return the end of the row that starts at ``start_ms``."""
    if query.step is None:
        return query.to_ms
    return min(query.step.end(query.step.start(start_ms)), query.to_ms)


def _has_end(layer: Layer, from_ms: int, to_ms: int, after_ms: int, until_ms: int) -> bool:
    """Return whether a window of the range ends in ``(after_ms, until_ms]``."""
    window = layer.window.start(max(after_ms, from_ms))
    return window < to_ms and layer.window.end(window) <= until_ms


def _evicted(layer: Layer, archived: pl.DataFrame, live: LiveRows) -> pl.DataFrame:
    """Return the archived rows that are not in live tables."""
    if archived.is_empty() or not live.facts:
        return archived
    newest = archived.get_column("window_start").max()
    assert isinstance(newest, int)
    if layer.window.end(newest) <= min(fact.evicted_ms for fact in live.facts.values()):
        return archived
    known = with_fact(archived, live.facts.values(), "evicted_ms")
    gone = layer.window.ends(pl.col("window_start")) <= pl.col("evicted_ms")
    return known.filter(gone.fill_null(value=True)).drop("evicted_ms")


def _heard(parts: LiveRows) -> pl.DataFrame:
    """Return the end of windows up to which each partition of a merge stage has all of a sender."""
    rows = [
        (fact.partition, who, final_ms)
        for fact in parts.facts.values()
        for who, final_ms in fact.heard.items()
    ]
    schema = {"held_by": pl.Int32(), "source_partition": pl.Int32(), "final_ms": pl.Int64()}
    return pl.DataFrame(rows, schema=schema, orient="row")
