"""Settings: one frozen tree from defaults, a TOML file, the environment and flags.

A later place overrides an earlier: default < file (``--settings`` or ``TREASURE_MAP_SETTINGS``)
< ``TREASURE_MAP_<NAME>`` < flag. Every bad field stands in one SettingError, each with where it
came from. A secret is read from the file, the environment or a file of its own (a flag would stand
in the process list) and is never printed.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from app.config import archives
from app.config.checks import relations
from app.config.meanings import MEANINGS
from app.host.printable import MASK
from app.trust.secret_files import (
    PRIVATE_FILES,
    SECRET_FILES,
    read_secret,
    shown_path,
    warn_of_readers,
)
from tables.model.errors import SettingError

ENVIRONMENT_PREFIX = "TREASURE_MAP_"
FILE_VARIABLE = "TREASURE_MAP_SETTINGS"
MIB = 1024 * 1024
_SECRET = {"secret": True}
_LOGIN = re.compile(r"\S*:\S*@")
_BROKERS = r"^\s*[^\s,:]+:\d{1,5}(\s*,\s*[^\s,:]+:\d{1,5})*\s*$"
_URL = r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$"
_REPLICATION = r"^([1-9]\d?|[A-Za-z0-9_.-]+:[1-9]\d?(,[A-Za-z0-9_.-]+:[1-9]\d?)*)$"
# Flags whose name is not the field's own.
_FLAG_NAMES = {"map_file": "map"}
# What a field takes, where msgspec's own words would show a pattern.
_FORMS = {
    "brokers": "host:port, more separated by commas",
    "cassandra_hosts": "host names, separated by commas or as a list",
    "cassandra_replication": "a number like 3, or factors by data centre like dc1:3,dc2:3",
    "cassandra_keyspace": "a lower-case identifier of at most 48 characters",
    "group": "at most 200 letters, digits, dots, dashes and underscores",
    "web_url": "a URL like https://worker-1:6066",
    "web_token": "at least 16 printable ASCII characters without spaces",
    "peer_secret": "at least 16 printable ASCII characters without spaces",
}

Positive = Annotated[int, msgspec.Meta(ge=1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Secret = Annotated[str, msgspec.Meta(extra=_SECRET)]
Token = Annotated[str, msgspec.Meta(extra=_SECRET, pattern=r"^([!-~]{16,})?$")]
Function = TypeVar("Function", bound=Callable[..., Any])


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker and its commands can be told; an empty string or list means "not set".

    ``brokers`` is Kafka's ``bootstrap.servers`` form; units stand last in the names.
    """

    map_file: pathlib.Path = pathlib.Path("map.toml")
    node: Annotated[str, msgspec.Meta(max_length=200)] = ""
    state_folder: pathlib.Path = pathlib.Path("var/state")
    insecure: bool = False

    brokers: Annotated[str, msgspec.Meta(pattern=_BROKERS)] = "127.0.0.1:9092"
    group: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,200}$")] = ""
    kafka_tls: bool = False
    kafka_ca_file: str = ""
    kafka_cert_file: str = ""
    kafka_key_file: str = ""
    kafka_key_password_file: str = ""
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    kafka_username: str = ""
    kafka_password: Secret = ""
    kafka_password_file: str = ""
    session_timeout_ms: Milliseconds = 10_000
    stuck_after_ms: Milliseconds = 60_000
    fetch_max_wait_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 50
    fetch_bytes_max: Positive = 50 * MIB
    gather_ms_max: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 10
    chunk_bytes_max: Positive = 8 * MIB
    chunk_records_max: Positive = 100_000
    pending_bytes_max: Positive = 256 * MIB
    disk_free_bytes_min: Annotated[int, msgspec.Meta(ge=0)] = 256 * MIB

    archive: str = "embedded"
    archive_folder: pathlib.Path = pathlib.Path("var/archive")
    early_emit_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] = 10_000
    cassandra_hosts: tuple[str, ...] = ("127.0.0.1",)
    cassandra_port: Port = 9042
    cassandra_keyspace: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,47}$")] = (
        "treasure_map"
    )
    cassandra_local_dc: Annotated[str, msgspec.Meta(min_length=1)] = "datacenter1"
    cassandra_replication: Annotated[str, msgspec.Meta(pattern=_REPLICATION)] = "1"
    cassandra_tls: bool = False
    cassandra_tls_name: str = ""
    cassandra_ca_file: str = ""
    cassandra_cert_file: str = ""
    cassandra_key_file: str = ""
    cassandra_key_password_file: str = ""
    cassandra_username: str = ""
    cassandra_password: Secret = ""
    cassandra_password_file: str = ""

    web_host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    web_port: Port = 6066
    web_token: Token = ""
    web_token_file: str = ""
    web_tokens_file: str = ""
    peer_secret: Token = ""
    peer_secret_file: str = ""
    web_cert_file: str = ""
    web_key_file: str = ""
    web_key_password_file: str = ""
    web_ca_file: str = ""
    web_url: Annotated[str, msgspec.Meta(pattern=_URL)] = ""
    query_rows_max: Positive = 1_000_000
    query_cells_max: Positive = 1_000_000
    query_limit_max: Positive = 10_000
    query_deadline_ms: Milliseconds = 10_000
    query_concurrency_max: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 4
    query_cache_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20
    query_live_max: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 64

    @property
    def node_name(self) -> str:
        """The node, or host and port: workers of one host differ in it."""
        return self.node or f"{socket.gethostname()}-{self.web_port}"

    def group_of(self, map_name: str) -> str:
        """Return the consumer group of the workers of a map."""
        return self.group or f"treasure-map.{map_name}"

    @property
    def kafka_uses_tls(self) -> bool:
        """Whether connections to brokers are encrypted: asked for, or given a certificate."""
        return self.kafka_tls or bool(self.kafka_ca_file or self.kafka_cert_file)

    @property
    def cassandra_uses_tls(self) -> bool:
        """Whether connections to Cassandra are encrypted: asked for, or given what TLS needs."""
        given = (self.cassandra_tls_name, self.cassandra_ca_file, self.cassandra_cert_file)
        return self.cassandra_tls or any(given)

    def __repr__(self) -> str:
        """Show every field, secrets masked."""
        values = ", ".join(f"{name}={value!r}" for name, value in masked(self).items())
        return f"Settings({values})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show every field to rich, secrets masked."""
        return list(masked(self).items())


FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
assert list(MEANINGS) == list(FIELDS), "MEANINGS must list the fields of Settings in their order"


def is_secret(name: str) -> bool:
    """Tell whether a field's value must never be shown."""
    metas = getattr(FIELDS[name].type, "__metadata__", ())
    return any((meta.extra or {}).get("secret", False) for meta in metas)


def masked(settings: Settings) -> dict[str, object]:
    """Return the fields of ``settings`` with every secret that is set replaced by asterisks."""
    values = msgspec.structs.asdict(settings)
    return {name: MASK if value and is_secret(name) else value for name, value in values.items()}


def secrets_of(settings: Settings) -> list[str]:
    """Return the values that must never be shown."""
    return [getattr(settings, name) for name in FIELDS if is_secret(name)]


def environment_variable(name: str) -> str:
    """Return the environment variable of a field."""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def flag(name: str) -> str | None:
    """Return the flag of a field, None for a secret."""
    return None if is_secret(name) else f"--{_FLAG_NAMES.get(name, name).replace('_', '-')}"


def load_settings(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | os.PathLike[str] | None = None,
) -> Settings:
    """Read the settings from all places and check them as a whole.

    Args:
        flags: values by field name; None values are flags that were not given.
        environ: environment variables; None takes the process's own.
        file: the TOML file; None takes the one that ``TREASURE_MAP_SETTINGS`` names, if any.

    Raises:
        SettingError: some field cannot be used; the message names all of them.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, _Given] = {}
    problems: list[str] = []
    path = file if file is not None else environ.get(FILE_VARIABLE)
    private = []
    if path and _read_file(pathlib.Path(path), given, problems):
        private.append(str(path))
    _read_environment(environ, given, problems)
    for name, value in (flags or {}).items():
        assert name in FIELDS, f"{name} is no field of Settings"
        if value is not None:
            given[name] = _Given(value, f"flag {flag(name) or name}", isinstance(value, str))
    unread = _read_secrets(given, problems)
    values: dict[str, Any] = {}
    for name, field in given.items():
        try:
            values[name] = _convert(name, field)
        except (msgspec.ValidationError, ValueError) as error:
            shown = MASK if is_secret(name) else repr(field.value)
            problems.append(f"{name} ({field.where}): got {shown}; want {_wanted(name, error)}")
    settings = Settings(**values)
    sound = values.keys() | (FIELDS.keys() - given.keys() - unread)
    problems += [text for fields, text in relations(settings) if sound.issuperset(fields)]
    if problems:
        # Whoever takes a host for a URL may put a password into it.
        lines = "\n".join(f"  - {_LOGIN.sub(f'{MASK}@', problem)}" for problem in problems)
        raise SettingError(f"cannot use settings: {len(problems)} problem(s)\n{lines}")
    private += filter(None, (getattr(settings, name) for name in PRIVATE_FILES))
    warn_of_readers(private)
    return settings


class _Given(NamedTuple):
    """A value, the place that gave it, and whether that place knows only text."""

    value: object
    where: str
    is_text: bool


def _read_file(path: pathlib.Path, given: dict[str, _Given], problems: list[str]) -> bool:
    """Add the values of a file; return whether a secret is among them."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"file {path}: cannot read it: {error}; want a TOML file of settings")
        return False
    for name, value in document.items():
        if name in FIELDS:
            given[name] = _Given(value, f"file {path}", is_text=False)
        else:
            problems.append(f"{name} (file {path}): no such setting; {_nearest(name, FIELDS)}")
    return any(name in FIELDS and is_secret(name) and bool(document[name]) for name in document)


