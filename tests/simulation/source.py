"""The result of a source partition, event by event, in plain arithmetic: cells, ledger, letters.

It knows nothing of chunks, blocks or tables, and takes the cuts of revisions as told.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tables.model.layer import Layer
from tests.simulation.cuts import Cuts
from tests.simulation.sink import Row, Value
from tests.simulation.workload import Event, Workload

NEVER = -(2**62)
GONE = 0.5
"""Step between the versions of two records: a claim empties a layer there."""

Step = tuple[float, Value | None]
Histories = dict[Row, list[Step]]
"""The values of each cell with their first versions, in ascending order; None is no value."""


class SourceFold:
    """One partition of the source, folded into all base layers.

    Attributes:
        ledger: its counts.
        late: offset and layer of each event that was too late.
        began: by base layer that a revision added, the time from which it has all events.
        max_began: the same for the greatest value, if a revision added that to the layer.
    """

    def __init__(self, work: Workload, partition: int, cuts: Cuts, histories: Histories) -> None:
        self._work = work
        self._partition = partition
        self._histories = histories
        self._cuts = cuts
        self._bases = [layer for layer in work.layers if layer.source]
        self._stream = NEVER
        self._floors: dict[str, int] = {}
        self._revision = work.revisions[0]
        self._is_claimed = False
        self._ids = RememberedIds()
        self.ledger: Counter[str] = Counter()
        self.late: set[tuple[int, str]] = set()
        self.began: dict[str, int] = {}
        self.max_began: dict[str, int] = {}

    def run(self) -> None:
        """Walk the log from its start to its end."""
        offset = self._cuts.first
        for record in self._work.records[self._partition]:
            self._claim(offset)
            if isinstance(record, int):
                self.ledger["records.heartbeat"] += 1
                self._advance(record)
            else:
                self.ledger["records.with_events"] += 1
                self.ledger["events.decoded"] += len(record)
                for event in record:
                    self._fold(event, offset)
            offset += 1
        self._claim(offset)

    def _claim(self, offset: int) -> None:
        """Let the claims at an offset change layers and ids."""
        for number in self._cuts.claimed_at(offset):
            before, after = self._revision, self._work.revisions[number - 1]
            for layer in self._bases:
                if not after.has(layer):
                    self._empty(layer, offset)
                    self.began.pop(layer.name, None)
                elif self._is_claimed and not before.has(layer) and self._stream > NEVER:
                    self.began[layer.name] = self._stream + 1
                if not after.has_max(layer):
                    self.max_began.pop(layer.name, None)
                elif before.has(layer) and not before.has_max(layer) and self._stream > NEVER:
                    self.max_began[layer.name] = self._stream + 1
            self._ids.keep(before.ids if after.ids else 0)
            self._revision, self._is_claimed = after, True

    def _empty(self, layer: Layer, offset: int) -> None:
        for (name, _, _, partition), history in self._histories.items():
            mine = (name, partition) == (folded_as(layer), self._partition)
            if mine and history[-1][1] is not None:
                history.append((offset + GONE, None))

    def _fold(self, event: Event, offset: int) -> None:
        key, time, value, name = event
        if self._revision.ids and name and self._repeats(name, time):
            self.ledger["events.duplicate"] += 1
        else:
            self.ledger["events.classified"] += 1
            for layer in self._bases:
                if layer.name in self._revision.rules:
                    column = self._place(layer, key, time, value, offset)
                    self.ledger[f"layer.{folded_as(layer)}.selected"] += 1
                    self.ledger[f"layer.{folded_as(layer)}.{column}"] += 1
        self._advance(time)

    def _repeats(self, name: str, time: int) -> bool:
        rules = self._revision.rules
        until = max(
            window_end(layer, time) + rules[layer.name].slack_ms
            for layer in self._bases
            if layer.name in rules
        )
        return self._ids.repeats(name, self._stream, until, self._revision.ids)

    def _place(self, layer: Layer, key: str, time: int, value: float, offset: int) -> str:
        """Add an event to its cell; return its column of the ledger."""
        rule = self._revision.rules[layer.name]
        least = rule.least / 10 if self._work.impure else rule.least
        if value < least:
            return "filtered"
        if window_end(layer, time) <= self._floor(layer.name):
            self.late.add((offset, layer.name))
            return "too_late"
        start = time // layer.window.length_ms * layer.window.length_ms
        row = folded_as(layer), (key,), start, self._partition
        history = self._histories.setdefault(row, [])
        before = history[-1][1] if history else None
        history.append((offset + 1, added([before, (1, 1, value, value)])))
        return "folded"

    def _floor(self, name: str) -> int:
        """Return a layer's floor before the next event, which is not below any before."""
        slack = self._revision.rules[name].slack_ms
        floor = max(self._floors.get(name, NEVER), self._stream - slack)
        self._floors[name] = floor
        return floor

    def _advance(self, time: int) -> None:
        self._stream = max(self._stream, time)
        for name in self._revision.rules:
            self._floor(name)


class RememberedIds:
    """The ids of one source partition, each with the time it lasts until and its number."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}
        self._count = 0

    def repeats(self, name: str, now: int, until: int, most: int) -> bool:
        """Return whether an id is among the ``most`` last ones, and lasts; remember it else."""
        if name in self._known:
            lasts_until, number = self._known[name]
            if now < lasts_until and self._count - number <= most:
                return True
        if now < until:
            self._known[name] = until, self._count
            self._count += 1
        return False

    def keep(self, most: int) -> None:
        """Forget all but the last ones."""
        self._known = {
            name: (until, number)
            for name, (until, number) in self._known.items()
            if self._count - number <= most
        }


def added(values: list[Value | None]) -> Value:
    """Return the sum of values; the greatest value is unknown if one of them is."""
    found = [value for value in values if value is not None]
    counts, numbers, sums, greatest = zip(*found, strict=True)
    return sum(counts), sum(numbers), sum(sums), None if None in greatest else max(greatest)


def folded_as(layer: Layer) -> str:
    """Return the name under which the cells of a base layer are folded."""
    return f"{layer.name}.partial" if layer.merged else layer.name


def window_end(layer: Layer, time: int) -> int:
    """Return the end of the window that holds a time."""
    length: Any = layer.window.length_ms
    return int(time // length * length + length)
