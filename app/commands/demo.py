"""``python -m app demo``: the whole flow on this machine, and a check of its result."""

from __future__ import annotations

import asyncio
import pathlib
import sys

import click

from app.commands.interrupts import until_interrupted
from app.demo.run import DemoTimes, run
from app.demo.worker import DemoError
from app.host.printable import printable

_FOLDER = pathlib.Path("var")


@click.command(name="demo")
@click.option(
    "--seconds", type=click.FloatRange(min=1), envvar="DEMO_SECONDS",
    help="Pace flights and radar to this time, then check and end. [env: DEMO_SECONDS]",
)  # fmt: skip
def command(seconds: float | None) -> None:
    """Run broker, worker and input, and compare the result with the file.

    It writes into the folder var of the one that it is called in, and nowhere else.
    Without a length the radar continues for an hour; Ctrl-C ends everything at any time.
    """
    try:
        _FOLDER.mkdir(exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"cannot run the demo: {error}; got the folder {_FOLDER.absolute()}; want one to write"
            " into; call it in another folder"
        ) from error
    try:
        problems = asyncio.run(until_interrupted(run(DemoTimes.of(seconds), _FOLDER)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("stopped")
        sys.exit(130)
    for problem in problems:
        click.echo(printable(f"wrong: {problem}"), err=True)
    if problems:
        click.echo("the demo's check failed", err=True)
        sys.exit(1)
    click.echo("everything adds up: the ledger balances and all rows equal the file")
