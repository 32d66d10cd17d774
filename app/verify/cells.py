"""Cells as exact numbers: the measures of a layer, and the error that a worker's may have.

Integers are Python's. Floats are whole multiples of 2**-1074, so that sums of them are integers
too. A worker adds floats in some order; how far it may be off follows from the number of events and
the sum of magnitudes (:meth:`FieldSums.slack`).
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from tables.model.layer import Measure

SCALE_BITS = 1_074
"""The least positive float is 2**-1074."""

_UNIT_ROUNDOFF = Fraction(1, 2**53)
_SQUARES_SLACK = 8
"""Each squared deviation costs a subtraction, a product and sums: fewer roundings than this."""

_COMPENSATED_SLACK = 4
"""The most roundings that a compensated sum is off: two, and two of parts of it (Higham,
section 4.3)."""

_FLOAT_MAX = Fraction(2**1024 - 2**970)
_NOTHING = Fraction(0)
Number = int | Fraction


@dataclasses.dataclass(slots=True)
class FieldSums:
    """The accumulators of one measured field of a cell.

    ``total`` and ``squares`` of floats are multiples of 2**-1074 and 2**-2148. ``magnitude`` is
    the sum of absolute values, for floats only. Sums of floats are those of a compensated addition.
    """

    is_float: bool
    n: int = 0
    total: int = 0
    squares: int = 0
    least: int | float | None = None
    most: int | float | None = None
    magnitude: int = 0

    @property
    def sum(self) -> Number:
        """The sum."""
        return Fraction(self.total, 2**SCALE_BITS) if self.is_float else self.total

    @property
    def square_sum(self) -> Number:
        """The sum of squares."""
        return Fraction(self.squares, 2 ** (2 * SCALE_BITS)) if self.is_float else self.squares

    @property
    def deviations(self) -> Fraction:
        """The sum of squared deviations from the mean; there must be a value."""
        return Fraction(self.square_sum) - Fraction(self.sum) ** 2 / self.n

    @property
    def slack(self) -> Fraction:
        """The largest error of a sum of floats, in whatever order they are added.

        (n - 1) u / (1 - (n - 1) u) times the sum of magnitudes, with u = 2**-53 (Higham, Accuracy
        and Stability of Numerical Algorithms, 2nd edition, section 4.2).
        """
        if not self.is_float or self.n <= 1:
            return _NOTHING
        share = (self.n - 1 + _COMPENSATED_SLACK) * _UNIT_ROUNDOFF
        return share / (1 - share) * Fraction(self.magnitude, 2**SCALE_BITS)

    @property
    def deviations_slack(self) -> Fraction:
        """The largest error of a sum of squared deviations of floats: some roundings a value."""
        if not self.is_float:
            return _NOTHING
        roundings = _SQUARES_SLACK * (self.n + 2)
        return roundings * _UNIT_ROUNDOFF * Fraction(self.square_sum)

    @property
    def may_overflow(self) -> bool:
        """Whether floats become infinite in some order of additions, or when they are squared."""
        return self.is_float and Fraction(self.magnitude, 2**SCALE_BITS) > _FLOAT_MAX

    @property
    def squares_may_overflow(self) -> bool:
        """Whether the squares of floats, or of their distances from the mean, are infinite."""
        return self.is_float and (self.may_overflow or 4 * Fraction(self.square_sum) > _FLOAT_MAX)


@dataclasses.dataclass(slots=True)
class Cell:
    """One aggregate: events counted, and sums by measured field."""

    fields: dict[str, FieldSums]
    events: int = 0


def measure_of(cell: Cell, measure: Measure) -> tuple[Number | float | None, Fraction]:
    """Return a measure's exact value, and how far a worker's may be from it.

    A number that a worker rounds to a float is a fraction here, even if it is whole.
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


def may_be_infinite(cell: Cell, measure: Measure) -> bool:
    """Return whether a worker may have no number, because floats go beyond the largest one."""
    if measure.field is None or measure.kind in ("min", "max"):
        return False
    sums = cell.fields[measure.field]
    return sums.squares_may_overflow if measure.kind == "variance" else sums.may_overflow


def equals(got: object, want: Number | float | None, slack: Fraction = _NOTHING) -> bool:
    """Return whether a worker's number is ``want``.

    A fraction is rounded once, to the nearest float, and may be off by ``slack`` before that.
    """
    if not isinstance(want, Fraction):
        return type(got) is type(want) and got == want
    try:
        nearest = float(want)
    except OverflowError:
        return is_infinite(got)
    if not isinstance(got, float) or not math.isfinite(got):
        return False
    # Without slack it is rounded correctly; with slack the last step rounds once more.
    rounding = abs(Fraction(nearest)) * _UNIT_ROUNDOFF
    return got == nearest or (slack > 0 and abs(Fraction(got) - want) <= slack + rounding)


def is_infinite(got: object) -> bool:
    """Return whether a worker's number is beyond the largest float, which may be null."""
    return got is None or (isinstance(got, float) and not math.isfinite(got))


def shown(value: object) -> object:
    """Return a number as it is shown: a fraction as the nearest float."""
    if not isinstance(value, Fraction):
        return value
    try:
        return float(value)
    except OverflowError:
        return "beyond the largest float"
