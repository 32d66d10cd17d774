"""Rules as SQL: windows, conditions, and how the sums of cells are made, merged and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from app.verify.database import text
from tables.model.layer import Condition, Layer, Scalar

SCALE_BITS = 70
"""Floats are added as multiples of 2**-70: no number of them can be infinite."""

LARGE_BITS = 300
"""Floats from 2**300 on are squared as multiples of 2**600, others as they are."""

_LOW = 2**64 - 1
_UNITS = {1: "month", 12: "year"}


@dataclasses.dataclass(frozen=True, slots=True)
class Sums:
    """One measured field of a layer, and its columns in the tables of cells."""

    name: str
    number: int
    is_float: bool
    squared: bool

    @property
    def columns(self) -> list[str]:
        """The columns: values, sum, least, most; then the parts of the sum of squares.

        Of integers ``high`` and ``low``; of floats ``large`` and ``square``, and the ``size``: the
        sum of magnitudes.
        """
        names = ["n", "total", "least", "most", "high", "low", "size"]
        return [f"{name}_{self.number}" for name in names]

    def folded(self, value: str) -> list[str]:
        """Return the columns of the events of a cell, whose value is the expression ``value``."""
        shared = [f"count({value})", "", f"min({value})", f"max({value})"]
        if not self.is_float:
            shared[1] = f"coalesce(sum({value}), 0)::HUGEINT"
            square = f"({value}::HUGEINT * {value}::HUGEINT)"
            squares = [f"sum({square} >> 64)", f"sum({square} & {_LOW})"]
            return [*shared, *self._squares(squares, "HUGEINT"), "0::DOUBLE"]
        scaled = f"({value} * {2.0**-SCALE_BITS!r})"
        shared[1] = f"coalesce(fsum({scaled}), 0)"
        small = f"abs({value}) < {2.0**LARGE_BITS!r}"
        reduced = f"({value} * {2.0 ** -(2 * LARGE_BITS)!r})"
        squares = [
            f"fsum(CASE WHEN {small} THEN 0 ELSE {reduced} * {reduced} END)",
            f"fsum(CASE WHEN {small} THEN {value} * {value} ELSE 0 END)",
        ]
        size = f"coalesce(fsum(abs({scaled})), 0)"
        return [*shared, *self._squares(squares, "DOUBLE"), size]

    def merged(self, table: str, other: Sums) -> list[str]:
        """Return the columns of the cells of ``table`` together; the field is ``other`` there."""
        n, total, least, most, high, low, size = (f"{table}.{name}" for name in other.columns)
        add, kind = ("fsum", "DOUBLE") if self.is_float else ("sum", "HUGEINT")
        return [
            f"sum({n})::BIGINT", f"{add}({total})::{kind}", f"min({least})", f"max({most})",
            f"{add}({high})::{kind}", f"{add}({low})::{kind}", f"fsum({size})",
        ]  # fmt: skip

    def _squares(self, sums: list[str], kind: str) -> list[str]:
        return [f"coalesce({one}, 0)::{kind}" if self.squared else f"0::{kind}" for one in sums]


def sums_of(layer: Layer) -> list[Sums]:
    """Return the measured fields of a layer."""
    kinds: dict[str, set[str]] = {}
    floats = set()
    for acc in layer.accumulators:
        if acc.field is not None:
            kinds.setdefault(acc.field, set()).add(acc.kind)
            if acc.type == "float":
                floats.add(acc.field)
    return [
        Sums(name, number, name in floats, bool(found & {"sqlo", "m2"}))
        for number, (name, found) in enumerate(kinds.items())
    ]


def keys_of(layer: Layer) -> list[str]:
    """Return the key columns of a layer's tables."""
    return [f"k{number}" for number in range(len(layer.key))]


def window_start(layer: Layer, time: str) -> str:
    """Return the start of the window that holds a time."""
    length = layer.window.length_ms
    if length:
        return f"({time} - ({time} % {length} + {length}) % {length})"
    unit = _UNITS[layer.window.months]
    return f"epoch_ms(date_trunc('{unit}', make_timestamp_ms({time}))::TIMESTAMP)"


def window_end(layer: Layer, start: str) -> str:
    """Return the end of the window that starts at a time."""
    length = layer.window.length_ms
    if length:
        return f"({start} + {length})"
    return f"epoch_ms(make_timestamp_ms({start}) + INTERVAL {layer.window.months} MONTH)"


def holds(condition: Condition, column_of: Callable[[str], str]) -> str:
    """Return a condition, which a null does not meet."""
    column = column_of(condition.field)
    if condition.op == "in":
        assert isinstance(condition.value, tuple)
        test = f"{column} IN ({', '.join(map(literal, condition.value))})"
    else:
        assert not isinstance(condition.value, tuple)
        test = f"{column} {condition.op} {literal(condition.value)}"
    return f"coalesce({test}, false)"


def literal(value: Scalar) -> str:
    """Return a value of a map as SQL has it."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"({value!r})::{'DOUBLE' if isinstance(value, float) else 'BIGINT'}"


def either(tests: list[str]) -> str:
    """Return whether one of some tests holds."""
    return "(" + (" OR ".join(tests) or "false") + ")"


def both(tests: list[str]) -> str:
    """Return whether all of some tests hold."""
    return "(" + (" AND ".join(tests) or "true") + ")"


def joined(keys: list[str], left: str, right: str) -> str:
    """Return whether two tables' rows are of one key and window."""
    return both([f"{left}.{name} = {right}.{name}" for name in [*keys, "start"]])
