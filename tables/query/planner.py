"""The planner: from which layers a request to a family is answered, with the fewest cells.

A plan is a pure function of the request and of the facts of the layers. Exactness decides which
cells may be used: a coarser cell only once its window is sealed and complete, else finer cells, so
that the answer is the fold of the raw log up to one position of each source partition. If that
would be too many cells, coarser cells that are only closed are used too, and the answer is
``settling``: late events may still change it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tables.measures.registry import stored_for
from tables.model.errors import QueryError
from tables.model.layer import EVENTS, Layer
from tables.model.window import NEVER_ENDS_MS, NEVER_MS, time_text
from tables.query.cover import Choice, GapError, Segment, cover, cover_steps
from tables.query.family import FamilyQuery, KeyFilter

Exactness = Literal["exact", "settling"]


@dataclasses.dataclass(frozen=True, slots=True)
class LayerFacts:
    """The known facts of one layer over all its partitions; every time may be an earlier one.

    They are those of :class:`tables.query.facts.PartitionFacts`, of which ``floor_ms`` is
    ``sealed_ms`` here. Windows that start at or after ``kept_ms`` have not expired in the archive;
    ``whole`` has ``complete_ms`` too, as that of ``events``.
    """

    sealed_ms: int = NEVER_MS
    closed_ms: int = NEVER_MS
    complete_ms: int = NEVER_MS
    kept_ms: int = NEVER_MS
    cells: float = 1.0
    whole: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first_ms: int = NEVER_MS
    last_ms: int = NEVER_ENDS_MS

    def with_cells(self, from_ms: int, to_ms: int) -> tuple[int, int]:
        """Return the part of a range in which there may be cells.

        Cells that come while a plan is carried out are read too; they are not counted before.
        """
        start = min(max(from_ms, self.first_ms), to_ms)
        return start, max(min(to_ms, self.last_ms + 1), start)


NOTHING_KNOWN = LayerFacts(complete_ms=NEVER_ENDS_MS)


@dataclasses.dataclass(frozen=True, slots=True)
class QueryPlan:
    """The segments to read, in order of time, and the exactness of their answer."""

    segments: tuple[Segment, ...]
    exactness: Exactness

    @property
    def cells(self) -> float:
        """The approximate number of cells that are read."""
        return sum(segment.cells for segment in self.segments)


def boundaries_of(query: FamilyQuery) -> int:
    """Return the approximate number of boundaries that planning compares at most."""
    span_ms = query.to_ms - query.from_ms
    windows = [layer.window for layer in query.layers[1:]]
    if query.step is not None:
        windows.append(query.step)
    return sum(span_ms // window.shortest_ms for window in windows)


def unknown_ends(query: FamilyQuery, facts: Mapping[str, LayerFacts]) -> list[str]:
    """Return the open ends, ``from`` or ``to``, of which nothing is known."""
    known = facts.get(query.family.base.name, LayerFacts())
    first_ms = max(known.first_ms, known.complete_ms, known.kept_ms)
    unknown = []
    if query.asked.asked_from_ms is None and first_ms == NEVER_MS:
        unknown.append("from")
    if query.asked.asked_to_ms is None and known.last_ms == NEVER_ENDS_MS:
        unknown.append("to")
    return unknown


def windows_at(ends: Iterable[str]) -> str:
    """Return words for the windows at these ends of a range."""
    words = {"from": "the first window", "to": "the last window"}
    return " and ".join(words[end] for end in ends)


def bounded(query: FamilyQuery, facts: Mapping[str, LayerFacts]) -> FamilyQuery:
    """Return a query whose open ends are those of the windows there are.

    An end of which nothing is known stays where it is: at the first or the last event time.
    """
    base, *coarser = _choices(query, facts, "exact")
    known = facts.get(base.name, LayerFacts())
    end_ms: int | None = query.to_ms
    if known.last_ms < NEVER_ENDS_MS:
        last_ms = known.last_ms
        end_ms = None if last_ms == NEVER_MS else base.window.end(base.window.start(last_ms))
    first_ms: int | None = query.from_ms
    if known.first_ms == NEVER_ENDS_MS:
        first_ms = None
    elif NEVER_MS < max(known.first_ms, base.from_ms) < NEVER_ENDS_MS:
        first_ms = base.window.first_start(max(known.first_ms, base.from_ms))
        if known.first_ms < base.from_ms:
            # Coarser layers may still have windows that the base has no more.
            starts = (
                _first_of(one, facts.get(one.name, NOTHING_KNOWN))
                for one in coarser
                if query.step is None or one.window.nests_in(query.step)
            )
            first_ms = min([first_ms, *starts])
    asked = query.asked.bounded(first_ms, end_ms)
    return dataclasses.replace(query, asked=asked, from_ms=asked.from_ms, to_ms=asked.to_ms)


def _first_of(choice: Choice, known: LayerFacts) -> int:
    """Return the start of the first window of a coarser layer that can be used."""
    first_ms = max(choice.from_ms, known.first_ms)
    if first_ms == NEVER_MS or first_ms >= choice.to_ms:
        return NEVER_ENDS_MS
    start_ms = choice.window.first_start(first_ms)
    return start_ms if choice.window.end(start_ms) <= choice.to_ms else NEVER_ENDS_MS


def plan(query: FamilyQuery, facts: Mapping[str, LayerFacts], cells_max: int) -> QueryPlan:
    """Return the cover of the range with the fewest cells that is exact, if it can be had.

    All windows of the base can be used, whether sealed or not. A coarser layer without facts is
    not used.

    Raises:
        QueryError: some of the range has expired or was before the map had the layer, a step begins
            inside a window, or even closed cells are too many.
    """
    if query.step is not None:
        known = facts.get(query.family.base.name, LayerFacts())
        start, stop = known.with_cells(query.from_ms, query.to_ms)
        steps = (stop - start) // query.step.shortest_ms
        if steps > cells_max:
            raise QueryError(
                f"cannot read family {query.family.name}: too many steps; got {steps} of"
                f" {query.step} {_between(query, facts)}; want at most {cells_max}"
                " (query_cells_max); ask for a shorter range or longer steps"
            )
    exact = _plan(query, facts, "exact")
    if exact.cells <= cells_max:
        return exact
    settling = _plan(query, facts, "settling")
    if settling.cells <= cells_max:
        return settling
    raise QueryError(
        f"cannot read family {query.family.name}: too many cells to read; got about"
        f" {math.ceil(settling.cells)}; want at most {cells_max} (query_cells_max);"
        f" {_counts(query, settling, facts)}; ask for a shorter range, fewer keys, or fields that a"
        " coarser layer has"
    )


def _between(query: FamilyQuery, facts: Mapping[str, LayerFacts]) -> str:
    """Return the range in which windows of the base were counted, in words."""
    window = query.family.base.window
    known = facts.get(query.family.base.name, LayerFacts())
    start, stop = known.with_cells(query.from_ms, query.to_ms)
    span = f"from {time_text(window.start(start))} to {time_text(window.first_start(stop))}"
    if known.first_ms > NEVER_MS and known.last_ms < NEVER_ENDS_MS:
        return f"{span}, where there are windows"
    if query.is_unbounded and (ends := unknown_ends(query, facts)):
        return (
            f"{span}, by the calendar: a journal or a worker of an earlier version does not know"
            f" {windows_at(ends)}; give {' and '.join(ends)}"
        )
    return (
        f"{span}, by the calendar: the first and the last window are not known, as while workers"
        " start (/v1/cluster has their state)"
    )


def _counts(query: FamilyQuery, planned: QueryPlan, facts: Mapping[str, LayerFacts]) -> str:
    """Return the numbers of a plan's cells: windows by layer, cells of each, and their range."""
    windows: dict[str, int] = {}
    cells: dict[str, float] = {}
    for one in planned.segments:
        windows[one.name] = windows.get(one.name, 0) + _windows_there(query, one, facts)
        cells[one.name] = cells.get(one.name, 0.0) + one.cells
    parts = [
        f"{count} windows of {name} with about {cells[name] / count:.0f} cells each"
        for name, count in windows.items()
        if count
    ]
    return f"these are {' and '.join(parts)}, {_between(query, facts)}"


