"""The demo's display while it runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import collections
import time
from typing import Any, Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.demo.worker import Status
from app.host.printable import printable
from tables.model.layer import Map
from treasure_map.status import LayerStatus

# Without a terminal, a line is written this often.
_LINE_SECONDS = 2.0
_RATE_SECONDS = 3.0


class Progress:
    """The counts of written and applied events with their times: rate and age follow from it."""

    def __init__(self) -> None:
        self.written = 0
        self._before = 0
        self._writes: collections.deque[tuple[float, int]] = collections.deque()
        self._applied: collections.deque[tuple[float, int]] = collections.deque()

    def begin(self) -> None:
        """Start a source: :meth:`write` counts on from the events written before."""
        self._before = self.written

    def write(self, count: int) -> None:
        """Note that ``count`` events of the present source are in Kafka."""
        self.written = self._before + count
        self._writes.append((time.monotonic(), self.written))

    def apply(self, count: int) -> None:
        """Note that ``count`` events have been applied; those writes are done with."""
        now = time.monotonic()
        self._applied.append((now, count))
        while self._applied[0][0] < now - _RATE_SECONDS and len(self._applied) > 1:
            self._applied.popleft()
        while self._writes and self._writes[0][1] <= count:
            self._writes.popleft()

    @property
    def events_per_second(self) -> float:
        """The rate at which events were applied lately."""
        if len(self._applied) < 2:  # noqa: PLR2004  # a rate lies between two moments
            return 0.0
        (start, first), (end, last) = self._applied[0], self._applied[-1]
        return (last - first) / (end - start) if end > start else 0.0

    @property
    def age_ms(self) -> int:
        """The time for which the oldest event that is not applied yet has been waiting."""
        return int((time.monotonic() - self._writes[0][0]) * 1_000) if self._writes else 0


class Display:
    """Shows progress; use it in a ``with`` statement.

    Args:
        url: the address of the query endpoint.
        themap: the map that the worker runs.
        console: gets the display; None is standard output.
    """

    def __init__(self, url: str, themap: Map, console: Console | None = None) -> None:
        self.themap = themap
        self._url = url
        self._console = console or Console()
        self._live: Live | None = None
        self._start = self._next_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, phase: str, progress: Progress, status: Status, *, last: bool = False) -> None:
        """Show the present state; without a terminal, a line every other second and the last."""
        line = self._line(phase, progress, status)
        if self._live is not None:
            address = Text(f"query endpoint: {self._url}", style="dim")
            self._live.update(Group(Text(line, style="bold"), layer_table(status.layers), address))
        elif last or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            click.echo(printable(line))

    def _line(self, phase: str, progress: Progress, status: Status) -> str:
        open_cells = sum(layer.open_cells for layer in status.layers)
        archived = sum(layer.archived_cells for layer in status.layers)
        return (
            f"{time.monotonic() - self._start:6.1f} s  {phase}: {progress.written:,} written,"
            f" {status.events(self.themap):,} applied, {progress.events_per_second:,.0f} events/s,"
            f" age {progress.age_ms:,} ms, {open_cells:,} open cells, {archived:,} archived"
        )


def layer_table(layers: list[LayerStatus]) -> Table:
    """Return open and archived cells, layer by layer."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for name in ("open cells", "archived cells", "unacknowledged"):
        table.add_column(name, justify="right")
    for layer in layers:
        counts = (layer.open_cells, layer.archived_cells, layer.unacknowledged_windows)
        table.add_row(Text(printable(layer.name)), *(f"{count:,}" for count in counts))
    return table


def ledger_lines(ledger: dict[str, Any]) -> list[str]:
    """Return the ledger as plain lines: records by topic, events, then layers, zeros left out."""
    lines = ["ledger"]
    for topic, partitions in sorted(ledger["records"].items()):
        total: collections.Counter[str] = collections.Counter()
        for row in partitions.values():
            total.update({n: v for n, v in row.items() if n not in ("position", "end") and v})
        lines.append(_line_of(f"records {topic}", total))
    lines.append(_line_of("events", ledger["events"]))
    lines += [_line_of(f"layer {name}", row) for name, row in ledger["layers"].items()]
    lines.append("balanced" if ledger["balanced"] else "NOT balanced")
    lines += [f"  {problem}" for problem in ledger["problems"]]
    return [printable(line) for line in lines]


def _line_of(name: str, counts: dict[str, int]) -> str:
    shown = ", ".join(f"{column} {count:,}" for column, count in counts.items() if count)
    return f"  {name + ':':<46} {shown or 'nothing'}"
