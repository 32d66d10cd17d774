"""Settings as options of commands: a flag for each, and the file that has them all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from app.config.fields import flag, meaning, plain_type
from app.config.settings import (
    FIELDS,
    FILE_VARIABLE,
    Settings,
    environment_variable,
    fields_of,
    load_settings,
)
from app.host.printable import printable
from app.trust.secret_files import readable_secrets

Function = TypeVar("Function", bound=Callable[..., Any])


def settings_options(
    function: Function,
    names: Iterable[str] | None = None,
    kind: type[Settings] = Settings,
    *,
    has_log: bool = False,
) -> Function:
    """Add ``--settings FILE`` and a flag for every setting but the secrets to a click command.

    The command's function is called with ``settings``, a ``kind``, instead of the flags; ``names``
    are the settings that have a flag, by default all. A warning of files of secrets that others may
    read goes to standard error, unless the command ``has_log`` and warns there.

    Raises:
        SettingError: when the command runs, as :func:`load_settings`.
    """
    fields = fields_of(kind)
    given = tuple(fields if names is None else names)

    @functools.wraps(function)
    def with_settings(*args: Any, settings_file: str | None, **options: Any) -> Any:
        flags = {name: options.pop(name) for name in given if name in options}
        settings = load_settings(flags, file=settings_file, kind=kind)
        for sentence in () if has_log else readable_secrets(settings.secret_files):
            click.echo(printable(f"warning: {sentence}"), err=True)
        return function(*args, settings=settings, **options)

    wrapped: Any = with_settings
    for name in reversed(given):
        field = fields[name]
        flag_name = flag(field)
        if flag_name is None:
            continue
        text = f"{meaning(field).replace('`', '')}  [{environment_variable(name)}]"
        if plain_type(field) is bool:
            both = f"{flag_name}/--no-{flag_name[2:]}"
            option = click.option(both, name, default=None, help=text)
        else:
            option = click.option(flag_name, name, default=None, metavar="VALUE", help=text)
        wrapped = option(wrapped)
    file_help = f"TOML file of settings.  [{FILE_VARIABLE}]"
    file_option = click.option("--settings", "settings_file", metavar="FILE", help=file_help)
    result: Function = file_option(wrapped)
    return result


def kafka_settings_options(function: Function) -> Function:
    """Add the options of :func:`settings_options` that say how to connect to Kafka."""
    return settings_options(
        function, [n for n in FIELDS if n.startswith(("insecure", "brokers", "kafka_"))]
    )


def option(names: str, kind: Any, default: Any, text: str) -> Callable[[Function], Function]:
    """Return an option of a click command whose help shows its default.

    Args:
        names: the option's name, then that of the function's argument if it differs.
        kind: its type for click.
        default: the value without it.
        text: its help.
    """
    return click.option(*names.split(), type=kind, default=default, show_default=True, help=text)
