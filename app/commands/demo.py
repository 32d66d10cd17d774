"""``python -m app demo``: the whole flow on this machine, and a check of its result."""

from __future__ import annotations

import asyncio
import pathlib
import signal
import sys

import click

from app.demo import Plan, run

_FOLDER = pathlib.Path(__file__).parent.parent.parent / "var"


@click.command(name="demo")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    envvar="DEMO_SECONDS",
    help="Pace flights and radar to this time, then check and end. [env: DEMO_SECONDS]",
)
def command(seconds: float | None) -> None:
    """Run broker, worker and input, and compare the result with the file.

    Without a length the radar goes on for an hour; Ctrl-C ends everything at any time.
    """
    _FOLDER.mkdir(exist_ok=True)
    try:
        problems = asyncio.run(_run(Plan.of(seconds)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("stopped")
        sys.exit(130)
    for problem in problems:
        click.echo(f"wrong: {problem}", err=True)
    if problems:
        click.echo("the demo's check failed", err=True)
        sys.exit(1)
    click.echo("everything adds up: the ledger balances and all rows equal the file")


async def _run(plan: Plan) -> list[str]:
    """Run the demo; being asked to terminate ends it as Ctrl-C does, with all its children."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await run(plan, _FOLDER)
