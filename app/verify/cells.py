"""Cells recomputed: exact sums of events, and what the measures of a layer are from them.

Integers are Python's. Sums of floats are exact too: every float is a whole multiple of 2**-1074, so
that they are added as integers. A worker adds floats in some order; how far it may be off follows
from the number of events and the sum of magnitudes (:meth:`FieldSums.slack`).
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from tables.layer import Layer, Measure

_SCALE_BITS = 1_074
"""The least positive float is 2**-1074."""

_UNIT_ROUNDOFF = Fraction(1, 2**53)
_SQUARES_SLACK = 8
"""Each squared deviation costs a subtraction, a product and sums: fewer roundings than this."""

_NOTHING = Fraction(0)
Number = int | Fraction


@dataclasses.dataclass(slots=True)
class FieldSums:
    """What is known of one measured field of a cell.

    ``total`` and ``squares`` of floats are multiples of 2**-1074 and 2**-2148. ``magnitude`` is
    the sum of absolute values, for floats only.
    """

    is_float: bool
    n: int = 0
    total: int = 0
    squares: int = 0
    least: int | float | None = None
    most: int | float | None = None
    magnitude: int = 0

    def add(self, value: float) -> None:
        """Take one event's value."""
        self.n += 1
        if self.least is None or value < self.least:
            self.least = value
        if self.most is None or value > self.most:
            self.most = value
        if self.is_float:
            top, bottom = value.as_integer_ratio()
            scaled = top << (_SCALE_BITS + 1 - bottom.bit_length())
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

    @property
    def sum(self) -> Number:
        """The exact sum."""
        return Fraction(self.total, 2**_SCALE_BITS) if self.is_float else self.total

    @property
    def square_sum(self) -> Number:
        """The exact sum of squares."""
        return Fraction(self.squares, 2 ** (2 * _SCALE_BITS)) if self.is_float else self.squares

    @property
    def deviations(self) -> Fraction:
        """The exact sum of squared deviations from the mean; there must be a value."""
        return Fraction(self.square_sum) - Fraction(self.sum) ** 2 / self.n

    @property
    def slack(self) -> Fraction:
        """How far a sum of floats may be off, in whatever order they are added.

        (n - 1) u / (1 - (n - 1) u) times the sum of magnitudes, with u = 2**-53 (Higham, Accuracy
        and Stability of Numerical Algorithms, 2nd edition, section 4.2).
        """
        if not self.is_float or self.n == 0:
            return _NOTHING
        share = (self.n - 1) * _UNIT_ROUNDOFF
        return share / (1 - share) * Fraction(self.magnitude, 2**_SCALE_BITS)

    @property
    def deviations_slack(self) -> Fraction:
        """How far a sum of squared deviations of floats may be off: some roundings a value."""
        if not self.is_float:
            return _NOTHING
        return _SQUARES_SLACK * self.n * _UNIT_ROUNDOFF * Fraction(self.square_sum)


@dataclasses.dataclass(slots=True)
class Cell:
    """One aggregate: events counted, and sums by measured field."""

    fields: dict[str, FieldSums]
    events: int = 0

    def merge(self, other: Cell) -> None:
        """Take another cell; fields that this one does not measure are left out."""
        self.events += other.events
        for name, sums in self.fields.items():
            sums.merge(other.fields[name])


def empty_cell(layer: Layer) -> Cell:
    """Return a cell of ``layer`` without events."""
    return Cell(
        {acc.field: FieldSums(acc.type == "float") for acc in layer.accumulators if acc.field}
    )


def measure_of(cell: Cell, measure: Measure) -> tuple[Number | float | None, Fraction]:
    """Return a measure's exact value, and how far a worker's may be from it.

    What a worker rounds to a float is a fraction here, even where it is whole.
    """
    if measure.field is None:
        return cell.events, _NOTHING
    sums = cell.fields[measure.field]
    if measure.kind in ("min", "max"):
        return sums.least if measure.kind == "min" else sums.most, _NOTHING
    if sums.n == 0:
        return None, _NOTHING
    value, slack = sums.sum, sums.slack
    if measure.kind == "mean":
        value, slack = Fraction(value) / sums.n, slack / sums.n
    elif measure.kind == "variance":
        value, slack = sums.deviations / sums.n, sums.deviations_slack / sums.n
    return value, slack


def equals(got: object, want: Number | float | None, slack: Fraction = _NOTHING) -> bool:
    """Tell whether a worker's number is ``want``.

    A fraction is what is rounded once, to the nearest float, and may be off by ``slack`` before.
    """
    if not isinstance(want, Fraction):
        return type(got) is type(want) and got == want
    try:
        nearest = float(want)
    except OverflowError:
        return got is None or (isinstance(got, float) and math.isinf(got))
    if not isinstance(got, float) or not math.isfinite(got):
        return False
    # Without slack it is rounded correctly; with slack the last step rounds once more.
    rounding = abs(Fraction(nearest)) * _UNIT_ROUNDOFF
    return got == nearest or (slack > 0 and abs(Fraction(got) - want) <= slack + rounding)
