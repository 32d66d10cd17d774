"""Cells added up by plain rules, one event at a time, to compare verify's tables with."""

from __future__ import annotations

import dataclasses

from app.verify.cells import SCALE_BITS, Cell, FieldSums
from tables.model.layer import Layer


class PlainSums(FieldSums):
    """The sums of one measured field of a cell, which are exact."""

    def add(self, value: float) -> None:
        """Take one event's value."""
        self.n += 1
        if self.least is None or value < self.least:
            self.least = value
        if self.most is None or value > self.most:
            self.most = value
        if self.is_float:
            top, bottom = value.as_integer_ratio()
            scaled = top << (SCALE_BITS + 1 - bottom.bit_length())
            self.magnitude += abs(scaled)
        else:
            scaled = int(value)
        self.total += scaled
        self.squares += scaled * scaled

    def merge(self, other: FieldSums) -> None:
        """Take another cell's values."""
        self.n += other.n
        self.total += other.total
        self.squares += other.squares
        self.magnitude += other.magnitude
        if other.least is not None and other.most is not None:
            least, most = self.least, self.most
            self.least = other.least if least is None else min(least, other.least)
            self.most = other.most if most is None else max(most, other.most)


@dataclasses.dataclass(slots=True)
class PlainCell(Cell):
    """One aggregate."""

    fields: dict[str, PlainSums]  # type: ignore[assignment]

    def merge(self, other: Cell) -> None:
        """Take another cell; fields that this one does not measure are left out."""
        self.events += other.events
        for name, sums in self.fields.items():
            sums.merge(other.fields[name])


def empty_cell(layer: Layer) -> PlainCell:
    """Return a cell of ``layer`` without events."""
    return PlainCell(
        {acc.field: PlainSums(acc.type == "float") for acc in layer.accumulators if acc.field}
    )
