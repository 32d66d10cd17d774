"""``python -m app produce``: write the events of files to a topic."""

from __future__ import annotations

import asyncio
import sys

import click

from app.commands.interrupts import until_interrupted
from app.commands.progress_line import ProgressLine
from app.config.connections import kafka_options
from app.config.options import kafka_settings_options
from app.config.settings import Settings
from app.host.printable import printable
from app.load.event_check import EventCheck, check_lines
from app.load.event_keys import keys_at, keys_of
from app.load.input_file import FORMS, Form, InputFile
from app.load.input_piece import InputError
from app.load.produce import FORMATS, Production, Written, produce, settle
from app.mapfile.load import load_map
from tables.model.layer import Map, Source
from tables.model.window import time_text

INTERRUPTED = 130


@click.command(name="produce")
@click.argument("topic")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--key", "key_paths", multiple=True, metavar="PATH",
    help="The value at this path, as repo.id, is the key; several are joined by |.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(min=0), default=0.0, show_default=True,
    help="Events a second; 0 is as fast as possible.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="json", show_default=True,
    help="The form of records: an event each, or many in lines or columns.",
)  # fmt: skip
@click.option(
    "--input", "input_form", type=click.Choice(FORMS),
    help="The form of the files.  [default: by name and first bytes]",
)  # fmt: skip
@click.option(
    "--map",
    "map_file",
    type=click.Path(dir_okay=False),
    help="The map of which TOPIC is a source: it says the key, and events are checked.",
)
@click.option(
    "--settle", "is_settled", is_flag=True,
    help="End with a heartbeat that closes all windows of the events; wants --map.",
)  # fmt: skip
@kafka_settings_options
def command(
    *, topic: str, files: tuple[str, ...], key_paths: tuple[str, ...], rate: float, form: str,
    input_form: Form | None, map_file: str | None, is_settled: bool, settings: Settings,
) -> None:  # fmt: skip
    """Write the events of each FILE to TOPIC, in their order.

    A FILE holds JSON lines, one JSON array, CSV or Parquet, and may be compressed with gzip; - is
    lines from standard input. Lines are written as they are.
    """
    if is_settled and map_file is None:
        raise click.UsageError("cannot use --settle without --map: the map has the windows")
    if key_paths and map_file is not None:
        raise click.UsageError("cannot use --key with --map: the map's keyed_by says the key")
    themap = load_map(map_file) if map_file is not None else None
    source = _source(themap, topic, map_file) if themap is not None else None
    plan = Production(
        brokers=settings.brokers,
        topic=topic,
        files=[InputFile(name, input_form) for name in files],
        form=form,
        declared=source.format if source is not None else None,
        keys=keys_of(source) if source is not None else keys_at(key_paths),
        check=EventCheck(themap, source) if themap is not None and source is not None else None,
        rate=rate,
        options=kafka_options(settings),
    )
    written = Written()
    try:
        with ProgressLine(in_lines=False) as shown:
            writing = produce(plan, written, lambda: shown.show(progress_of(written)))
            asyncio.run(until_interrupted(writing))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(f"stopped; {_summary(topic, written)}")
        sys.exit(INTERRUPTED)
    click.echo(_summary(topic, written))
    if written.keyless:
        at = ", ".join(key_paths) or ", ".join(source.keyed_by if source is not None else ())
        click.echo(
            printable(
                f"warning: {written.keyless:,} events have no value at {at}, so they have no key"
            ),
            err=True,
        )
    for line in check_lines(plan.check) if plan.check is not None else ():
        click.echo(printable(line))
    if is_settled and themap is not None and source is not None and plan.check is not None:
        time_ms = asyncio.run(settle(plan, themap, source, plan.check.last_ms))
        if time_ms is not None:
            click.echo(f"stream time is {time_text(time_ms)}: all windows close")


def _source(themap: Map, topic: str, map_file: str | None) -> Source:
    """Return the source whose topic it is."""
    for source in themap.sources:
        if source.topic == topic:
            return source
    known = ", ".join(source.topic for source in themap.sources)
    raise InputError(
        f"cannot write to {topic}: it is not a source of the map {map_file}; got sources of"
        f" {known}; want one of these topics; change TOPIC or --map"
    )


def _summary(topic: str, written: Written) -> str:
    rate = written.events / max(written.at_s, 0.001)
    return printable(
        f"wrote {written.events:,} events in {written.records:,} records to {topic} in"
        f" {written.at_s:.1f} s ({rate:,.0f} events/s)"
    )


def progress_of(written: Written) -> str:
    """Return how much is written, and of how much."""
    rate = written.events / max(written.at_s, 0.001)
    share = "" if written.share is None else f", {written.share:.0%} of the input"
    return f"{written.events:,} events, {rate:,.0f}/s{share}"
