"""A progress line: in place on a terminal, and nothing but lines anywhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from app.commands.progress_line import LINES_S, PLACE_S, ProgressLine

EMPTY = "\r\x1b[2K"


class Bench:
    """A line with a clock that stands, and the text that it has written."""

    def __init__(self, *, is_terminal: bool, in_lines: bool = True) -> None:
        self.now_s = 100.0
        self.written = io.StringIO()
        console = Console(
            file=self.written, force_terminal=is_terminal, width=20, _environ={"TERM": "xterm"}
        )
        self.line = ProgressLine(console, in_lines=in_lines, clock_s=lambda: self.now_s)

    def show(self, state: str, after_s: float) -> None:
        """Show a state some time later."""
        self.now_s += after_s
        self.line.show(state)


def test_on_a_terminal_one_line_is_rewritten_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """It never wraps, and a sentence that stays is not written into it."""
    bench = Bench(is_terminal=True)
    with bench.line as line:
        bench.show("1 event", 0.0)
        bench.show("2 events", PLACE_S / 2)
        bench.show("30 events, and many more words", PLACE_S)
        line.note("wrote 30 events")
    assert bench.written.getvalue() == (f"{EMPTY}1 event{EMPTY}30 events, and many{EMPTY}{EMPTY}")
    assert capsys.readouterr().out == "wrote 30 events\n"


def test_elsewhere_lines_come_now_and_then() -> None:
    """A short work has none; control characters of others are shown."""
    bench = Bench(is_terminal=False)
    with bench.line:
        bench.show("1 event", 0.0)
        bench.show("2 events", LINES_S)
        bench.show("3 events", LINES_S / 2)
        bench.show("4 events \x1b[2K", LINES_S)
    assert bench.written.getvalue() == "2 events\n4 events \\x1b[2K\n"


def test_a_line_for_terminals_alone_is_nowhere_else() -> None:
    """The summary of a command says it all."""
    bench = Bench(is_terminal=False, in_lines=False)
    with bench.line:
        for _ in range(3):
            bench.show("1 event", LINES_S)
    assert bench.written.getvalue() == ""
