"""The command line of Treasure Map: ``treasure-map COMMAND``, or ``python -m app COMMAND``."""

from __future__ import annotations

from treasure_map.installed import require_worker

# Before all that may be missing is imported.
require_worker()

import gc
import importlib
import signal
import sys
from typing import Any

import click

from app.host.printable import printable
from tables.called import called
from tables.model.errors import TreasureMapError
from treasure_map.version import version

COMMANDS = {
    "broker": "app.commands.broker",
    "layers": "app.commands.layers",
    "map": "app.commands.map",
    "produce": "app.commands.produce",
    "query": "app.commands.query",
    "replay": "app.commands.replay",
    "status": "app.commands.status",
    "reset": "app.commands.reset",
    "deadletters": "app.commands.deadletters",
    "demo": "app.commands.demo",
    "doctor": "app.commands.doctor",
    "generate": "app.commands.generate",
    "token": "app.commands.token",
    "try": "app.commands.try_",
    "verify": "app.commands.verify",
    "worker": "app.commands.worker",
}
WORKER = "worker"


INTERRUPTED = 130
"""The exit code that shells expect of a program that Ctrl-C ended."""


class LazyGroup(click.Group):
    """A group whose commands are modules with a ``command``, so that a query imports no worker."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; one that is interrupted ends with 130, not click's 1."""
        try:
            return super().invoke(ctx)
        except (click.Abort, KeyboardInterrupt):
            click.echo("aborted", err=True)
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        if cmd_name == WORKER:
            # The signal makes a worker read files again (app.runtime.worker_process). It must not
            # end one that still loads: supervisors take such an end for a wanted one.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Imports make no garbage: to look for some takes a fifth of the time.
        gc.disable()
        try:
            command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        finally:
            gc.enable()
        return command


def _say_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    """Say the version and end, if that is asked for."""
    if is_asked:
        click.echo(f"treasure-map {version()}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_say_version,
    help="Show the version and end.",
)  # fmt: skip
def group() -> None:
    """Treasure Map: a hierarchical map of your events, exact to the last one."""


def main() -> None:
    """Run the command line; an operating error is one message and exit code 1."""
    try:
        group(prog_name=called())
    except TreasureMapError as error:
        click.echo(printable(f"error: {error}", keep="\n"), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
