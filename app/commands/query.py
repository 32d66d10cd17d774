"""``python -m app query NAME``: cells of a layer or rows of a family, in a table or a file."""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from app.commands.endpoint import AskedEndpoint, endpoint_options
from app.commands.query_tables import caption, cells_table, counted, range_text, sparks_table
from app.host.printable import printable, printable_json
from tables.called import called
from tables.model.errors import QueryError
from tables.model.window import time_text
from tables.query.cell_query import exact_json
from treasure_map import Answer, FamilyAnswer, QueryClient, QueryFailedError, Range
from treasure_map.requests import PAGE_CELLS, OnPage

# Wide enough that nothing is cut if the table goes to a file or a pipe.
PIPE_COLUMNS = 10_000
PARTIAL = (
    "partial: owners of some partitions did not answer, and their open cells are missing;"
    f" see `{called('status')}`"
)
WATCH_S = 1.0
LIMIT = 100
"""The default of ``--limit``, but for files."""

PAGE_ROWS = 10_000
"""Rows of a page of a long answer: the default of ``query_limit_max``."""

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A request for rows of the family that ``name`` is in, or for cells of the layer ``name``."""

    name: str
    asked: Range
    is_family: bool
    limit: int | None

    @property
    def key(self) -> dict[str, str]:
        """The key of a request for cells: one value a field."""
        return {name: value for name, value in self.asked.key.items() if isinstance(value, str)}

    def answer(self, client: QueryClient) -> Answer | FamilyAnswer:
        """Return the answer."""
        return self._paged(lambda rows: self._answer(client, rows))

    def _answer(self, client: QueryClient, page_rows: int | None) -> Answer | FamilyAnswer:
        if self.is_family:
            return client.rows(self.name, self.asked, limit=self.limit, page_rows=page_rows)
        times = self.asked.from_time, self.asked.to_time
        return client.cells(self.name, self.key, *times, limit=self.limit, page_cells=page_rows)

    def _paged(self, ask: Callable[[int | None], Result]) -> Result:
        """Ask for large pages, because each reads its range anew, or for those of the endpoint."""
        if self.limit is not None and self.limit <= PAGE_CELLS:
            return ask(None)
        try:
            return ask(PAGE_ROWS)
        except QueryFailedError as error:
            if error.status != HTTPStatus.BAD_REQUEST or "limit: got" not in str(error):
                raise
            return ask(None)

    def frame(self, client: QueryClient) -> tuple[Any, list[str]]:
        """Return the rows as a polars frame, with notes about them."""
        heads: list[dict[str, Any]] = []
        frame = self._paged(lambda rows: self._frame(client, rows, heads.append))
        partial = any(head.get("partial") or head.get("exactness") == "partial" for head in heads)
        notes = _notes(heads[0]["whole_from"], partial=partial)
        return frame, notes + _cut(heads[-1].get("rows_after", 0), is_family=self.is_family)

    def _frame(self, client: QueryClient, page_rows: int | None, on_page: OnPage) -> Any:
        if self.is_family:
            return client.frame(
                self.name, self.asked, page_rows=page_rows, limit=self.limit, on_page=on_page
            )
        return client.cells_frame(
            self.name, self.key, self.asked.from_time, self.asked.to_time,
            page_cells=page_rows, limit=self.limit, on_page=on_page,
        )  # fmt: skip


@click.command("query")
@click.argument("name")
@click.option(
    "--key", "keys", multiple=True, metavar="FIELD=VALUE",
    help="Only this value of a key field. Give it again for another field; with --step, --group"
    " or --measure also for another value of the same field.",
)  # fmt: skip
@click.option(
    "--from", "from_time", metavar="TIME",
    help="Start: epoch ms, RFC 3339, a date, or now-1h, -1h, today.  [default: the first window]",
)  # fmt: skip
@click.option(
    "--to", "to_time", metavar="TIME", help="End, not included: likewise.  [default: the last]"
)
@click.option("--step", metavar="WINDOW", help="Rows of the family of NAME, one for each: 1h, day.")
@click.option(
    "--group", "groups", multiple=True, metavar="FIELD",
    help="Rows of the family of NAME that keep this field; - keeps none.",
)  # fmt: skip
@click.option("--measure", "measures", multiple=True, help="Only this one, of a family.")
@click.option(
    "--limit", type=click.IntRange(min=0),
    help=f"Most rows; 0 shows all.  [default: {LIMIT}, and all with --csv and --parquet]",
)  # fmt: skip
@click.option("--bars", is_flag=True, help="With --step: a line a key, with its steps as bars.")
@click.option("--watch", is_flag=True, help="Ask again every second and draw the table anew.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option(
    "--parquet", "parquet_file", metavar="FILE", help="Write a Parquet file instead of a table.",
    type=click.Path(dir_okay=False, path_type=Path),
)  # fmt: skip
@endpoint_options
def command(
    endpoint: AskedEndpoint, *, name: str, keys: tuple[str, ...], from_time: str | None,
    to_time: str | None, step: str | None, groups: tuple[str, ...], measures: tuple[str, ...],
    limit: int | None, bars: bool, watch: bool, as_json: bool, as_csv: bool,
    parquet_file: Path | None,
) -> None:  # fmt: skip
    """Print the cells of layer NAME whose windows have a time in [--from, --to).

    With --step, --group or --measure: rows of the family of NAME over that range, from whichever
    layers have them cheapest. Both ends are rounded outwards to whole windows; the clock of the
    worker says now. If the endpoint wants a token, it is read from TREASURE_MAP_WEB_TOKEN, or from
    the file that TREASURE_MAP_WEB_TOKEN_FILE names, or is that of --settings.
    """  # fmt: skip
    forms = {
        "--bars": bars, "--json": as_json, "--csv": as_csv, "--parquet": parquet_file is not None,
    }  # fmt: skip
    _check_forms(forms, watch=watch, has_steps=step is not None)
    is_family = bool(step or groups or measures)
    found = Range(
        from_time, to_time, _keys(keys, several=is_family), step=step, group=_group(groups),
        measures=measures or None,
    )  # fmt: skip
    default = 0 if as_csv or parquet_file else LIMIT
    question = Question(name, found, is_family, (default if limit is None else limit) or None)
    with endpoint.client() as client:
        if watch:
            _watch(lambda: question.answer(client), bars=bars)
        elif as_csv or parquet_file:
            _write(*question.frame(client), parquet_file)
        elif as_json:
            _print_json(question.answer(client))
        else:
            answer = question.answer(client)
            console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
            console.print(_drawn(answer, console, bars=bars))
            _note(_notes_of(answer))


def _check_forms(forms: Mapping[str, bool], *, watch: bool, has_steps: bool) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: they do.
    """
    given = [name for name, is_given in forms.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"cannot use {' with '.join(given)}: give one of them")
    if watch and given and given != ["--bars"]:
        raise click.UsageError(f"cannot use --watch with {given[0]}: its output ends; give one")
    if forms["--bars"] and not has_steps:
        raise click.UsageError("cannot use --bars without --step: a bar is a step; give --step 1h")


