"""``python -m app query NAME``: cells of a layer or rows of a family, as tables, bars or JSON."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import click
import msgspec
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.commands.query_tables import caption, cells_table, is_worth_sparks, sparks_table
from app.config.settings import Settings, environment_variable, load_settings
from app.host.printable import printable, printable_json
from app.trust.secret_files import read_secret
from tables.model.errors import QueryError
from tables.model.window import time_text
from tables.query.cell_query import exact_json
from treasure_map import Answer, FamilyAnswer, QueryClient, QueryFailedError, Range

# Wide enough that nothing is cut if the table goes to a file or a pipe.
PIPE_COLUMNS = 10_000
DEFAULT_URL = "http://127.0.0.1:6066"
PARTIAL = "partial: owners of some partitions did not answer, and their open cells are missing"
WATCH_S = 1.0


Ask = Callable[[], Answer | FamilyAnswer]


@click.command("query")
@click.argument("name")
@click.option(
    "--key", "keys", multiple=True, metavar="FIELD=VALUE",
    help="A key field's value; of a family, several times for one of several.",
)  # fmt: skip
@click.option("--from", "from_time", required=True, help="Start: epoch ms, RFC 3339 or a date.")
@click.option("--to", "to_time", required=True, help="End, not included: likewise.")
@click.option("--step", metavar="WINDOW", help="Rows of the family NAME, one for each of these: 1h")
@click.option(
    "--group", "groups", multiple=True, metavar="FIELD",
    help="Rows of the family NAME that keep this field; - keeps none.",
)  # fmt: skip
@click.option("--measure", "measures", multiple=True, help="Only this one, of a family.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--watch", is_flag=True, help="Ask again every second and draw it anew.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--url", help=f"A worker's.  [default: of --settings if it is given, else {DEFAULT_URL}]"
)
@click.option(
    "--ca-file",
    help="PEM file of the authority of the endpoint's certificate; else web_ca_file of --settings.",
)
@click.option(
    "--settings", "settings_file", metavar="FILE",
    help="TOML file of the worker's settings, for its address, token and authority.",
)  # fmt: skip
def command(
    name: str, *, keys: tuple[str, ...], from_time: str, to_time: str, step: str | None,
    groups: tuple[str, ...], measures: tuple[str, ...], limit: int, watch: bool, as_json: bool,
    url: str | None, ca_file: str | None, settings_file: str | None,
) -> None:  # fmt: skip
    """Print the cells of layer NAME whose windows start in [--from, --to).

    With --step, --group or --measure: rows of family NAME over that range, from whichever layers
    have them cheapest; steps are drawn as bars. If the endpoint wants a token, it is read from
    TREASURE_MAP_WEB_TOKEN, or from the file that TREASURE_MAP_WEB_TOKEN_FILE names, or is that of
    --settings.
    """  # fmt: skip
    rows = bool(step or groups or measures)
    found = Range(
        from_time, to_time, _keys(keys, several=rows), step=step, group=_group(groups),
        measures=measures or None,
    )  # fmt: skip
    if watch and as_json:
        raise click.UsageError("cannot use --watch with --json: a document has an end; give one")
    settings = load_settings(file=settings_file) if settings_file else Settings()
    token = settings.web_token or _token()
    if url is None and settings_file:
        from app.config.connections import own_url  # noqa: PLC0415 - a query alone needs no worker's modules

        url = own_url(settings)
    ca_file = ca_file or settings.web_ca_file or None
    try:
        with QueryClient(DEFAULT_URL if url is None else url, token, ca_file=ca_file) as client:
            ask = _asking(client, name, found, limit, rows=rows)
            if watch:
                _watch(ask)
            else:
                _print(ask(), as_json=as_json)
    except (QueryFailedError, ValueError, OSError) as error:
        raise QueryError(f"{error}{_hint(error, token)}") from error


def _hint(error: Exception, token: str | None) -> str:
    """Return a hint to set a token, for a reader who was refused without one."""
    if token or getattr(error, "status", None) != HTTPStatus.UNAUTHORIZED:
        return ""
    variable = environment_variable("web_token")
    return f"; set {variable}, or {variable}_FILE to the path of a file that holds the token"


def _token() -> str | None:
    """Return the token of the environment, or of the file that it names; None if neither is set.

    Raises:
        QueryError: the file cannot be read.
    """
    token = os.environ.get(environment_variable("web_token"))
    file = os.environ.get(environment_variable("web_token_file"))
    if token or not file:
        return token
    try:
        return read_secret(Path(file))
    except ValueError as error:
        raise QueryError(f"cannot use {environment_variable('web_token_file')}: {error}") from error


def _asking(client: QueryClient, name: str, asked: Range, limit: int, *, rows: bool) -> Ask:
    """Return the request: of rows of a family, or of cells of a layer."""
    if rows:
        return functools.partial(client.rows, name, asked, limit=limit)
    key = {name: value for name, value in asked.key.items() if isinstance(value, str)}
    return functools.partial(client.cells, name, key, asked.from_time, asked.to_time, limit=limit)


def _print(answer: Answer | FamilyAnswer, *, as_json: bool) -> None:
    if as_json:
        click.echo(printable_json(_json(answer), orjson.OPT_INDENT_2))
    else:
        Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(_table(answer))
    for note in _notes(answer):
        click.echo(printable(note), err=True)


def _watch(ask: Ask) -> None:
    """Draw the answer anew until the reader has seen enough."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)

    def drawn() -> Group:
        answer = ask()
        return Group(_table(answer), *(Text(printable(note)) for note in _notes(answer)))

    try:
        with Live(drawn(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                live.update(_tried(drawn), refresh=True)
    except KeyboardInterrupt:
        return


def _tried(drawn: Callable[[], Group]) -> Group:
    """Return the table, or why it is missing now: a worker may be starting."""
    try:
        return drawn()
    except QueryFailedError as error:
        if error.status is not None and error.retry_after_s is None:
            raise
        return Group(Text(printable(f"asks again: {error}")))


def _notes(answer: Answer | FamilyAnswer) -> list[str]:
    if isinstance(answer, Answer):
        notes = [PARTIAL] if answer.partial else []
        count = len(answer.cells)
    else:
        notes = [PARTIAL] if answer.exactness == "partial" else []
        count = len(answer.rows)
    for name, whole_ms in answer.whole_from.items():
        since = "some time that is not known yet" if whole_ms is None else time_text(whole_ms)
        notes.append(f"{name}: the layer has it since {since}; before, it is empty")
    return [*notes, f"more: only the first {count} cells; raise --limit"] if answer.more else notes


def _table(answer: Answer | FamilyAnswer) -> Table:
    if isinstance(answer, Answer):
        title = f"{answer.layer} (partial)" if answer.partial else answer.layer
        return cells_table(title, answer.cells)
    if is_worth_sparks(answer):
        return sparks_table(answer.family, answer)
    table = cells_table(answer.family, answer.rows)
    table.caption = f"{len(answer.rows)} rows, {caption(answer)}"
    return table


def _keys(keys: tuple[str, ...], *, several: bool) -> dict[str, str | list[str]]:
    """Return the values of key fields by name.

    Raises:
        UsageError: one has no equals sign, or a field of a layer is given twice.
    """
    found: dict[str, list[str]] = {}
    for text in keys:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.UsageError(f"cannot use --key: got {text!r}; want FIELD=VALUE")
        if name in found and not several:
            raise click.UsageError(f"cannot use --key: {name} is given twice; give it once")
        found.setdefault(name, []).append(value)
    return {name: values if several else values[0] for name, values in found.items()}


def _group(groups: tuple[str, ...]) -> list[str] | None:
    if not groups:
        return None
    return [] if groups == ("-",) else list(groups)


def _json(answer: Answer | FamilyAnswer) -> dict[str, object]:
    """Return the answer as JSON can carry it: integers beyond 64 bits as text, as over HTTP."""
    document: dict[str, object] = msgspec.to_builtins(answer)
    name = "cells" if isinstance(answer, Answer) else "rows"
    cells = answer.cells if isinstance(answer, Answer) else answer.rows
    document[name] = [
        msgspec.to_builtins(cell)
        | {"measures": {name: exact_json(value) for name, value in cell.measures.items()}}
        for cell in cells
    ]
    return document
