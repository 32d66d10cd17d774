"""Floats: sums of them in plain Python, the same as those of frames.

Python's operators raise if a result is not finite, and its ``sum`` is another one in every
version. These follow IEEE 754 as polars does: a number that is too large is infinite, and an
infinite sum that meets its opposite is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


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
