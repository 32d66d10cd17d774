"""``python -m app layers``: the layers of a map as its workers have them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
import orjson
from msgspec import UNSET
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.endpoint import AskedEndpoint, Told, ask_group, endpoint_options
from app.host.printable import printable, printable_json
from tables.model.window import time_text
from treasure_map import QueryClient
from treasure_map.status import Layers, LayerStatus

_WIDTH_PIPED = 200


@click.command("layers")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@endpoint_options
def command(endpoint: AskedEndpoint, *, as_json: bool) -> None:
    """Print each layer: window, key, measures, first and last window, events selected.

    The counts are those of all workers of the group. Layers that have selected nothing are named,
    and the event types that no layer selects.
    """
    with endpoint.client() as client:
        themap = client.map()
    told = ask_group(endpoint, QueryClient.layer_report)
    report = _report(themap, told)
    if as_json:
        click.echo(printable_json(report, orjson.OPT_INDENT_2))
    else:
        _show(report)


def _report(themap: dict[str, Any], told: Sequence[Told[Layers]]) -> dict[str, Any]:
    """Return the layers of the map with the counts of all workers, as JSON has them."""
    answers = [one.answer for one in told if one.answer is not None]
    unselected: dict[str, Counter[str]] = {}
    for answer in answers:
        for source, types in answer.unselected.items():
            unselected.setdefault(source, Counter()).update(types)
    return {
        "map": themap["name"],
        "map_revision": themap["revision"],
        "layers": [_layer(layer, answers) for layer in themap["layers"]],
        "unselected": {name: dict(types.most_common()) for name, types in unselected.items()},
        "problems": {one.worker.url: one.problem for one in told if one.problem},
    }


def _layer(layer: dict[str, Any], answers: Sequence[Layers]) -> dict[str, Any]:
    rows: list[LayerStatus] = [
        row for answer in answers for row in answer.layers if row.name == layer["name"]
    ]
    selected = sum(row.selected for row in rows)
    hints = [str(row.hint) for row in rows if row.hint is not UNSET and not selected]
    return {
        "name": layer["name"],
        "from": layer["finer"] or layer["source"],
        "window": layer["window"],
        "key": [field["name"] for field in layer["key"]],
        "measures": [measure["name"] for measure in layer["measures"]],
        "first_ms": min((row.first_ms for row in rows if row.first_ms is not None), default=None),
        "last_ms": max((row.last_ms for row in rows if row.last_ms is not None), default=None),
        "selected": selected,
        "hints": list(dict.fromkeys(hints)),
    }


def _show(report: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED)
    table = Table("layer", "from", "window", "key", "measures", box=None, header_style="bold")
    table.add_column("first window")
    table.add_column("last window")
    table.add_column("selected", justify="right")
    for layer in report["layers"]:
        texts = [layer["name"], layer["from"], layer["window"]]
        texts += [", ".join(layer["key"]), ", ".join(layer["measures"])]
        texts += [_time(layer["first_ms"]), _time(layer["last_ms"])]
        table.add_row(*(Text(printable(text)) for text in texts), f"{layer['selected']:,}")
    console.print(table)
    for layer in report["layers"]:
        for hint in layer["hints"]:
            console.print(Text(printable(hint)))
    for source, types in report["unselected"].items():
        if types:
            named = ", ".join(f"{name} ({count:,})" for name, count in types.items())
            console.print(Text(printable(f"{source}: no layer selects {named}")))
    for url, problem in report["problems"].items():
        click.echo(printable(f"without the counts of {url}: {problem}"), err=True)


def _time(time_ms: int | None) -> str:
    return "-" if time_ms is None else time_text(time_ms)
