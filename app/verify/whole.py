"""Cells that layers cannot have: the times from which they and their measures are whole.

A layer or measure that a revision of the map added has nothing of the events before
(docs/formats/map.md). The comparison leaves these cells out, and the report says so.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping

from tables.model.layer import Accumulator, Layer
from treasure_map.status import LayerStatus

_STORED = {
    "count": ("events",), "sum": ("n", "sum"), "mean": ("n", "sum"), "min": ("n", "min"),
    "max": ("n", "max"), "variance": ("n", "sum", "sqlo", "sqhi", "m2"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Whole:
    """The times from which layers are whole, if not ever since: ``cells`` by layer, measures too.

    ``unknown`` are the layers whose times some worker does not know yet. ``parts`` has the times
    of cells by layer and partition of its input.
    """

    cells: Mapping[str, int] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    parts: Mapping[str, Mapping[int, int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[LayerStatus]) -> Whole:
        """Return the latest time of each layer that any worker reports."""
        latest: dict[str, dict[str, int]] = {}
        unknown = set()
        parts: dict[str, dict[int, int]] = {}
        for row in rows:
            times = latest.setdefault(row.name, {})
            for number, said in row.whole_from.items():
                if (cells_ms := said.get("cells")) is not None:
                    parts.setdefault(row.name, {})[int(number)] = cells_ms
                for name, whole_ms in said.items():
                    if whole_ms is None:
                        unknown.add(row.name)
                    else:
                        times[name] = max(whole_ms, times.get(name, whole_ms))
        cells = {layer: times.pop("cells") for layer, times in latest.items() if "cells" in times}
        return cls(cells, latest, frozenset(unknown), parts)

    def measure_ms(self, layer: Layer, name: str) -> int | None:
        """Return the time from which a layer has a measure, None for always."""
        return self.measures.get(layer.name, {}).get(name)

    def column_ms(self, layer: Layer, acc: Accumulator) -> int | None:
        """Return the time from which a layer has an accumulator, None for always.

        It has the accumulator at least as long as each measure that is computed from it.
        """
        times = [
            self.measure_ms(layer, measure.name)
            for measure in layer.measures
            if measure.field == acc.field and acc.kind in _STORED[measure.kind]
        ]
        known = [time for time in times if time is not None]
        return min(known) if known and len(known) == len(times) else None

    def notes(self) -> list[str]:
        """Return the rows that were left out."""
        found = [
            f"{layer} was compared from {_moment(time)} on: the map got it then"
            for layer, time in sorted(self.cells.items())
        ]
        for layer, times in sorted(self.measures.items()):
            found += [
                f"{name} of {layer} is null in windows that start before {_moment(time)}: the map"
                " got it then"
                for name, time in sorted(times.items())
                if time > self.cells.get(layer, time - 1)
            ]
        return found


EVER_SINCE = Whole()
"""The times of a map that got nothing later."""


def _moment(time_ms: int) -> str:
    start = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    try:
        return (start + dt.timedelta(milliseconds=time_ms)).isoformat()
    except OverflowError:
        return f"{time_ms} ms"
