"""Progress line: the last of many states, in place on a terminal, elsewhere as a line at times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

import click
from rich.console import Console

from app.host.printable import printable

PLACE_S = 0.25
"""The least time between two states on a terminal."""

LINES_S = 5.0
"""The least time between two lines anywhere else."""

_EMPTY = "\r\x1b[2K"


class ProgressLine:
    """Shows progress on standard error; use it in a ``with`` statement, at whose end it goes.

    Args:
        console: gets the line; None is standard error.
        in_lines: whether anything is shown if that is not a terminal.
        clock_s: seconds of any clock.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        in_lines: bool = True,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._in_place = self._console.is_terminal and not self._console.is_dumb_terminal
        self._every_s = PLACE_S if self._in_place else LINES_S
        self._is_shown = self._in_place or in_lines
        self._clock_s = clock_s
        self._said_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, state: str) -> None:
        """Show a state, unless the last one was shown just now."""
        now_s = self._clock_s()
        if self._said_s is None:
            # The first line elsewhere comes after a while: a short work needs no line.
            self._said_s = now_s - self._every_s if self._in_place else now_s
        if not self._is_shown or now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        text = printable(state)
        if self._in_place:
            self._write(f"{_EMPTY}{text[: self._console.width - 1]}")
        else:
            self._write(f"{text}\n")

    def note(self, sentence: str) -> None:
        """Print a sentence on standard output; it stays, and progress goes on below it."""
        self.clear()
        click.echo(printable(sentence))

    def clear(self) -> None:
        """Take the line away."""
        if self._in_place:
            self._write(_EMPTY)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
