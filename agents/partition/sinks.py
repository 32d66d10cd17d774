"""The sinks of one owner's layers: the cells due at each, and those it has acknowledged.

state -(due)-> emission -> sink -(acknowledge)-> evictable -> the next delta evicts
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import polars as pl

from agents.partition.acks import Acks, oldest_acknowledged
from tables.model.layer import Layer
from tables.model.limits import EVICTED_MAX
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.state.cell import whole_only
from tables.state.contribution import added_up
from tables.state.input_plan import InputPlan
from tables.state.journal import Announcement, Delta
from tables.state.partition_state import PartitionState

ARCHIVE = ".archive"
"""The sink that every layer but a combiner has; the others are the names of layers, which begin
with a letter, and feeds."""

FEED = ".feed"
"""The sink of a published layer for other programs. Open cells are never sent to it."""


@dataclasses.dataclass(slots=True, frozen=True)
class Emission:
    """Cells of one layer on their way to one sink, captured from applied state.

    On the way to a coarser layer they are added up to its key (:func:`contribution.added_up`).
    ``versions`` are those of the windows at capture: an acknowledgement covers them. ``announced``
    is the announcement that may go to a coarser layer with the cells. ``whole`` has, by
    accumulator, the time from which on that layer gets all windows.
    """

    layer: Layer
    sink: str
    cells: pl.DataFrame
    versions: dict[int, int]
    announced: Announcement
    whole: dict[str, int]


@dataclasses.dataclass(slots=True, frozen=True)
class Due:
    """An emission that is still to be made, of the state as it was when it became due.

    It is made from at most ``rows`` rows. ``emission`` may be called in any thread.
    """

    rows: int
    emission: Callable[[], Emission]


class Sinks:
    """The cells of a state that the sinks of all layers have; none at first (rule 10).

    Attributes:
        may_evict: set when more windows may have become evictable; the eviction clears it.
    """

    def __init__(self, plan: InputPlan, state: PartitionState) -> None:
        self._plan = plan
        self._state = state
        self._acks = {
            (layer.name, sink): Acks(state.tables[layer.name].versions)
            for layer in plan.layers
            for sink in self.names_of(layer)
        }
        # By coarser layer, the floor that was announced to every partition of its topic.
        self._announced_floors: dict[str, int] = {}
        self.may_evict = asyncio.Event()

    def names_of(self, layer: Layer) -> list[str]:
        """Return the sinks of ``layer``; a combiner has only its merge stage."""
        names = [coarser.name for coarser in self._plan.coarser[layer.name]]
        if layer.is_combiner:
            return names
        return [ARCHIVE, FEED, *names] if layer.publish else [ARCHIVE, *names]

    # Cells to send.

    def due(self, layer: Layer, sink: str, *, early: bool = False) -> Due | None:
        """Return the closed cells that ``sink`` has not acknowledged at their version, if any.

        ``early`` includes those of open windows, because emission at any time is free (rule 8).
        Windows that the layer does not have whole are not sent.
        """
        early = early and self._state.is_known(layer)
        versions = self._pending(layer, sink) if early else self._pending_closed(layer, sink)
        if not versions:
            return None
        table = self._state.tables[layer.name]
        collect = table.collect(versions)
        announced = self.announcement(layer, sink)
        complete_ms = self._state.complete_ms(layer)
        whole = self.whole_for(layer, sink)
        acks = self._acks[layer.name, sink]
        sent = {
            window: version
            for window in versions
            if (version := acks.acknowledged_version(window)) >= 0
        }

        def emission() -> Emission:
            cells = whole_only(collect(), {"events": complete_ms})
            if sink not in (ARCHIVE, FEED):
                cells = added_up(layer, self._coarser(layer, sink), cells)
            if sent:
                start = pl.col("window_start")
                known = start.replace_strict(sent, default=-1, return_dtype=pl.Int64)
                cells = cells.filter(pl.col("version") > known)
            return Emission(layer, sink, cells, versions, announced, whole)

        return Due(table.rows_of(versions), emission)

    def has_due(self, layer: Layer, sink: str) -> bool:
        """Return whether :meth:`due` would return closed cells."""
        return bool(self._pending_closed(layer, sink))

    def has_changed(self, layer: Layer, sink: str) -> bool:
        """Return whether cells, also of open windows, have changed since ``sink`` got them."""
        return bool(self._pending(layer, sink))

    def whole_for(self, layer: Layer, sink: str) -> dict[str, int]:
        """Return the times from which a coarser layer gets all windows; empty for other sinks."""
        if sink in (ARCHIVE, FEED):
            return {}
        return self._state.sends_whole(layer, self._coarser(layer, sink))

    def announcement(self, layer: Layer, coarser: str) -> Announcement:
        """Return the announcement for ``coarser``: times up to which its log has all cells.

        All of it comes from one snapshot of the state (rule 11).
        """
        closed, floor = self._state.closed_ms(layer), self._state.floor_ms(layer)
        waiting = self._acks[layer.name, coarser].first_pending()
        if waiting is None or waiting >= layer.window.start(closed):
            return Announcement(closed, floor)
        least = layer.window.end(waiting) - 1
        return Announcement(min(closed, least), min(floor, least))

    # Acknowledgements.

    def acknowledge(self, emission: Emission) -> None:
        """Record that the sink has all cells of ``emission``."""
        self._acks[emission.layer.name, emission.sink].acknowledge(emission.versions)
        self.may_evict.set()

    def announced(self, coarser: str, announcement: Announcement) -> None:
        """Record that every partition of a coarser layer's topic has this announcement."""
        self._announced_floors[coarser] = announcement.final_ms
        self.may_evict.set()

    def applied(self, delta: Delta) -> None:
        """Record that the state has applied a delta."""
        for (name, _), acks in self._acks.items():
            if name in delta.evicted:
                acks.forget(delta.evicted[name])
            if name in delta.blocks:
                acks.changed(self._state.tables[name].touched)
        self.may_evict.set()

    # Waiting cells.

    def waiting_open(self, layer: Layer) -> int:
        """Return the number of open windows that some sink lacks at their version.

        Feeds do not count: they get no open cells.
        """
        return sum(
            len(self._pending(layer, sink)) - len(self._pending_closed(layer, sink))
            for sink in self.names_of(layer)
            if sink != FEED
        )

    def unacknowledged(self, layer: Layer) -> int:
        """Return the number of closed windows that some sink has not acknowledged."""
        return sum(len(self._pending_closed(layer, sink)) for sink in self.names_of(layer))

    def pending_bytes(self) -> int:
        """Return the approximate memory of closed cells that some sink has not acknowledged.

        Open cells are not among them: they wait for events, and a pause would not free them.
        """
        return sum(
            self._state.tables[layer.name].bytes_of(
                {w for sink in self.names_of(layer) for w in self._pending_closed(layer, sink)}
            )
            for layer in self._plan.layers
        )

    def evictable(self) -> dict[str, list[int]]:
        """Return the sealed windows, by layer, that every sink has acknowledged (rule 9).

        They are sealed before the delta that evicts them, so it cannot change their cells. Older
        windows are evicted first, so that all evicted windows end before all that remain. Windows
        that do not fit into one delta wait for the next.
        """
        room = EVICTED_MAX
        found: dict[str, list[int]] = {}
        for layer in self._plan.layers:
            floor = min(self._state.floor_ms(layer), self._announced_ms(layer))
            table = self._state.tables[layer.name]
            oldest = table.oldest
            if oldest is None or layer.window.end(oldest) > floor:
                continue
            acks = [self._acks[layer.name, sink] for sink in self.names_of(layer)]
            if any(one.acknowledged_version(oldest) < table.versions[oldest] for one in acks):
                continue
            found[layer.name] = oldest_acknowledged(layer.window, floor, table.versions, acks, room)
            room -= len(found[layer.name])
        return found

    def _announced_ms(self, layer: Layer) -> int:
        """Return the floor up to which readers do not need the cells any more.

        Parts of cells are not archived: a combiner keeps them until its merge stage can know that
        it has them all.
        """
        if not layer.is_combiner:
            return NEVER_ENDS_MS
        (coarser,) = self._plan.coarser[layer.name]
        return self._announced_floors.get(coarser.name, NEVER_MS)

    def _pending(self, layer: Layer, sink: str) -> dict[int, int]:
        """Return the windows, open ones too, that ``sink`` lacks at their version."""
        return self._acks[layer.name, sink].pending()

    def _pending_closed(self, layer: Layer, sink: str) -> dict[int, int]:
        # Windows end one after the other: all before the one that holds this time are closed.
        stop = layer.window.start(self._state.closed_ms(layer))
        pending = self._pending(layer, sink)
        return {window: version for window, version in pending.items() if window < stop}

    def _coarser(self, layer: Layer, name: str) -> Layer:
        return next(coarser for coarser in self._plan.coarser[layer.name] if coarser.name == name)
