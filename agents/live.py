"""Live reads: the applied cells of owners, with the facts that say where the rest of them is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

from agents.emission import ARCHIVE
from agents.owner import Owner
from tables.answer import matching
from tables.block import repeated
from tables.cell import whole_only
from tables.facts import PartitionFacts
from tables.layer import Layer
from tables.live import LiveRead, LiveRows, Told
from tables.rollup_table import RollupTable
from tables.table import NEVER_ENDS_MS, NEVER_MS


def read_live(owners: Iterable[Owner], read: LiveRead) -> LiveRows:
    """Read the tables of owners of the layer's input; facts and rows are of one state each."""
    found = LiveRows()
    key = {f"key_{name}": value for name, value in read.keys.single.items()}
    for owner in owners:
        if not read.wants(owner.partition):
            continue
        table = owner.state.tables[read.layer.name]
        found.facts[owner.partition] = facts_of(owner, read.layer)
        if read.from_ms >= read.to_ms:
            continue
        if read.parts:
            assert isinstance(table, RollupTable), f"{read.layer.name} has no contributions"
            rows = table.parts_in(read.from_ms, read.to_ms, key)
            place = "held_by"
        elif read.after is not None and owner.partition in read.after:
            rows = _news(read, owner, read.after[owner.partition])
            place = "source_partition"
        else:
            rows = table.cells_in(read.from_ms, read.to_ms, key)
            place = "source_partition"
        # What is read of a table by key has been looked for by the fields of one value.
        if rows.height and (read.after is not None or not read.keys.is_single):
            rows = matching(read.layer, rows, read.keys)
        rows = whole_only(rows, {"events": owner.state.complete_ms(read.layer)})
        if rows.height:
            column = repeated(owner.partition, rows.height, pl.Int32).alias(place)
            found.rows.append(rows.hstack([column]))
    return found


def _news(read: LiveRead, owner: Owner, told: Told) -> pl.DataFrame:
    """Return the cells that have changed, or closed, since a follower was told so much."""
    layer, table = read.layer, owner.state.tables[read.layer.name]
    closed_ms = owner.state.closed_ms(layer)

    def has_closed(window: int) -> bool:
        return told.closed_ms < layer.window.end(window) <= closed_ms

    windows = {
        window
        for window, version in table.versions.items()
        if read.from_ms <= window < read.to_ms and (version > told.version or has_closed(window))
    }
    closed = pl.col("window_start").is_in([window for window in windows if has_closed(window)])
    return table.cells_of(windows).filter((pl.col("version") > told.version) | closed)


def facts_of(owner: Owner, layer: Layer) -> PartitionFacts:
    """Return what a partition tells readers of one of its layers, or of a combiner."""
    state = owner.state
    table = state.tables[layer.name]
    floor = state.floor_ms(layer)
    oldest_end = NEVER_ENDS_MS if table.oldest is None else layer.window.end(table.oldest)
    evicted_ms = min(floor, oldest_end - 1)
    archived_ms = evicted_ms if layer.is_combiner else owner.announcement(layer, ARCHIVE)[1]
    return PartitionFacts(
        partition=owner.partition,
        position=owner.position,
        closed_ms=state.closed_ms(layer),
        floor_ms=floor,
        archived_ms=archived_ms,
        evicted_ms=evicted_ms,
        complete_ms=state.complete_ms(layer),
        cells=table.rows / max(1, len(table.versions)),
        heard={sender: final for sender, (_, final) in state.meta.announced.items()},
        evicted_version=owner.evicted_versions[layer.name],
        whole=_later_columns(layer, state.whole(layer)),
    )


def _later_columns(layer: Layer, whole: Mapping[str, int]) -> dict[str, int]:
    """Return from when on columns are whole that have not always been."""
    columns = (acc.column for acc in layer.accumulators if acc.kind != "events")
    found = {column: whole.get(column, NEVER_ENDS_MS) for column in columns}
    return {column: ms for column, ms in found.items() if ms > NEVER_MS}
