"""``python -m app status``: the workers of a group, and whether each is ready."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec
import orjson
from msgspec import UNSET
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.endpoint import AskedEndpoint, Told, ask_group, endpoint_options
from app.host.printable import printable, printable_json
from treasure_map import QueryClient
from treasure_map.status import Ready

NOT_READY = 1
_WIDTH_PIPED = 200


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@endpoint_options
def command(endpoint: AskedEndpoint, *, as_json: bool) -> None:
    """Print the workers of the group: map revision, partitions, lag, and why one is not ready.

    Exit code 0: all workers are ready, of one revision; 1: not, or some worker does not answer.
    """
    told = ask_group(endpoint, QueryClient.ready)
    workers = [_worker(one) for one in told]
    revisions = sorted({one["map_revision"] for one in workers if one["map_revision"] is not None})
    if as_json:
        report = {"workers": workers, "map_revisions": revisions}
        click.echo(printable_json(report, orjson.OPT_INDENT_2))
    else:
        _show(workers)
        if len(revisions) > 1:
            numbers = ", ".join(map(str, revisions))
            click.echo(f"the workers have maps of several revisions: {numbers}", err=True)
    if len(revisions) > 1 or not all(one["ready"] for one in workers):
        sys.exit(NOT_READY)


def _worker(told: Told[Ready]) -> dict[str, Any]:
    """Return the state of one worker, as JSON has it."""
    state = told.answer or Ready(ready=False)
    reasons = list(state.reasons or [])
    problems = [text for text in (told.worker.problem, told.problem) if text]
    if told.answer is not None and state.reasons is UNSET:
        problems.append("it tells no more without a valid token")
    lag = state.lag if state.lag is not UNSET else {}
    lags = [records for topic in lag.values() for records in topic.values()]
    return {
        "url": told.worker.url,
        "answers": told.answer is not None,
        "ready": state.ready,
        "map": _known(state.map),
        "map_revision": _known(state.map_revision),
        "version": _known(state.version),
        "owns": told.worker.owns,
        "serving": _known(state.serving) or {},
        "restoring": _known(state.restoring) or {},
        "lag_records": None if None in lags or not lags else sum(filter(None, lags)),
        "lag": lag,
        "reasons": reasons,
        "problems": problems,
        "warnings": list(state.warnings or []),
    }


def _known(value: Any) -> Any:
    return None if value is UNSET else msgspec.to_builtins(value)


def _show(workers: Sequence[Mapping[str, Any]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED)
    table = Table("worker", "state", "map", box=None, header_style="bold")
    for name in ("revision", "version", "lag"):
        table.add_column(name, justify="right")
    table.add_column("partitions")
    for one in workers:
        state = "ready" if one["ready"] else "not ready" if one["answers"] else "no answer"
        values = [one["map"], one["map_revision"], one["version"], one["lag_records"]]
        texts = [one["url"], state, *("-" if value is None else str(value) for value in values)]
        table.add_row(*(Text(printable(text)) for text in texts), Text(_partitions(one)))
    console.print(table)
    for one in workers:
        for kind in ("problems", "reasons", "warnings"):
            for text in one[kind]:
                said = f"warning: {text}" if kind == "warnings" else text
                console.print(Text(printable(f"{one['url']}: {said}")))


def _partitions(worker: Mapping[str, Any]) -> str:
    """Return the partitions of a worker in words, those of a topic as runs: ``raw[0-3,5]``."""
    serving = worker["serving"]
    parts = []
    for topic, numbers in worker["owns"].items():
        restored = set(serving.get(topic, []))
        waiting = [number for number in numbers if number not in restored]
        marked = f" (not serving {runs(waiting)})" if waiting and worker["answers"] else ""
        parts.append(f"{topic}[{runs(numbers)}]{marked}")
    return printable(", ".join(parts)) or "none"


def runs(numbers: Sequence[int]) -> str:
    """Return numbers as text, neighbours as a run: ``0-3,5``."""
    found = []
    ordered = sorted(numbers)
    for _, group in itertools.groupby(enumerate(ordered), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        found.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(found)
