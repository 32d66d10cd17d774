"""``python -m app query LAYER``: cells of a layer, from a worker's endpoint, as table or JSON."""

from __future__ import annotations

import datetime as dt
import os
import sys

import click
import msgspec
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.settings import environment_variable
from client.query import Answer, Cell, QueryClient, QueryFailedError
from tables.errors import QueryError
from tables.query import exact_json
from tables.window import TIME_MS_MAX, TIME_MS_MIN

# Wide enough that nothing is cut where the table goes to a file or a pipe.
PIPE_COLUMNS = 10_000
PARTIAL = "partial: open cells of partitions that this worker does not serve are missing"


@click.command("query")
@click.argument("layer")
@click.option("--key", "keys", multiple=True, metavar="FIELD=VALUE", help="A key field's value.")
@click.option("--from", "from_time", required=True, help="Start: epoch ms, RFC 3339 or a date.")
@click.option("--to", "to_time", required=True, help="End, not included: likewise.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--url", default="http://127.0.0.1:6066", show_default=True, help="A worker's.")
@click.option("--ca-file", help="PEM file of the authority of the endpoint's certificate.")
def command(
    layer: str,
    *,
    keys: tuple[str, ...],
    from_time: str,
    to_time: str,
    limit: int,
    as_json: bool,
    url: str,
    ca_file: str | None,
) -> None:
    """Print the cells of LAYER whose windows start in [--from, --to).

    Where the endpoint wants a token, it is read from TREASURE_MAP_WEB_TOKEN.
    """
    key = _key(keys)
    token = os.environ.get(environment_variable("web_token"))
    try:
        with QueryClient(url, token, ca_file=ca_file) as client:
            answer = client.cells(layer, key, from_time, to_time, limit=limit)
    except (QueryFailedError, ValueError, OSError) as error:
        raise QueryError(str(error)) from error
    if as_json:
        click.echo(orjson.dumps(_json(answer), option=orjson.OPT_INDENT_2))
    else:
        Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(_table(answer))
    if answer.partial:
        click.echo(PARTIAL, err=True)
    if answer.more:
        click.echo(f"more: only the first {len(answer.cells)} cells; raise --limit", err=True)


def _key(keys: tuple[str, ...]) -> dict[str, str | int | bool]:
    """Return the key fields by name.

    Raises:
        UsageError: one has no equals sign, or a field is given twice.
    """
    key: dict[str, str | int | bool] = {}
    for text in keys:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.UsageError(f"cannot use --key: got {text!r}; want FIELD=VALUE")
        if name in key:
            raise click.UsageError(f"cannot use --key: {name} is given twice; give it once")
        key[name] = value
    return key


def _json(answer: Answer) -> dict[str, object]:
    """Return the answer as JSON can carry it: integers beyond 64 bits as text, as over HTTP."""
    document: dict[str, object] = msgspec.to_builtins(answer)
    document["cells"] = [_exact(cell) for cell in answer.cells]
    return document


def _exact(cell: Cell) -> dict[str, object]:
    measures = {name: exact_json(value) for name, value in cell.measures.items()}
    row: dict[str, object] = msgspec.to_builtins(cell)
    return row | {"measures": measures}


def _table(answer: Answer) -> Table:
    title = f"{answer.layer} (partial)" if answer.partial else answer.layer
    table = Table(title=Text(title), caption=f"{len(answer.cells)} cells")
    first = answer.cells[0] if answer.cells else None
    table.add_column("window start")
    table.add_column("window end")
    for name in first.key if first else ():
        table.add_column(Text(name), overflow="fold")
    for name in first.measures if first else ():
        table.add_column(Text(name), justify="right", overflow="fold")
    for cell in answer.cells:
        times = [_moment(cell.window_start), _moment(cell.window_end)]
        values = [*cell.key.values(), *cell.measures.values()]
        table.add_row(*times, *(Text(_shown(value)) for value in values))
    return table


def _shown(value: object) -> str:
    """Return a value as text that cannot steer the terminal."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6f}"
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in str(value)
    )


def _moment(time_ms: int) -> str:
    if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
        return str(time_ms)  # datetime has no such year, and RFC 3339 no year 10000
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (epoch + dt.timedelta(milliseconds=time_ms)).isoformat().replace("+00:00", "Z")
