"""Facts: statements of partitions about a layer beside its cells, from which a reader plans.

Every fact but ``evicted_ms`` stays true: floors never fall, and archived windows stay so. So a
reader may plan with facts of before, and keeps of two the one that says more; from when on cells
are whole comes from the later one. The location of a partition's
cells of a window follows from the facts that came with them:

    windows that end   ... <= evicted_ms            evicted_ms < ...
    its cells are      final, in the archive        all in its table

A map may get a layer later, or a layer a measure. Earlier events are gone by then: such windows
are left out, or have null, wherever they leave a state; never half a value. From when on they are
whole is known by column: ``events``, which every layer has, stands for the layer itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import polars as pl

from tables.archive.protocol import CellRange
from tables.measures.registry import stored_for
from tables.model.errors import QueryError
from tables.model.layer import Layer
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.query.planner import NOTHING_KNOWN, LayerFacts


class PartitionFacts(msgspec.Struct, frozen=True, array_like=True):
    """The facts of one partition of a layer's input, as of one state.

    Attributes:
        partition: of the layer's input.
        position: the offset up to which its input is folded.
        closed_ms: windows that end at or before it are closed.
        floor_ms: the same of sealed windows.
        archived_ms: the same of windows that are final and in the archive.
        evicted_ms: only windows that end at or before it have been evicted.
        complete_ms: windows that start at or after it have all events; ``NEVER_ENDS_MS`` while that
            is not known.
        cells: the approximate number of cells of a window.
        heard: of a layer with a topic, by sender, the end of finer windows up to which it has all.
        fresh_ms: everything appended up to this wall-clock time is in its state.
        evicted_version: at least the greatest version of any window that was evicted.
        whole: the same as ``complete_ms`` of accumulators that the layer got later, by column.
        first_ms: only windows that start at or after it have ever had cells; ``NEVER_MS`` if not
            known. It falls if an older event comes.
        last_ms: only windows that start at or before it have cells, as of this state.
    """

    partition: int
    position: int
    closed_ms: int
    floor_ms: int
    archived_ms: int
    evicted_ms: int
    complete_ms: int
    cells: float
    heard: dict[int, int] = {}
    fresh_ms: int = NEVER_MS
    evicted_version: int = 2**62
    whole: dict[str, int] = {}
    first_ms: int = NEVER_MS
    last_ms: int = NEVER_ENDS_MS


_RISING = ("position", "closed_ms", "floor_ms", "archived_ms", "evicted_ms", "fresh_ms", "last_ms")
"""The facts of which the greater one says more."""


class KnownFacts:
    """The facts that a reader has heard, of any number of layers."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, PartitionFacts]] = {}

    def add(self, layer: str, facts: Iterable[PartitionFacts]) -> None:
        """Add facts of partitions; older facts change nothing."""
        known = self._known.setdefault(layer, {})
        for fact in facts:
            before = known.get(fact.partition)
            known[fact.partition] = fact if before is None else _both(before, fact)

    def archived_ms(self, layer: Layer) -> int:
        """Return the end up to which the windows of a layer are final and archived."""
        return min((fact.archived_ms for fact in self._all(layer)), default=NEVER_MS)

    def first_ms(self, layer: Layer) -> int:
        """Return the least start of the windows of a layer that may have had cells."""
        return min((fact.first_ms for fact in self._all(layer)), default=NEVER_MS)

    def whole(self, layer: Layer) -> dict[str, int]:
        """Return :func:`whole_of` the partitions of which something is known."""
        return whole_of(self._known.get(layer.name, {}).values())

    def silent(self, layer: Layer) -> list[int]:
        """Return the partitions of a layer's input of which nothing is known."""
        known = self._known.get(layer.name, {})
        return [partition for partition in range(layer.partitions) if partition not in known]

    def of(self, layer: Layer, now_ms: int) -> LayerFacts:
        """Return the facts of a layer, which may be empty.

        While some partitions are not known, those that are say how many cells there may be, and
        between which windows unless they have no window.
        """
        facts = self._all(layer)
        if not facts:
            some = self._known.get(layer.name, {}).values()
            firsts = [fact.first_ms for fact in some if fact.first_ms < NEVER_ENDS_MS]
            lasts = [fact.last_ms for fact in some if fact.last_ms > NEVER_MS]
            return dataclasses.replace(
                NOTHING_KNOWN,
                cells=sum(fact.cells for fact in some) or 1.0,
                first_ms=min(firsts, default=NEVER_MS),
                last_ms=max(lasts, default=NEVER_ENDS_MS),
            )
        kept_ms = NEVER_MS
        if layer.archive_ttl_ms:
            # Windows that were not evicted have not expired, however old they are.
            evicted_ms = max(fact.evicted_ms for fact in facts)
            kept_ms = min(now_ms - layer.archive_ttl_ms, max(evicted_ms, NEVER_MS))
        return LayerFacts(
            sealed_ms=min(fact.floor_ms for fact in facts),
            closed_ms=min(fact.closed_ms for fact in facts),
            complete_ms=max(fact.complete_ms for fact in facts),
            kept_ms=kept_ms,
            cells=sum(fact.cells for fact in facts),
            whole=whole_of(facts),
            first_ms=min(fact.first_ms for fact in facts),
            last_ms=max(fact.last_ms for fact in facts),
        )

    def _all(self, layer: Layer) -> Sequence[PartitionFacts]:
        """Return the facts of all partitions, nothing while one is not known."""
        known = self._known.get(layer.name, {})
        return () if len(known) < layer.partitions else tuple(known.values())


