"""Rules 8 to 13, dropped: emission, eviction, announcements, coarser layers, rows."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import msgspec
import polars as pl

import agents.partition.writers
from agents.fold.content import Content
from agents.fold.gather import Gatherer
from agents.partition.owner import Owner
from agents.partition.sinks import FEED, Sinks
from agents.partition.writers import archive_rows
from tables.model.errors import ArchiveError
from tables.model.layer import Layer
from tables.model.window import NEVER_MS
from tables.query.feed_records import PublishedRecord, feed_records
from tables.state.contribution import split_cells
from tables.state.journal import NOTHING_ANNOUNCED, Announcement, Delta
from tables.state.partition_state import PartitionState
from tables.state.rollup_table import RollupTable
from tests.simulation.loop import PROCESS
from tests.simulation.rules import Patch, rule
from tests.simulation.sink import Row, SimulatedArchive, Value

_claim = Owner.claim
_compose = Owner._compose
_evictable = Sinks.evictable
_names_of = Sinks.names_of
_floors = Gatherer._floors

COUNTERS = (0, 0, 0, NEVER_MS)


def _windows(sinks: Sinks, floors: dict[str, int], least: Any) -> dict[str, list[int]]:
    """Return windows at or below the floors whose acknowledgements satisfy ``least``."""
    found = {}
    for layer in sinks._plan.layers:
        acks = [sinks._acks[layer.name, sink] for sink in sinks.names_of(layer)]
        found[layer.name] = [
            window
            for window, version in sinks._state.tables[layer.name].versions.items()
            if layer.window.end(window) <= floors[layer.name]
            and all(least(acked.acknowledged_version(window), version) for acked in acks)
        ]
    return found


def _evicting(least: Any) -> list[Patch]:
    def evictable(self: Sinks) -> dict[str, list[int]]:
        floors = {layer.name: self._state.floor_ms(layer) for layer in self._plan.layers}
        return _windows(self, floors, least)

    return [(Sinks, "evictable", evictable)]


@rule(8, "a sent cell carries its version", quick="pure")
def versions() -> list[Patch]:
    """Send contributions without version."""

    def without(coarser: Layer, cells: pl.DataFrame) -> list[tuple[int, bytes]]:
        return split_cells(coarser, cells.with_columns(version=pl.lit(0, pl.Int64)))

    return [(agents.partition.writers, "split_cells", without)]


@rule(8, "a published cell carries its version", quick="pure")
def published_versions() -> list[Patch]:
    """Publish the cells of a window with the largest version among them."""

    def largest(
        layer: Layer, revision: int, source_partition: int, cells: pl.DataFrame
    ) -> list[PublishedRecord]:
        version = pl.col("version").max().over("window_start") + 1
        return feed_records(layer, revision, source_partition, cells.with_columns(version))

    return [(agents.partition.writers, "feed_records", largest)]


@rule(9, "a window is evicted only when every sink has acknowledged it", quick="pure")
def evict_acknowledged() -> list[Patch]:
    """Evict sealed windows."""
    return _evicting(lambda _acked, _version: True)


@rule(9, "a feed is such a sink", quick="pure", seed=135)
def evict_published() -> list[Patch]:
    """Evict windows that a feed lacks."""

    def names_of(self: Sinks, layer: Layer) -> list[str]:
        return [sink for sink in _names_of(self, layer) if sink != FEED]

    def evictable(self: Sinks) -> dict[str, list[int]]:
        with mock.patch.object(Sinks, "names_of", names_of):
            return _evictable(self)

    return [(Sinks, "evictable", evictable)]


@rule(9, "an acknowledgement counts for its version only")
def evict_at_its_version() -> list[Patch]:
    """Evict windows that were acknowledged at any version."""
    return _evicting(lambda acked, _version: acked >= 0)


@rule(9, "a delta does not evict windows that it changes", quick="pure")
def evict_what_was_sealed_before() -> list[Patch]:
    """Evict windows that the delta itself seals."""

    def compose(self: Owner, content: Content, tail: Any) -> Delta:
        delta = _compose(self, content, tail)
        if self.plan.finer is None:
            floors = {layer.name: delta.floors.get(layer.name, NEVER_MS) for layer in
                      self.plan.layers}  # fmt: skip
        else:
            announced = delta.announced.values()
            everyone = len(announced) == self.plan.senders
            floor = min(f for _, f in announced) if everyone else NEVER_MS
            floors = dict.fromkeys((layer.name for layer in self.plan.layers), floor)
        evicted = _windows(self.sinks, floors, lambda acked, version: acked >= version)
        return msgspec.structs.replace(
            delta, evicted={name: windows for name, windows in evicted.items() if windows}
        )

    return [(Owner, "_compose", compose)]


@rule(10, "a new owner takes nothing as acknowledged", quick="pure")
def new_owner_sends_again() -> list[Patch]:
    """Take all that is held as acknowledged."""

    async def claim(self: Owner) -> None:
        await _claim(self)
        for (layer, _), acked in self.sinks._acks.items():
            acked.acknowledge(self.state.tables[layer].versions)

    return [(Owner, "claim", claim)]


@rule(11, "an announcement stays below windows that the layer topic has not acknowledged")
def announce_acknowledged() -> list[Patch]:
    """Announce watermark and floor as they are."""

    def announcement(self: Sinks, layer: Layer, coarser: str) -> Announcement:
        del coarser
        return Announcement(self._state.closed_ms(layer), self._state.floor_ms(layer))

    return [(Sinks, "announcement", announcement)]


@rule(11, "no slack stands in for acknowledgements")
def announce_with_slack() -> list[Patch]:
    """Announce the floor with some slack, whatever is acknowledged."""

    def announcement(self: Sinks, layer: Layer, coarser: str) -> Announcement:
        del coarser
        floor = max(NEVER_MS, self._state.floor_ms(layer) - 8)
        return Announcement(self._state.closed_ms(layer), floor)

    return [(Sinks, "announcement", announcement)]


@rule(
    12,
    "floors of a coarser layer are the least over all senders, also those not heard yet",
    quick="pure",
    seed=10,
)
def least_of_all_senders() -> list[Patch]:
    """Take the least over the senders that had an event."""

    def heard(announced: dict[int, Announcement]) -> list[Announcement]:
        return [one for one in announced.values() if one.final_ms > NEVER_MS]

    def announcements(self: PartitionState) -> list[Announcement]:
        return heard(self.meta.announced)

    def floors(self: Gatherer, announced: dict[int, Announcement], sender: int) -> tuple[int, int]:
        del self
        own_floor = announced.get(sender, NOTHING_ANNOUNCED).final_ms
        return min((one.final_ms for one in heard(announced)), default=NEVER_MS), own_floor

    return [(PartitionState, "_announcements", announcements), (Gatherer, "_floors", floors)]


@rule(12, "a contribution replaces a smaller version only")
def larger_version_stays() -> list[Patch]:
    """Let the last value replace the earlier one."""

    def newer(self: Gatherer, rows: pl.DataFrame, table: RollupTable, doing: Any) -> pl.DataFrame:
        doing.ledger.add_layer(self._layer.name, "folded", rows.height)
        last = rows.unique(table.contribution, keep="last", maintain_order=True)
        return last.select(table.delta_columns)

    def latest(self: RollupTable, rows: pl.DataFrame) -> pl.DataFrame:
        settled = rows.filter(pl.col("fine_start").is_null())
        single = rows.filter(pl.col("fine_start").is_not_null()).sort("version")
        return pl.concat([settled, single.unique(self.contribution, keep="last")])

    return [(Gatherer, "_newer", newer), (RollupTable, "_latest", latest)]


def _deaf(*, to_all: bool, to_own: bool) -> list[Patch]:
    """Take contributions as if no floor had been announced."""

    def floors(self: Gatherer, announced: dict[int, Announcement], sender: int) -> tuple[int, int]:
        floor, own_floor = _floors(self, announced, sender)
        return (NEVER_MS if to_all else floor), (NEVER_MS if to_own else own_floor)

    return [(Gatherer, "_floors", floors)]


@rule(12, "a row of a sealed coarser window is dropped", bears=False)
def drop_the_sealed() -> list[Patch]:
    """Look at the sender's own floor only.

    It is never below the layer's, and the finer window ends inside the coarser one: a sealed window
    is settled too.
    """
    return _deaf(to_all=True, to_own=False)


@rule(12, "a row of a settled finer window is dropped")
def drop_the_settled() -> list[Patch]:
    """Look at the floor of the coarser layer only."""
    return _deaf(to_all=False, to_own=True)


@rule(12, "rows of sealed and settled windows are dropped")
def drop_sealed_and_settled() -> list[Patch]:
    """Take every row."""
    return _deaf(to_all=True, to_own=True)


@rule(13, "write times are the same for all owners", quick="pure", seed=4)
def write_times() -> list[Patch]:
    """Write with the time of the writer's clock, which is not that of the others."""

    def rows_now(owner: Owner, emission: Any) -> tuple[pl.DataFrame, pl.Series]:
        rows, times = archive_rows(owner, emission)
        shifted_s = PROCESS.get().number * 7 % 5 * 20
        now = int((asyncio.get_running_loop().time() + shifted_s) * 1_000_000)
        return rows, pl.Series([now] * len(times), dtype=pl.Int64)

    return [(agents.partition.writers, "archive_rows", rows_now)]


@rule(13, "the larger write time stays", quick="pure", seed=4)
def last_write_wins() -> list[Patch]:
    """Let the last value stay."""

    def put(self: SimulatedArchive, row: Row, write_time: int, value: Value) -> None:
        self.rows[row] = write_time, value

    return [(SimulatedArchive, "put", put)]


@rule(13, "rows are absolute values", quick="pure", seed=4)
def absolute_values() -> list[Patch]:
    """Write the difference since the process last wrote the row."""
    sent: dict[tuple[int, Row], Value] = {}

    async def write_row(self: SimulatedArchive, row: Row, write_time: int, value: Value) -> None:
        writer = PROCESS.get().number, row
        before = sent.get(writer, COUNTERS)
        added = (*(a - b for a, b in zip(value[:3], before[:3], strict=True)), value[3])

        def act() -> None:
            _, known = self.rows.get(row, (0, COUNTERS))
            sums = (a + b for a, b in zip(known[:3], added[:3], strict=True))
            self.rows[row] = write_time, (*sums, max(known[3], added[3]))

        if self.away:
            raise ArchiveError("the archive is away")
        await self._faults.request(act, ArchiveError, lingers=True)
        sent[writer] = value

    return [(SimulatedArchive, "_write_row", write_row)]
