"""Settings: one frozen tree from defaults, a TOML file, the environment and flags.

A later origin overrides an earlier: default < file (``--settings`` or ``TREASURE_MAP_SETTINGS``)
< ``TREASURE_MAP_<NAME>`` < flag. One SettingError names every bad field, each with its origin. A
secret is read from the file, the environment or a file of its own (a flag would show in the process
list) and is never printed.
"""

from __future__ import annotations

import difflib
import functools
import os
import pathlib
import re
import socket
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from app.config import archives
from app.config.checks import relations
from app.config.fields import SettingFields, flag, is_secret, plain_type, trait
from app.host.printable import MASK
from app.trust.secret_files import read_secret, shown_path
from tables.model.errors import SettingError

ENVIRONMENT_PREFIX = "TREASURE_MAP_"
FILE_VARIABLE = "TREASURE_MAP_SETTINGS"
_LOGIN = re.compile(r"\S*:\S*@")


class Settings(SettingFields, frozen=True, kw_only=True):
    """The settings of a worker and its commands, and the values that follow from them.

    Attributes:
        secret_files: the files that hold secrets: those of settings, and the file of the settings
            if a secret is among them. It is found while settings are read, and is not a setting.
    """

    secret_files: Annotated[tuple[str, ...], msgspec.Meta(extra={"found": True})] = ()

    @property
    def node_name(self) -> str:
        """The node, or host and port: workers of one host differ in it."""
        return self.node or f"{socket.gethostname()}-{self.web_port}"

    @property
    def endpoint_url(self) -> str:
        """The URL at which commands reach a worker of these settings."""
        if self.web_url:
            return self.web_url.rstrip("/")
        scheme = "https" if self.web_cert_file else "http"
        is_bare = ":" in self.web_host and not self.web_host.startswith("[")
        host = f"[{self.web_host}]" if is_bare else self.web_host
        return f"{scheme}://{host}:{self.web_port}"

    def group_of(self, map_name: str) -> str:
        """Return the consumer group of the workers of a map."""
        return self.group or f"treasure-map.{map_name}"

    @property
    def kafka_uses_tls(self) -> bool:
        """Whether connections to brokers are encrypted: asked for, or given a certificate."""
        return self.kafka_tls or bool(self.kafka_ca_file or self.kafka_cert_file)

    @property
    def cassandra_uses_tls(self) -> bool:
        """Whether connections to Cassandra are encrypted, by setting or because of TLS files."""
        given = (self.cassandra_tls_name, self.cassandra_ca_file, self.cassandra_cert_file)
        return self.cassandra_tls or any(given)

    def __repr__(self) -> str:
        """Show every field, secrets masked."""
        values = ", ".join(f"{name}={value!r}" for name, value in masked(self).items())
        return f"Settings({values})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show every field to rich, secrets masked."""
        return list(masked(self).items())


@functools.cache
def fields_of(kind: type[Settings]) -> Mapping[str, FieldInfo]:
    """Return the fields of a struct of settings by name, in the order of the page."""
    every = msgspec.structs.fields(kind)
    return {field.name: field for field in every if not trait(field, "found")}


FIELDS = fields_of(Settings)


def masked(settings: Settings) -> dict[str, object]:
    """Return the fields of ``settings`` with every secret that is set replaced by asterisks."""
    return {
        name: MASK if is_secret(field) and getattr(settings, name) else getattr(settings, name)
        for name, field in fields_of(type(settings)).items()
    }


def secrets_of(settings: Settings) -> list[str]:
    """Return the values that must never be shown."""
    fields = fields_of(type(settings))
    return [getattr(settings, name) for name, field in fields.items() if is_secret(field)]


