"""Floats: sums of them in plain Python, the same as those of frames.

Python's operators raise if a result is not finite, and its ``sum`` is another one in every
version. These follow IEEE 754 as polars does: a number that is too large is infinite, and an
infinite sum that meets its opposite is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def float_sum(values: Iterable[float]) -> float:
    """Return the sum, compensated after Kahan as in an aggregation of polars, bit for bit."""
    total = error = 0.0
    for value in values:
        step = value - error
        after = total + step
        if math.isfinite(after):
            error = (after - total) - step
            total = after
        else:
            total += value
    return total


def squared_deviations(values: Sequence[float]) -> float:
    """Return the sum of squared deviations from the mean; 0 of no values."""
    if not values:
        return 0.0
    mean = float_sum(values) / len(values)
    total = 0.0
    for value in values:
        off = value - mean
        # A product is infinite where a power raises OverflowError.
        total += off * off
    return total


def shift_of_means(counts: Sequence[int | None], totals: Sequence[float | None]) -> float:
    """Return how far the means of parts are off that of the whole, squared, for each value."""
    parts = [(n or 0, total or 0.0) for n, total in zip(counts, totals, strict=True)]
    values = sum(n for n, _ in parts)
    if not values:
        return 0.0
    mean = float_sum(total for _, total in parts) / values
    shift = 0.0
    for n, total in parts:
        if n:
            off = total / n - mean
            shift += n * (off * off)
    return shift