def _read_secrets(given: dict[str, _Given], problems: list[str]) -> set[str]:
    """Add the secrets that stand in files of their own; return those that cannot be read."""
    unread = set()
    for name, of_file in SECRET_FILES.items():
        file = given.get(of_file)
        if file is None or not file.value or not isinstance(file.value, str):
            continue
        if name in given and given[name].value:
            problems.append(
                f"{of_file} ({file.where}): got a file, and {name} ({given[name].where}) too; want"
                " one of them; take the other out"
            )
            continue
        try:
            given[name] = _Given(read_secret(pathlib.Path(file.value)), file.where, is_text=True)
        except ValueError as error:
            problems.append(f"{of_file} ({file.where}): got {shown_path(file.value)}; {error}")
            unread.add(name)
    return unread


def _read_environment(
    environ: Mapping[str, str], given: dict[str, _Given], problems: list[str]
) -> None:
    known = {environment_variable(name): name for name in FIELDS}
    for variable, value in environ.items():
        if variable in known:
            given[known[variable]] = _Given(value, f"environment {variable}", is_text=True)
        elif variable.startswith(ENVIRONMENT_PREFIX) and variable != FILE_VARIABLE:
            hint = _nearest(variable, [*known, FILE_VARIABLE])
            problems.append(f"{variable} (environment): no such setting; {hint}")


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "docs/OPERATING.md lists all of them"


def _convert(name: str, field: _Given) -> Any:
    """Return a value as the field's type; text from environment and flags fits any type."""
    value = field.value
    if FIELDS[name].type is pathlib.Path:
        if not isinstance(value, str | pathlib.Path) or not str(value):
            raise ValueError("a path")
        return pathlib.Path(value)
    if name == "archive" and value not in archives.names():
        raise ValueError(f"one of {', '.join(archives.names())}")
    if name == "cassandra_hosts":
        hosts = value.split(",") if isinstance(value, str) else value
        found = tuple(host.strip() for host in msgspec.convert(hosts, tuple[str, ...]))
        if not all(found) or not found:
            raise ValueError("host names")
        return found
    return msgspec.convert(value, FIELDS[name].type, strict=not field.is_text)


def _wanted(name: str, error: Exception) -> str:
    if name in _FORMS:
        return _FORMS[name]
    if FIELDS[name].type is bool:
        return "true or false"
    if get_origin(FIELDS[name].type) is Literal:
        return "one of " + ", ".join(choice for choice in get_args(FIELDS[name].type) if choice)
    return str(error).removeprefix("Expected ").split(", got ")[0]