def with_fact(rows: pl.DataFrame, facts: Iterable[PartitionFacts], name: str) -> pl.DataFrame:
    """Return rows with a fact of their ``source_partition`` (Int64), null if there is none."""
    values = [(fact.partition, getattr(fact, name)) for fact in facts]
    schema = {"source_partition": pl.Int32(), name: pl.Int64()}
    known = pl.DataFrame(values, schema=schema, orient="row")
    return rows.join(known, "source_partition", "left", maintain_order="left")


def whole_of(facts: Iterable[PartitionFacts]) -> dict[str, int]:
    """Return, by column, the time from which all partitions are whole, unless always."""
    found: dict[str, int] = {}
    for fact in facts:
        for column, whole_ms in (("events", fact.complete_ms), *fact.whole.items()):
            if whole_ms > found.get(column, NEVER_MS):
                found[column] = whole_ms
    return found


def _both(one: PartitionFacts, other: PartitionFacts) -> PartitionFacts:
    """Return two facts of one partition as one; for cells, the latest of both."""
    later = other if other.position >= one.position else one
    return msgspec.structs.replace(
        other,
        **{name: max(getattr(one, name), getattr(other, name)) for name in _RISING},
        complete_ms=later.complete_ms,
        # An empty table says nothing of how full windows are.
        cells=other.cells or one.cells,
        heard={},
        whole=later.whole,
        first_ms=min(one.first_ms, other.first_ms),
    )


def check_began(layer: Layer, cells: CellRange, began_ms: int) -> None:
    """Refuse a range that begins before the map had the layer.

    Raises:
        QueryError: it does.
    """
    if cells.from_ms < began_ms < NEVER_ENDS_MS:
        raise QueryError(
            f"cannot read cells of {layer.name}: the map has had it only since {began_ms} of the"
            f" events' time; got {cells.from_ms}; want a range from"
            f" {layer.window.first_start(began_ms)} on"
        )


def later_measures(
    layer: Layer, whole: Mapping[str, int], from_ms: int = NEVER_MS
) -> dict[str, int | None]:
    """Return, by measure, the time from which it is whole, if that is after the start of a range.

    The time is None while it is not known.
    """
    cells_ms = whole.get("events", NEVER_MS)
    found: dict[str, int | None] = {}
    for measure in layer.measures:
        columns = (whole.get(name, NEVER_MS) for name in stored_for(layer, measure))
        whole_ms = max(cells_ms, *columns)
        if whole_ms > from_ms:
            found[measure.name] = whole_ms if whole_ms < NEVER_ENDS_MS else None
    return found


def described(layer: Layer, whole: Mapping[str, int]) -> dict[str, int | None]:
    """Return, by measure of a state's layer, the time from which it is whole, unless always.

    ``cells`` stands for the layer itself; a time is None while it is not known.
    """
    times = {acc.column: whole.get(acc.column, NEVER_ENDS_MS) for acc in layer.accumulators}
    found: dict[str, int | None] = {}
    if (cells_ms := times.get("events", NEVER_MS)) > NEVER_MS:
        found["cells"] = cells_ms if cells_ms < NEVER_ENDS_MS else None
    return found | later_measures(layer, times)
