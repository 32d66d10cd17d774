"""Live reads: the applied cells of owners, and the facts by which a reader finds the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import polars as pl

from agents.partition.owner import Owner
from agents.partition.sinks import ARCHIVE
from tables.model.layer import EVENTS, Layer
from tables.model.window import NEVER_ENDS_MS, NEVER_MS, START_MS_MIN
from tables.query.answer import matching
from tables.query.facts import PartitionFacts
from tables.query.live import FollowerPosition, LiveJob, LiveRead
from tables.state.block import repeated
from tables.state.cell import whole_only
from tables.state.rollup_table import RollupTable

FreshMs = Callable[[str, int, int], int | None]
"""Returns the wall-clock time up to which all records appended to a topic's partition lie below an
offset; None if the log is known to be longer, or is not known."""


def unknown_fresh_ms(_topic: str, _partition: int, _offset: int) -> int | None:
    """Return None: the log is not known."""
    return None


def live_job(
    owners: Iterable[Owner], read: LiveRead, fresh_ms: FreshMs = unknown_fresh_ms
) -> LiveJob:
    """Return a job that reads the tables of owners; facts and rows are of one state of each owner.

    Blocks never change, so any thread may make the rows, which takes long.
    """
    facts: dict[int, PartitionFacts] = {}
    makers: list[Callable[[], pl.DataFrame]] = []
    rows = 0
    for owner in owners:
        if not read.wants(owner.partition):
            continue
        facts[owner.partition] = facts_of(owner, read.layer, fresh_ms)
        if read.from_ms < read.to_ms:
            rows += owner.state.tables[read.layer.name].rows
            makers.append(_rows_of(owner, read))

    def frames() -> list[pl.DataFrame]:
        return [frame for maker in makers if (frame := maker()).height]

    return LiveJob(facts, frames, rows)


def _rows_of(owner: Owner, read: LiveRead) -> Callable[[], pl.DataFrame]:
    """Return a function that makes the rows of one owner's table, with a partition column."""
    table, partition = owner.state.tables[read.layer.name], owner.partition
    key = {f"key_{name}": value for name, value in read.keys.single.items()}
    complete_ms = owner.state.complete_ms(read.layer)
    column = "source_partition"
    # A table that was read by key has been searched by the fields that have one value.
    is_matched = read.keys.is_single
    if read.parts:
        assert isinstance(table, RollupTable), f"{read.layer.name} has no contributions"
        cells = table.collect_parts_in(read.from_ms, read.to_ms, key)
        column = "held_by"
    elif read.after is not None and partition in read.after:
        cells = _changes(read, owner, read.after[partition])
        is_matched = False
    else:
        cells = table.collect_in(read.from_ms, read.to_ms, key)

    def rows() -> pl.DataFrame:
        found = cells()
        if found.height and not is_matched:
            found = matching(read.layer, found, read.keys)
        found = whole_only(found, {"events": complete_ms})
        return found.hstack([repeated(partition, found.height, pl.Int32).alias(column)])

    return rows


def _changes(read: LiveRead, owner: Owner, since: FollowerPosition) -> Callable[[], pl.DataFrame]:
    """Return a job for the cells that have changed, or closed, since a follower's position."""
    layer, table = read.layer, owner.state.tables[read.layer.name]
    # Windows that have closed since are those that start in between.
    first = layer.window.start(max(since.closed_ms, START_MS_MIN))
    stop = layer.window.start(max(owner.state.closed_ms(layer), START_MS_MIN))
    windows = {
        window
        for window, version in table.versions.items()
        if (version > since.version or first <= window < stop)
        and read.from_ms <= window < read.to_ms
    }
    cells = table.collect(windows)

    def changes() -> pl.DataFrame:
        start = pl.col("window_start")
        closed = (start >= first) & (start < stop)
        return cells().filter((pl.col("version") > since.version) | closed)

    return changes


def facts_of(owner: Owner, layer: Layer, fresh_ms: FreshMs) -> PartitionFacts:
    """Return the facts of a partition about one of its layers, or about a combiner."""
    state = owner.state
    table = state.tables[layer.name]
    floor, first = state.floor_ms(layer), state.meta.first_ms
    oldest_end = NEVER_ENDS_MS if table.oldest is None else layer.window.end(table.oldest)
    evicted_ms = min(floor, oldest_end - 1)
    archived_ms = evicted_ms if layer.is_combiner else owner.sinks.announcement(layer, ARCHIVE)[1]
    return PartitionFacts(
        partition=owner.partition,
        position=owner.position,
        closed_ms=state.closed_ms(layer),
        floor_ms=floor,
        archived_ms=archived_ms,
        evicted_ms=evicted_ms,
        complete_ms=state.complete_ms(layer),
        cells=table.rows / max(1, len(table.versions)),
        heard={sender: one.final_ms for sender, one in state.meta.announced.items()},
        fresh_ms=_fresh_ms(owner, fresh_ms),
        evicted_version=owner.evicted_versions[layer.name],
        whole=_later_columns(layer, state.whole(layer)),
        # A state that began before first windows were kept does not know its own.
        first_ms=NEVER_MS if first is None else first.get(layer.name, NEVER_ENDS_MS),
        last_ms=NEVER_ENDS_MS if state.plan.finer is not None else state.meta.stream_time_ms,
    )


def _fresh_ms(owner: Owner, fresh_ms: FreshMs) -> int:
    """Return the wall-clock time up to which all appended records are in an owner's state."""
    known = fresh_ms(owner.plan.topic, owner.partition, owner.position)
    if known is not None:
        return known
    # Behind: the state has all records up to the last one that is folded.
    tail = owner.state.meta.tail
    return NEVER_MS if tail is None else tail[0]


def _later_columns(layer: Layer, whole: Mapping[str, int]) -> dict[str, int]:
    """Return the times from which on columns are whole, for those that have not always been."""
    columns = (acc.column for acc in layer.accumulators if acc != EVENTS)
    found = {column: whole.get(column, NEVER_ENDS_MS) for column in columns}
    return {column: ms for column, ms in found.items() if ms > NEVER_MS}
