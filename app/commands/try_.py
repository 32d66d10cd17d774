"""``python -m app try``: a map and files of events, answered on this machine without a Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import click
from rich.console import Console

from app.commands.interrupts import until_interrupted
from app.commands.produce import progress_of
from app.commands.progress_line import ProgressLine
from app.commands.query import PIPE_COLUMNS
from app.commands.query_tables import cells_table, counted
from app.demo.own_events import Trial, Tried, serve, tried
from app.demo.own_report import command_lines, outcome_lines, reached_layers, span_ms
from app.host.printable import printable
from app.load.input_file import FORMS, Form, InputFile
from app.load.input_piece import InputError
from app.load.produce import Written
from app.mapfile.load import load_map
from tables.model.layer import Map, Source
from treasure_map import Answer, QueryClient

INTERRUPTED = 130
_ROWS_SHOWN = 5


@click.command(name="try")
@click.argument("map_file", metavar="MAP", type=click.Path(path_type=pathlib.Path))
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--source",
    "source_name",
    metavar="NAME",
    help="The source that the events are of, if there are several.",
)
@click.option(
    "--input", "input_form", type=click.Choice(FORMS),
    help="The form of the files.  [default: by name and first bytes]",
)  # fmt: skip
@click.option(
    "--keep", type=click.Path(path_type=pathlib.Path), metavar="FOLDER",
    help="Keep archive, state and the worker's log in this folder, which is new or empty.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(min=0),
    help="How long to serve after the report.  [default: until Ctrl-C]",
)  # fmt: skip
def command(
    *, map_file: pathlib.Path, files: tuple[str, ...], source_name: str | None,
    input_form: Form | None, keep: pathlib.Path | None, seconds: float | None,
) -> None:  # fmt: skip
    """Show the answers that MAP gives for the events of each FILE.

    It starts a broker in memory and a worker, writes the events, reports their outcomes, prints the
    first rows of all layers, and then serves queries. Nothing is left behind without --keep.
    """
    themap = load_map(map_file)
    source = _source(themap, source_name)
    inputs = [InputFile(name, input_form) for name in files]
    try:
        with _folder(keep) as folder:
            trial = Trial(themap, map_file, source, inputs, folder)
            asyncio.run(until_interrupted(_try(trial, seconds)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("stopped")
        sys.exit(INTERRUPTED)


def _source(themap: Map, name: str | None) -> Source:
    """Return the source that the events are of."""
    names = [source.name for source in themap.sources]
    if name in names or (name is None and len(names) == 1):
        return themap.source(name or names[0])
    raise InputError(
        f"cannot choose the source of the events: got {name or 'no --source'}; want one of the"
        f" map's sources {', '.join(names)}; give --source NAME"
    )


@contextlib.contextmanager
def _folder(keep: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """Give a folder: the one that is kept, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="treasure-map-try-") as folder:
            yield pathlib.Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        used = sorted(path.name for path in keep.iterdir())
    except OSError as error:
        raise InputError(
            f"cannot keep anything in {keep}: {error.strerror}; want a folder to write into; give"
            " another --keep"
        ) from error
    if used:
        raise InputError(
            f"cannot use the folder {keep}: it is not empty; got {', '.join(used[:3])}; want a new"
            " one, as the broker begins anew each time; give another --keep"
        )
    yield keep


async def _try(trial: Trial, seconds: float | None) -> None:
    line = ProgressLine()

    def show(written: Written, applied: int) -> None:
        if written.events:
            line.show(f"{progress_of(written)}, {applied:,} applied")

    async with tried(trial, line.note, show) as found:
        line.clear()
        await asyncio.to_thread(_report, trial.themap, found)
        if seconds is None:
            click.echo("it serves queries until Ctrl-C")
        await serve(seconds)


def _report(themap: Map, found: Tried) -> None:
    """Print the outcome of the events, the first rows of each layer, and the next steps."""
    for line in outcome_lines(themap, found):
        click.echo(printable(line))
    if not found.check.usable:
        raise InputError(
            f"cannot show an answer: none of {found.check.events:,} events is on any layer; got the"
            f" refusals above; want events as the source {found.check.source.name} of the map says;"
            " change the map's paths, types and time_unit, or the file"
        )
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    with QueryClient(found.url) as client:
        for layer in reached_layers(themap, found.check.source.name):
            answer = client.cells(layer.name, {}, *span_ms(layer, found), limit=_ROWS_SHOWN)
            title = f"{layer.name}, per {layer.window}"
            table, marks = cells_table(title, answer.cells, console.width)
            table.caption = _caption(answer)
            click.echo()
            console.print(table, *marks, sep="\n", markup=False, highlight=False)
    click.echo()
    for line in command_lines(themap, found):
        click.echo(printable(line))


def _caption(answer: Answer) -> str:
    cells = counted(len(answer.cells), "cell")
    return f"the first {cells}" if answer.more else cells