def _print_json(answer: Answer | FamilyAnswer) -> None:
    click.echo(printable_json(_json(answer), orjson.OPT_INDENT_2))
    _note(_notes_of(answer) + _cut_of(answer))


def _write(frame: Any, notes: list[str], parquet_file: Path | None) -> None:
    """Write a frame to a file or, as CSV, to standard output; times are those of UTC."""
    import polars as pl  # noqa: PLC0415 - a table needs none

    times = pl.col("window_start", "window_end").cast(pl.Datetime("ms", "UTC"))
    frame = frame.with_columns(times)
    if parquet_file is None:
        text = frame.write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.fZ")
        shown = printable(text, keep="\n") if sys.stdout.isatty() else text
        # Else click takes the characters of colours out of values.
        click.echo(shown, nl=False, color=True)
    else:
        # polars has an error of its own for a full disk.
        whole = io.BytesIO()
        frame.write_parquet(whole)
        try:
            parquet_file.write_bytes(whole.getbuffer())
        except OSError as error:
            raise QueryError(
                f"cannot write {printable(str(parquet_file))}: {error.strerror}; want a file that"
                " can be written"
            ) from error
        click.echo(f"{frame.height:,} rows in {printable(str(parquet_file))}", err=True)
    _note(notes)


def _note(notes: list[str]) -> None:
    for note in notes:
        click.echo(printable(note), err=True)


def _watch(ask: Callable[[], Answer | FamilyAnswer], *, bars: bool) -> None:
    """Draw the answer anew until the reader has seen enough."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)

    def drawn() -> Group:
        answer = ask()
        notes = (Text(printable(note)) for note in _notes_of(answer))
        return Group(_drawn(answer, console, bars=bars), *notes)

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


def _notes_of(answer: Answer | FamilyAnswer) -> list[str]:
    partial = answer.partial if isinstance(answer, Answer) else answer.exactness == "partial"
    return _notes(answer.whole_from, partial=partial)


def _notes(whole_from: Mapping[str, int | None], *, partial: bool) -> list[str]:
    notes = [PARTIAL] if partial else []
    measures: dict[int | None, list[str]] = {}
    for name, whole_ms in whole_from.items():
        measures.setdefault(whole_ms, []).append(name)
    for whole_ms, names in measures.items():
        since = "some time that is not known yet" if whole_ms is None else time_text(whole_ms)
        words = ("it", "it is") if len(names) == 1 else ("them", "they are")
        named = ", ".join(names)
        notes.append(f"{named}: the layer has {words[0]} since {since}; before, {words[1]} empty")
    return notes


def _cut_of(answer: Answer | FamilyAnswer) -> list[str]:
    is_family = isinstance(answer, FamilyAnswer)
    if answer.more and not answer.rows_after:
        # A worker of 0.2.0 does not count them.
        return [f"… more {'rows' if is_family else 'cells'}; --limit 0 shows all"]
    return _cut(answer.rows_after, is_family=is_family)


def _cut(rows: int, *, is_family: bool) -> list[str]:
    """Return the mark of rows that the limit cut."""
    more = counted(rows, "more row" if is_family else "more cell")
    return [f"… {more}; --limit 0 shows all"] * bool(rows)


def _drawn(answer: Answer | FamilyAnswer, console: Console, *, bars: bool) -> Group:
    """Return the table, the marks of measures and rows that it has not, and a line about it."""
    about = [range_text(answer.from_ms, answer.to_ms)]
    marks: list[str] = []
    if isinstance(answer, Answer):
        title = f"{answer.layer} (partial)" if answer.partial else answer.layer
        table, marks = cells_table(title, answer.cells, console.width)
        about = [counted(len(answer.cells), "cell"), *about]
    elif bars and answer.rows:
        table = sparks_table(answer.family, answer)
        about = [*about, caption(answer)]
    else:
        table, marks = cells_table(answer.family, answer.rows, console.width)
        about = [counted(len(answer.rows), "row"), *about, caption(answer)]
    table.caption = None
    lines = [*marks, ", ".join(filter(None, about)), *_cut_of(answer)]
    return Group(table, *map(Text, lines))


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
