"""The command line of Treasure Map: ``python -m app COMMAND``."""

from __future__ import annotations

import importlib
import sys

import click

from tables.errors import TreasureMapError

COMMANDS = {
    "map": "app.commands.map",
    "query": "app.commands.query",
    "replay": "app.commands.replay",
    "demo": "app.commands.demo",
    "generate": "app.commands.generate",
    "worker": "app.commands.worker",
}


class LazyGroup(click.Group):
    """A group whose commands are modules with a ``command``, so that a query imports no worker."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Treasure Map: a hierarchical map of your events, exact to the last one."""


def main() -> None:
    """Run the command line; an operating error is one message and exit code 1."""
    try:
        group(prog_name="python -m app")
    except TreasureMapError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
