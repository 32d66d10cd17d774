"""Settings as options of commands: a flag for each, and the file that has them all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from app.config.meanings import MEANINGS
from app.config.settings import (
    FIELDS,
    FILE_VARIABLE,
    environment_variable,
    flag,
    load_settings,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def settings_options(function: Function, names: Iterable[str] = tuple(FIELDS)) -> Function:
    """Add ``--settings FILE`` and a flag for every setting but the secrets to a click command.

    The command's function is called with ``settings: Settings`` instead of the flags; ``names`` are
    of those that have a flag.

    Raises:
        SettingError: when the command runs, as :func:`load_settings`.
    """
    given = tuple(names)

    @functools.wraps(function)
    def with_settings(*args: Any, settings_file: str | None, **options: Any) -> Any:
        flags = {name: options.pop(name) for name in given if name in options}
        return function(*args, settings=load_settings(flags, file=settings_file), **options)

    wrapped: Any = with_settings
    for name in reversed(given):
        flag_name = flag(name)
        if flag_name is None:
            continue
        meaning = f"{MEANINGS[name].replace('`', '')}  [{environment_variable(name)}]"
        if FIELDS[name].type is bool:
            both = f"{flag_name}/--no-{flag_name[2:]}"
            option = click.option(both, name, default=None, help=meaning)
        else:
            option = click.option(flag_name, name, default=None, metavar="VALUE", help=meaning)
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
