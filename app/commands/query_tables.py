"""Drawings of ``python -m app query``: tables of cells and rows, and lines of bars for keys."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TypeGuard

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.host.printable import printable
from tables.model.window import time_text
from treasure_map import Cell, FamilyAnswer, Row

BARS = "▁▂▃▄▅▆▇█"
Value = int | float | str | None
_WIDTH_MAX = 1 << 16


def cells_table(
    title: str, cells: Sequence[Cell | Row], columns_max: int
) -> tuple[Table, list[str]]:
    """Return a table with a line a cell: window, key, measures; and the mark of measures left out.

    Args:
        title: above the table.
        cells: its lines, all of one layer or family.
        columns_max: the characters of a line. The last measures are left out if a line is longer,
            because folded numbers cannot be read; the first stays.
    """
    measures = list(cells[0].measures) if cells else []
    counts = range(1, len(measures) + 1)
    fitting = bisect.bisect_right(
        counts, columns_max, key=lambda count: _width(_cells_table(title, cells, measures[:count]))
    )
    fitting = max(fitting, min(1, len(measures)))
    more = counted(len(measures) - fitting, "more measure")
    mark = f"… {more}; a wider terminal, `query` with --csv or --json shows all"
    return _cells_table(title, cells, measures[:fitting]), [mark] * (fitting < len(measures))


def _width(table: Table) -> int:
    """Return the characters of a line of a table in which nothing is folded."""
    return Console(width=_WIDTH_MAX).measure(table).maximum


def _cells_table(title: str, cells: Sequence[Cell | Row], measures: Sequence[str]) -> Table:
    table = Table(title=Text(printable(title)), caption=counted(len(cells), "cell"))
    table.add_column("window start")
    table.add_column("window end")
    for name in cells[0].key if cells else ():
        table.add_column(Text(printable(name)), overflow="fold")
    for name in measures:
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    for cell in cells:
        times = [time_text(cell.window_start), time_text(cell.window_end)]
        values = [*cell.key.values(), *(cell.measures[name] for name in measures)]
        table.add_row(*times, *(Text(shown(value)) for value in values))
    return table


def sparks_table(title: str, answer: FamilyAnswer) -> Table:
    """Return a table with a line a key: for each measure its steps as bars, and the last value."""
    table = Table(title=Text(printable(title)))
    first = answer.rows[0]
    for name in first.key:
        table.add_column(Text(printable(name)), overflow="fold")
    for name in first.measures:
        table.add_column(Text(printable(name)), overflow="fold")
        table.add_column("last", justify="right")
    starts = sorted({row.window_start for row in answer.rows})
    for key, steps in by_key(answer.rows).items():
        line = [Text(shown(value)) for value in key]
        for name in first.measures:
            values = [_measure(steps.get(start), name) for start in starts]
            known = [value for value in values if value is not None]
            line += [Text(sparkline(values)), Text(shown(known[-1] if known else None))]
        table.add_row(*line)
    return table


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which has an s behind other numbers than 1."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def range_text(from_ms: int, to_ms: int) -> str:
    """Return a range in words; empty without one, as a worker of 0.2.0 answers."""
    return f"from {time_text(from_ms)} to {time_text(to_ms)}" if (from_ms, to_ms) != (0, 0) else ""


def by_key(rows: Sequence[Row]) -> dict[tuple[Value, ...], dict[int, Row]]:
    """Return the rows of each key by their starts."""
    found: dict[tuple[Value, ...], dict[int, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.key.values()), {})[row.window_start] = row
    return found


def sparkline(values: Sequence[Value]) -> str:
    """Return a bar for each value, from the least to the greatest, and a space for none."""
    numbers = [value for value in values if _is_number(value)]
    if not numbers:
        return " " * len(values)
    # As fractions, no two numbers are too far apart, nor too large.
    least, most = Fraction(min(numbers)), Fraction(max(numbers))
    span = most - least

    def bar(value: Value) -> str:
        if not _is_number(value):
            return " "
        height = (Fraction(value) - least) * (len(BARS) - 1) // span if span else len(BARS) // 2
        return BARS[int(height)]

    return "".join(bar(value) for value in values)


def _is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def caption(answer: FamilyAnswer) -> str:
    """Return exactness and age of an answer, in a few words."""
    age = "" if answer.data_age_ms is None else f", {answer.data_age_ms} ms old"
    closed = (
        "" if answer.watermark_ms is None else f", closed up to {time_text(answer.watermark_ms)}"
    )
    return f"{answer.exactness}{age}{closed}"


def shown(value: object) -> str:
    """Return a value as text that cannot steer the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6f}"
    return printable(str(value))


def _measure(row: Row | None, name: str) -> Value:
    measures: Mapping[str, Value] = row.measures if row is not None else {}
    return measures.get(name)