def _plan(query: FamilyQuery, facts: Mapping[str, LayerFacts], exactness: Exactness) -> QueryPlan:
    choices = _choices(query, facts, exactness)
    base = query.family.base
    began_ms = facts.get(base.name, LayerFacts()).complete_ms
    try:
        if query.step is None:
            segments = cover(choices, query.from_ms, query.to_ms)
        else:
            segments = cover_steps(choices, query.from_ms, query.to_ms, query.step)
    except GapError as gap:
        raise _refusal(query, choices, gap.at_ms, began_ms) from gap
    _check_ranked(query, facts)
    counted = (_counted(query, segment, facts) for segment in segments)
    return QueryPlan(tuple(counted), exactness)


def _counted(query: FamilyQuery, segment: Segment, facts: Mapping[str, LayerFacts]) -> Segment:
    """Return a segment with the cells of those of its windows that may have some."""
    windows = _windows_there(query, segment, facts)
    if windows == segment.windows:
        return segment
    return dataclasses.replace(segment, cells=segment.cells / segment.windows * windows)


def _windows_there(query: FamilyQuery, segment: Segment, facts: Mapping[str, LayerFacts]) -> int:
    """Return how many windows of a segment may have cells."""
    window = next(one.window for one in query.layers if one.name == segment.name)
    known = facts.get(segment.name, LayerFacts())
    start, stop = known.with_cells(segment.from_ms, segment.to_ms)
    start, stop = window.start(start), window.first_start(stop)
    return window.count(start, stop) if start < stop else 0


