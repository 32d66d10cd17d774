"""The tables of ``query`` and ``try`` can be read on a terminal of any width."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.commands.query_tables import Value, cells_table
from treasure_map import Cell


def drawn(measures: int, columns: int, key: str | int = "b8:27") -> tuple[list[str], list[str]]:
    """Return the lines of a table of one cell, on a terminal of so many columns, and its mark."""
    values: dict[str, Value] = {f"sum_{number}": 1_000 + number for number in range(measures)}
    cell = Cell({"device": key}, 0, 60_000, values, 1)
    table, marks = cells_table("layer", [cell], columns)
    console = Console(width=columns)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines(), marks


@given(st.integers(1, 60), st.integers(80, 400))
def test_measures_are_whole_or_left_out_and_counted(measures: int, columns: int) -> None:
    """Two dozen columns on a narrow terminal would be folded to a letter each."""
    lines, marks = drawn(measures, columns)
    line = next(line for line in lines if "1970" in line)
    seen = sum(f" {1_000 + number} " in line for number in range(measures))
    assert seen >= 1
    assert len([line for line in lines if "│" in line]) == 1, "no cell is folded"
    left_out = measures - seen
    noun = "measure" if left_out == 1 else "measures"
    mark = f"… {left_out} more {noun}; a wider terminal, `query` with --csv or --json shows all"
    assert marks == [mark] * bool(left_out)
    assert not left_out or drawn(seen + 1, columns)[1], "one more would not fit"


def test_booleans_are_shown_as_a_key_takes_them() -> None:
    """``--key light=False`` is refused."""
    lines, _ = drawn(1, 200, key=False)
    assert any("│ false " in line for line in lines)
