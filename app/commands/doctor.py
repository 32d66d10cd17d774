"""``python -m app doctor``: examine a deployment, each finding with its remedy."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path

import click
import orjson

from app.config.options import settings_options
from app.config.settings import FIELDS, Settings
from app.doctor.examination import examine
from app.host.findings import Finding
from app.host.printable import printable, printable_json

FAILS = 1
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.argument("file", metavar="[MAP]", required=False, type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@functools.partial(settings_options, has_log=True)
def command(file: str | None, as_json: bool, settings: Settings) -> None:
    """Examine packages, disks, security, archive and Kafka, and all that the map MAP needs there.

    Without MAP it takes the map file of the settings, if that exists. It changes nothing. Each
    finding is a line with its level and, after the last semicolon, the command or setting that
    mends it. Exit code 1: something keeps workers from working.
    """
    chosen = Path(file) if file is not None else settings.map_file
    is_named = file is not None or chosen != FIELDS["map_file"].default
    map_file = chosen if is_named or chosen.exists() else None
    found = asyncio.run(_examine(settings, map_file, as_json=as_json))
    if as_json:
        click.echo(printable_json([one._asdict() for one in found], orjson.OPT_INDENT_2))
    if any(one.level == "fail" for one in found):
        sys.exit(FAILS)


async def _examine(settings: Settings, map_file: Path | None, *, as_json: bool) -> list[Finding]:
    found = []
    async for one in examine(settings, map_file):
        found.append(one)
        if not as_json:
            level = click.style(f"{one.level:<4}", fg=_STYLES[one.level])
            click.echo(f"{level}  {printable(f'{one.subject}: {one.text}')}")
    if map_file is None and not as_json:
        click.echo("no map was examined: name its file to examine its topics, tables and group")
    return found
