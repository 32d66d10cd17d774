"""``python -m app token``: tokens of readers, made, listed and revoked while workers run."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.config.options import settings_options
from app.config.settings import Settings, environment_variable
from app.host.printable import printable
from app.trust.tokens import SCOPES, lifetime_of, make_token, now, read_tokens, revoke_token
from tables.model.errors import SettingError

_WIDTH_PIPED = 200
_FILE = ("web_tokens_file",)


@click.group("token")
def command() -> None:
    """Make, list and revoke the tokens that readers send.

    Workers that have the same web_tokens_file see a change within two seconds.
    """


@command.command("new")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES))
@click.option("--expires", metavar="DURATION", help="After which it is refused: 12h, 90d, 8w.")
@lambda function: settings_options(function, _FILE)
def new(settings: Settings, *, name: str, scopes: tuple[str, ...], expires: str | None) -> None:
    """Make token NAME and print it, once: only its hash is kept.

    Scope read is for answers, live for streams, admin for metrics and the ledger.
    """
    try:
        lifetime = None if expires is None else lifetime_of(expires)
    except ValueError as error:
        raise click.UsageError(f"cannot use --expires: {error}") from error
    token = make_token(_file(settings), name, scopes, lifetime)
    click.echo(token)
    click.echo(f"token {name}: shown this once; keep it now", err=True)


@command.command("list")
@lambda function: settings_options(function, _FILE)
def show(settings: Settings) -> None:
    """Print names, scopes and times of all tokens, never a token."""
    table = Table("token", "scopes", "created", "expires", box=None, header_style="bold")
    for token in read_tokens(_file(settings)):
        expires = "never" if token.expires is None else f"{token.expires:%Y-%m-%d %H:%M:%SZ}"
        if not token.is_valid(now()):
            expires += " (expired)"
        table.add_row(
            Text(printable(token.name)),
            Text(printable(" ".join(token.scopes))),
            f"{token.created:%Y-%m-%d %H:%M:%SZ}",
            expires,
        )
    Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED).print(table)


@command.command("revoke")
@click.argument("name")
@lambda function: settings_options(function, _FILE)
def revoke(settings: Settings, *, name: str) -> None:
    """Revoke token NAME: requests with it are refused, and its streams end."""
    revoke_token(_file(settings), name)
    click.echo(f"token {name}: revoked", err=True)


def _file(settings: Settings) -> Path:
    if not settings.web_tokens_file:
        raise SettingError(
            "cannot find the tokens: web_tokens_file is not set; want --web-tokens-file FILE,"
            f" {environment_variable('web_tokens_file')} or a settings file (--settings) that has"
            " it"
        )
    return Path(settings.web_tokens_file)