def _choices(
    query: FamilyQuery, facts: Mapping[str, LayerFacts], exactness: Exactness
) -> list[Choice]:
    """Return the layers that may be used, the base first; none has more cells than its finer one.

    Whatever is known of its cells: each of a coarser layer is made of at least one.
    """
    base, *coarser = query.layers
    known = facts.get(base.name, LayerFacts())
    began_ms = known.complete_ms
    cells = {base.name: _cells(base, query.keys, known)}
    first = max(began_ms, known.kept_ms)
    choices = [Choice(base.name, base.window, first, NEVER_ENDS_MS, cells[base.name])]
    for layer in coarser:
        known = facts.get(layer.name, NOTHING_KNOWN)
        final_ms = known.sealed_ms if exactness == "exact" else known.closed_ms
        most = min(
            cells[one.name] * (layer.window.shortest_ms // one.window.longest_ms)
            for one in query.layers
            if one.name in cells and _descends(query, layer, one)
        )
        cells[layer.name] = min(_cells(layer, query.keys, known), most)
        first = max(began_ms, known.complete_ms, known.kept_ms)
        choices += [
            Choice(
                layer.name, layer.window, max(first, start), min(final_ms, stop), cells[layer.name]
            )
            for start, stop in _as_whole(query, layer, facts)
        ]
    return choices


def _as_whole(
    query: FamilyQuery, layer: Layer, facts: Mapping[str, LayerFacts]
) -> list[tuple[int, int]]:
    """Return the ranges in which a coarser layer knows each measure asked for that the base knows.

    If the base does not know one either, the coarser layer's null is the answer.
    """
    base = facts.get(query.family.base.name, LayerFacts()).whole
    own = facts.get(layer.name, NOTHING_KNOWN).whole
    lacks = sorted(
        (base.get(acc.column, NEVER_MS), own.get(acc.column, NEVER_MS))
        for acc in query.rows.accumulators
        if acc != EVENTS
    )
    found, first = [], NEVER_MS
    for known_ms, whole_ms in lacks:
        if known_ms >= whole_ms:
            continue
        # A window that starts before the base knows the measure is null whoever is asked.
        stop = known_ms
        if NEVER_MS < known_ms < NEVER_ENDS_MS:
            stop = layer.window.end(layer.window.start(known_ms - 1))
        if first < stop:
            found.append((first, stop))
        first = max(first, whole_ms)
    return [*found, (first, NEVER_ENDS_MS)]


def _check_ranked(query: FamilyQuery, facts: Mapping[str, LayerFacts]) -> None:
    """Refuse to rank by a measure that is not known of the whole range."""
    if query.ranked is None:
        return
    base = query.family.base
    whole = facts.get(base.name, LayerFacts()).whole
    names = stored_for(base, query.ranked)
    whole_ms = max((whole.get(name, NEVER_MS) for name in names), default=NEVER_MS)
    if query.from_ms < whole_ms:
        raise QueryError(
            f"cannot rank by {query.ranked.name}: {base.name} has it only since {whole_ms} of the"
            f" events' time; got {query.from_ms}; want a range from"
            f" {base.window.first_start(whole_ms)} on"
        )


def _descends(query: FamilyQuery, layer: Layer, finer: Layer) -> bool:
    """Return whether ``layer`` is made from ``finer``, directly or not."""
    by_name = {one.name: one for one in query.family.layers}
    while layer.finer is not None:
        layer = by_name[layer.finer]
        if layer is finer:
            return True
    return False


def _cells(layer: Layer, keys: KeyFilter, known: LayerFacts) -> float:
    """Return the approximate number of cells of a window that are read."""
    counts = [len(keys.values.get(field.name, ())) for field in layer.key]
    named = math.prod(counts)
    # A count below one does not justify more windows: each may be a partition of the archive.
    cells = max(known.cells, 1.0)
    return min(float(named), cells) if named else cells


def _refusal(
    query: FamilyQuery, choices: Sequence[Choice], at_ms: int, began_ms: int
) -> QueryError:
    """Return why no cover has the range: a step crosses the windows, or some of it is not there."""
    base = choices[0]
    problem = f"cannot read family {query.family.name}"
    if at_ms < began_ms:
        return QueryError(
            f"{problem}: the map has had {base.name} only since {began_ms} of the events' time; got"
            f" {at_ms}; want a range from {base.window.first_start(began_ms)} on"
        )
    if at_ms < base.from_ms:
        return QueryError(
            f"{problem}: the cells of {base.name} from {at_ms} on have expired (archive_ttl); want"
            f" a range from {base.window.first_start(base.from_ms)} on, or one of whole windows of"
            " a coarser layer"
        )
    return QueryError(
        f"{problem}: a step of {query.step} begins inside a window of {base.name}, at {at_ms};"
        f" want steps of whole windows of {base.window}"
    )