def environment_variable(name: str) -> str:
    """Return the environment variable of a field."""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def load_settings(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | os.PathLike[str] | None = None,
    kind: type[Settings] = Settings,
) -> Settings:
    """Read the settings from all origins and check them as a whole.

    Args:
        flags: values by field name; None values are flags that were not given.
        environ: environment variables; None for the process's own.
        file: the TOML file; None for the one that ``TREASURE_MAP_SETTINGS`` names, if any.
        kind: the struct that has the fields.

    Raises:
        SettingError: some field cannot be used; the message names all of them.
    """
    environ = os.environ if environ is None else environ
    fields = fields_of(kind)
    given: dict[str, _Given] = {}
    problems: list[str] = []
    path = file if file is not None else environ.get(FILE_VARIABLE)
    private = []
    if path and _read_file(pathlib.Path(path), fields, given, problems):
        private.append(str(path))
    _read_environment(environ, fields, given, problems)
    for name, value in (flags or {}).items():
        assert name in fields, f"{name} is not a field of {kind.__name__}"
        if value is not None:
            origin = f"flag {flag(fields[name]) or name}"
            given[name] = _Given(value, origin, is_text=isinstance(value, str))
    unread = _read_secrets(fields, given, problems)
    values: dict[str, Any] = {}
    for name, found in given.items():
        field = fields[name]
        try:
            values[name] = _convert(field, found)
        except (msgspec.ValidationError, ValueError) as error:
            shown = MASK if is_secret(field) else repr(found.value)
            problems.append(f"{name} ({found.where}): got {shown}; want {_wanted(field, error)}")
    settings = kind(**values)
    sound = values.keys() | (fields.keys() - given.keys() - unread)
    problems += [text for names, text in relations(settings) if sound.issuperset(names)]
    if problems:
        # A user who writes a URL instead of a host may put a password into it.
        lines = "\n".join(f"  - {_LOGIN.sub(f'{MASK}@', problem)}" for problem in problems)
        raise SettingError(f"cannot use settings: {len(problems)} problem(s)\n{lines}")
    private += [getattr(settings, name) for name in fields if trait(fields[name], "private")]
    return msgspec.structs.replace(settings, secret_files=tuple(filter(None, private)))


class _Given(NamedTuple):
    """A value, its origin, and whether that has text only."""

    value: object
    where: str
    is_text: bool


def _read_file(
    path: pathlib.Path,
    fields: Mapping[str, FieldInfo],
    given: dict[str, _Given],
    problems: list[str],
) -> bool:
    """Add the values of a file; return whether a secret is among them."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"file {path}: cannot read it: {error}; want a TOML file of settings")
        return False
    for name, value in document.items():
        if name in fields:
            given[name] = _Given(value, f"file {path}", is_text=False)
        else:
            problems.append(f"{name} (file {path}): no such setting; {_nearest(name, fields)}")
    return any(is_secret(field) and bool(document.get(name)) for name, field in fields.items())


def _read_secrets(
    fields: Mapping[str, FieldInfo], given: dict[str, _Given], problems: list[str]
) -> set[str]:
    """Add the secrets of files of their own; return those that cannot be read."""
    unread = set()
    for name in filter(lambda name: is_secret(fields[name]), fields):
        of_file = f"{name}_file"
        file = given.get(of_file)
        if file is None or not file.value or not isinstance(file.value, str):
            continue
        if name in given and given[name].value:
            problems.append(
                f"{of_file} ({file.where}): got a file, and {name} ({given[name].where}) too; want"
                " one of them; remove the other"
            )
            continue
        try:
            given[name] = _Given(read_secret(pathlib.Path(file.value)), file.where, is_text=True)
        except ValueError as error:
            problems.append(f"{of_file} ({file.where}): got {shown_path(file.value)}; {error}")
            unread.add(name)
    return unread


def _read_environment(
    environ: Mapping[str, str],
    fields: Mapping[str, FieldInfo],
    given: dict[str, _Given],
    problems: list[str],
) -> None:
    known = {environment_variable(name): name for name in fields}
    for variable, value in environ.items():
        if variable in known:
            given[known[variable]] = _Given(value, f"environment {variable}", is_text=True)
        elif variable.startswith(ENVIRONMENT_PREFIX) and variable != FILE_VARIABLE:
            hint = _nearest(variable, [*known, FILE_VARIABLE])
            problems.append(f"{variable} (environment): no such setting; {hint}")


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "docs/OPERATING.md lists all of them"


def _convert(field: FieldInfo, given: _Given) -> Any:
    """Return a value as the field's type; text from environment and flags fits any type."""
    value, kind = given.value, plain_type(field)
    if kind is pathlib.Path:
        if not isinstance(value, str | pathlib.Path) or not str(value):
            raise ValueError("a path")
        return pathlib.Path(value)
    if field.name == "archive" and value not in archives.names():
        raise ValueError(f"one of {', '.join(archives.names())}")
    if kind == tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        found = tuple(part.strip() for part in msgspec.convert(parts, tuple[str, ...]))
        if not all(found) or not found:
            raise ValueError("texts, separated by commas or as a list")
        return found
    return msgspec.convert(value, field.type, strict=not given.is_text)


def _wanted(field: FieldInfo, error: Exception) -> str:
    """Return the form of a field's value."""
    if wanted := trait(field, "wanted"):
        return str(wanted)
    kind = plain_type(field)
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(choice for choice in get_args(kind) if choice)
    return str(error).removeprefix("Expected ").split(", got ")[0]
