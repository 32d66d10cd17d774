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

COMMON = ("map_file", "state_folder", "brokers", "group", "archive", "web_host", "web_port")
"""Settings that stand in the help of a command; ``--help-settings`` lists the others."""

FEW = 3
"""The number of a command's settings up to which all of them stand in its help."""

_GROUPS = {
    "kafka_": "Kafka", "cassandra_": "Cassandra", "web_": "Query endpoint", "query_": "Queries",
}  # fmt: skip
_OTHERS = "Worker"


class _SettingOption(click.Option):
    """The flag of a setting; ``heading`` is that of its group in the list of all settings."""

    def __init__(self, *names: Any, heading: str, **more: Any) -> None:
        super().__init__(*names, **more)
        self.heading = heading


def _help_settings(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    """Print all settings of a command and end, if that is asked for."""
    if not is_asked:
        return
    groups: dict[str, list[tuple[str, str]]] = {}
    for found in ctx.command.get_params(ctx):
        if isinstance(found, _SettingOption):
            found.hidden = False
            record = found.get_help_record(ctx)
            groups.setdefault(found.heading, []).append(record or ("", ""))
    formatter = ctx.make_formatter()
    for heading, records in groups.items():
        with formatter.section(heading):
            formatter.write_dl(records)
    click.echo(formatter.getvalue().strip())
    ctx.exit()


def settings_options(
    function: Function,
    names: Iterable[str] | None = None,
    kind: type[Settings] = Settings,
    *,
    has_log: bool = False,
) -> Function:
    """Add ``--settings FILE`` and a flag for every setting but the secrets to a click command.

    Its help has the flags of common settings; ``--help-settings`` prints all of them in groups.
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
        is_flag = plain_type(field) is bool
        wrapped = click.option(
            f"{flag_name}/--no-{flag_name[2:]}" if is_flag else flag_name, name,
            cls=_SettingOption, heading=_heading(name), default=None,
            metavar=None if is_flag else "VALUE",
            hidden=len(given) > FEW and name not in COMMON,
            help=f"{meaning(field).replace('`', '')}  [{environment_variable(name)}]",
        )(wrapped)  # fmt: skip
    if len(given) > FEW:
        wrapped = click.option(
            "--help-settings", is_flag=True, is_eager=True, expose_value=False,
            callback=_help_settings, help="Show the flags of all settings and end.",
        )(wrapped)  # fmt: skip
    file_help = f"TOML file of settings.  [{FILE_VARIABLE}]"
    file_option = click.option("--settings", "settings_file", metavar="FILE", help=file_help)
    result: Function = file_option(wrapped)
    return result


def _heading(name: str) -> str:
    """Return the heading of a setting's group."""
    found = (heading for prefix, heading in _GROUPS.items() if name.startswith(prefix))
    return next(found, "Kafka" if name == "brokers" else _OTHERS)


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
