"""Parts of the tests of state: rows of cells, a journal in memory, comparisons of full states."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from agents.fold.content import Content
from tables.state.block import TupleRows, encode_block
from tables.state.block_table import BlockTable, BlockWrite
from tables.state.cell import cell_schema
from tables.state.input_plan import InputPlan, plans_of
from tables.state.journal import Announcement, Claim, Delta, Entry, encode_entry, fingerprint_of
from tables.state.layer_table import FoldTable, LayerTable
from tables.state.partition_state import PartitionState
from tables.state.rollup_table import RollupTable, rollup_schema
from tests.support.common import DAY_MS, dataclasses_replace, small_map

MAP = small_map()
HOUR, DAY = MAP.layer("hour"), MAP.layer("day")
RAW_PLAN: InputPlan = plans_of(MAP)["flights.raw"]
DAY_PLAN: InputPlan = plans_of(MAP)["small.layer.day"]

Rows = pl.DataFrame | TupleRows
Cells = dict[tuple[Any, ...], tuple[int, int, int]]
"""Cells by key and window: events, sum of delays, version."""


def measured(delays: Sequence[int]) -> dict[str, int]:
    """Return the accumulators of events with these delays."""
    squares = sum(delay * delay for delay in delays)
    return {
        "events": len(delays), "n_delay": len(delays), "sum_delay": sum(delays),
        "min_delay": min(delays), "max_delay": max(delays),
        "sqlo_delay": squares % 2**64, "sqhi_delay": squares // 2**64,
    }  # fmt: skip


def hour_rows(cells: Iterable[tuple[str, str, int, int]], *, small: bool = False) -> Rows:
    """Return a delta's rows of one event a cell: origin, carrier, window start, delay."""
    schema = {name: kind for name, kind in cell_schema(HOUR).items() if name != "version"}
    rows = [
        {"key_origin": origin, "key_carrier": carrier, "window_start": start} | measured([delay])
        for origin, carrier, start, delay in cells
    ]
    if small:
        return TupleRows(schema, [tuple(row[name] for name in schema) for row in rows])
    return pl.DataFrame(rows, schema=schema)


def hour_block(cells: Iterable[tuple[str, str, int, int]], *, small: bool = False) -> bytes:
    """Return the bytes of :func:`hour_rows`."""
    return encode_block(hour_rows(cells, small=small))


def day_block(rows: Iterable[tuple[str, int, int, int, int]]) -> bytes:
    """Return a delta's block: carrier, fine start, sender, delay, version at the sender."""
    schema = {name: kind for name, kind in rollup_schema(DAY).items() if name != "version"}
    frame = [
        {
            "key_carrier": carrier,
            "fine_start": start,
            "source_partition": sender,
            "window_start": start - start % DAY_MS,
            "contributed": contributed,
        }
        | measured([delay])
        for carrier, start, sender, delay, contributed in rows
    ]
    return encode_block(pl.DataFrame(frame, schema=schema))


def cells_of(table: LayerTable, rows: pl.DataFrame | None = None) -> Cells:
    """Return a table's cells by key and window; fail if one comes twice or does not add up.

    ``rows`` are some of its cells.
    """
    assert isinstance(table, FoldTable | RollupTable)
    layer = table.layer
    found: Cells = {}
    for row in (table.cells() if rows is None else rows).iter_rows(named=True):
        identity = (*(row[name] for name in layer.key_columns), row["window_start"])
        assert identity not in found
        assert row["n_delay"] == row["events"]
        found[identity] = (row["events"], row["sum_delay"], row["version"])
    return found


def reload(table: LayerTable, disk: dict[int, BlockWrite], rng: random.Random) -> None:
    """Bring ``disk`` up to the table, as a store does; then fill an empty table from it."""
    keep(table, disk)
    blocks = list(disk.values())
    rng.shuffle(blocks)
    table.versions.clear()
    table._blocks.clear()
    table._sequence = 0
    for write in blocks:
        assert write.data is not None
        table.load(write.sequence, write.version, write.data)


def keep(table: BlockTable, disk: dict[int, BlockWrite]) -> None:
    """Take the table's writes into ``disk``, in their order."""
    for write in table.writes:
        if write.data is None:
            del disk[write.sequence]
        else:
            disk[write.sequence] = write
    table.writes.clear()


class Journal:
    """A journal in memory, and one state that has read all of it."""

    def __init__(self, plan: InputPlan, base: int = 0) -> None:
        self.plan = plan
        self.values: list[bytes] = []
        self.state = PartitionState(plan)
        self.append(claim(base=base))

    def append(self, entry: Entry) -> bool:
        """Append and apply; tell whether the entry stands."""
        value = encode_entry(entry)
        self.values.append(value)
        return self.state.apply(len(self.values) - 1, entry, fingerprint_of(value))

    def advance(self, content: Content) -> None:
        """Append the content of a chunk, as the partition's owner."""
        blocks = {name: encode_block(frame) for name, frame in content.blocks.items()}
        added = delta(self.state, content.stop, blocks, content.announced, content.ledger)
        assert added.start == content.start
        assert self.append(added)


def claim(revision: int = 1, digest: str = "digest", partitions: int = 2, base: int = 0) -> Claim:
    """Return a claim of the small map, or one that differs as told."""
    return Claim(revision, digest, partitions, base)


def delta(
    state: PartitionState,
    stop: int,
    blocks: dict[str, bytes] | None = None,
    announced: dict[int, Announcement] | None = None,
    ledger: dict[str, int] | None = None,
    **changes: object,
) -> Delta:
    """Return a delta that follows ``state``, but for ``changes``."""
    meta = state.meta
    entry = Delta(
        epoch=meta.epoch,
        revision=meta.revision,
        start=meta.next_offset,
        stop=stop,
        stream_time_ms=meta.stream_time_ms,
        floors={},
        announced=announced or {},
        ledger=ledger or {},
        blocks=blocks or {},
        evicted={},
        tail=None,
        snapshot=-1,
        has_events=True,
    )
    changed: Delta = dataclasses_replace(entry, **changes)
    return changed


def contents_of(state: PartitionState) -> tuple[object, ...]:
    """Return all of a state in a form that compares: meta, versions and cells by layer."""
    tables = {
        name: (dict(sorted(table.versions.items())), cells_of(table))
        for name, table in state.tables.items()
    }
    return state.meta, tables
