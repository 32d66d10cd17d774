"""Covers: the windows of layers with the fewest cells that answer a time range.

    asked     [09:20 ........................................ 12:03)
    hours             | 10:00      | 11:00      |
    minutes   | 40 x  |                         | 3 x |

A cover tiles the range exactly. If finer windows nest in coarser ones and have no fewer cells,
the coarsest fit is best. If windows cross (weeks and months), or a finer layer has fewer cells
because its key is shorter, the shortest path over their boundaries is. Nothing here knows the
content of cells.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from tables.model.window import Window

POINTS_MAX = 20_000
"""Boundaries over which shortest paths are searched, in some 100 ms for all of a cover; if
there are more, the coarsest goes first, and the cover may have more cells than need be."""

STEPS_APART_MAX = 1_000
"""Steps that are covered one by one because windows cross them, in some 50 ms. Of more steps, only
windows that lie inside of one are used, so that all steps are covered at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A layer that may be used: windows that start at or after ``from_ms`` and end by ``to_ms``.

    ``cells`` is the approximate number of cells of a window.
    """

    name: str
    window: Window
    from_ms: int
    to_ms: int
    cells: float


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Windows of one layer, one after the other: ``[from_ms, to_ms)``."""

    name: str
    from_ms: int
    to_ms: int
    windows: int
    cells: float


class GapError(Exception):
    """A range that no cover tiles; ``at_ms`` is the start of the first hole."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms
        super().__init__(f"no window of a choice starts at {at_ms} and fits")


def cover(choices: Sequence[Choice], from_ms: int, to_ms: int) -> list[Segment]:
    """Return the segments with the fewest cells that tile ``[from_ms, to_ms)``, in order.

    Raises:
        GapError: the windows cannot tile the range.
    """
    return _joined(_Search().cover(_coarsest_first(choices), from_ms, to_ms))


def cover_steps(choices: Sequence[Choice], from_ms: int, to_ms: int, step: Window) -> list[Segment]:
    """Return a cover of which no window lies in two windows of ``step``.

    Raises:
        GapError: there is no such cover.
    """
    fitting = [one for one in choices if one.window.shortest_ms <= step.longest_ms]
    nesting = [one for one in fitting if one.window.nests_in(step)]
    # If the finest does not nest, some later step begins inside one of its windows.
    is_long = nesting and (to_ms - from_ms) // step.shortest_ms > STEPS_APART_MAX
    if len(nesting) == len(fitting) or is_long:
        return cover(nesting, from_ms, to_ms)
    search = _Search()
    fitting = _coarsest_first(fitting)
    found = []
    start = from_ms
    while start < to_ms:
        stop = min(step.end(step.start(start)), to_ms)
        found += search.cover(fitting, start, stop)
        start = stop
    return _joined(found)


class _Search:
    """The search for one cover, which weighs at most ``POINTS_MAX`` boundaries in all."""

    def __init__(self) -> None:
        self._points_left = POINTS_MAX

    def cover(self, choices: list[Choice], from_ms: int, to_ms: int) -> list[Segment]:
        """Return segments as :func:`cover` does; ``choices`` are the coarsest first."""
        if from_ms >= to_ms:
            return []
        if not choices:
            raise GapError(from_ms)
        crossing = _crossing(choices)
        rest = choices[crossing:]
        if crossing > 1:
            edges = self._edges(choices[:crossing], from_ms, to_ms)
            if edges is not None:
                return self._shortest(edges, rest, from_ms, to_ms)
            rest = choices[1:]
        run = _run(choices[0], from_ms, to_ms)
        if run is None:
            return self.cover(rest, from_ms, to_ms)
        before, after = (from_ms, run.from_ms), (run.to_ms, to_ms)
        return [*self.cover(rest, *before), run, *self.cover(rest, *after)]

    def _edges(
        self, choices: list[Choice], from_ms: int, to_ms: int
    ) -> dict[int, list[Segment]] | None:
        """Return all windows of the choices in the range by start, None if they are too many."""
        runs = [(choice, _run(choice, from_ms, to_ms)) for choice in choices]
        points = sum(run.windows for _, run in runs if run is not None)
        if points > self._points_left:
            return None
        self._points_left -= points
        edges: dict[int, list[Segment]] = {}
        for choice, run in runs:
            start = run.from_ms if run is not None else to_ms
            while run is not None and start < run.to_ms:
                stop = choice.window.end(start)
                edge = Segment(choice.name, start, stop, 1, choice.cells)
                edges.setdefault(start, []).append(edge)
                start = stop
        return edges

    def _shortest(
        self, edges: dict[int, list[Segment]], rest: list[Choice], from_ms: int, to_ms: int
    ) -> list[Segment]:
        """Return the cheapest way over windows that cross, with ``rest`` between them.

        No window of ``rest`` spans a boundary of theirs, so it is enough to join neighbours.
        """
        ends = {edge.to_ms for some in edges.values() for edge in some}
        points = sorted({from_ms, to_ms, *edges, *ends})
        best: dict[int, tuple[float, int, list[Segment]]] = {from_ms: (0.0, from_ms, [])}
        hole: GapError | None = None
        for point, following in itertools.pairwise(points):
            if point not in best:
                continue
            steps = [[edge] for edge in edges.get(point, ())]
            try:
                steps.append(self.cover(rest, point, following))
            except GapError as gap:
                hole = hole or gap
            for step in steps:
                cells = best[point][0] + sum(segment.cells for segment in step)
                stop = step[-1].to_ms
                if stop not in best or cells < best[stop][0]:
                    best[stop] = cells, point, step
        if to_ms not in best:
            raise hole or GapError(from_ms)
        found: list[Segment] = []
        point = to_ms
        while point > from_ms:
            _, point, step = best[point]
            found += reversed(step)
        return found[::-1]


def _coarsest_first(choices: Sequence[Choice]) -> list[Choice]:
    return sorted(choices, key=lambda one: (-one.window.nominal_ms, one.cells))


def _run(choice: Choice, from_ms: int, to_ms: int) -> Segment | None:
    """Return all windows of a choice in the range, None if there are none."""
    window = choice.window
    start = window.first_start(max(from_ms, choice.from_ms))
    stop = window.start(min(to_ms, choice.to_ms))
    if start >= stop:
        return None
    windows = window.count(start, stop)
    return Segment(choice.name, start, stop, windows, windows * choice.cells)


def _crossing(choices: list[Choice]) -> int:
    """Return how many of the first choices to weigh together: the rest is within each of them."""
    count = 1
    while not all(
        _is_within(finer, coarser) for coarser in choices[:count] for finer in choices[count:]
    ):
        count += 1
    return count


def _is_within(finer: Choice, coarser: Choice) -> bool:
    """Return whether windows nest and the coarser one never has more cells."""
    if not finer.window.nests_in(coarser.window):
        return False
    windows = coarser.window.shortest_ms // finer.window.longest_ms
    return windows * finer.cells >= coarser.cells


def _joined(segments: list[Segment]) -> list[Segment]:
    """Return the same cover with neighbours of one layer made one."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if last is not None and (last.name, last.to_ms) == (segment.name, segment.from_ms):
            windows, cells = last.windows + segment.windows, last.cells + segment.cells
            found[-1] = Segment(last.name, last.from_ms, segment.to_ms, windows, cells)
        else:
            found.append(segment)
    return found
