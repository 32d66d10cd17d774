"""Settings: one frozen tree from defaults, a TOML file, the environment and flags.

A later place overrides an earlier: default < file (``--settings`` or ``TREASURE_MAP_SETTINGS``)
< ``TREASURE_MAP_<NAME>`` < flag. Every bad field stands in one SettingError, each with where it
came from. A secret is read from the file or the environment only (a flag would stand in the process
list) and is never printed.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import os
import pathlib
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from app.printable import MASK
from tables.errors import SettingError

ENVIRONMENT_PREFIX = "TREASURE_MAP_"
FILE_VARIABLE = "TREASURE_MAP_SETTINGS"
MIB = 1024 * 1024
_SECRET = {"secret": True}
_BROKERS = r"^\s*[^\s,:]+:\d{1,5}(\s*,\s*[^\s,:]+:\d{1,5})*\s*$"
_URL = r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$"
_REPLICATION = r"^([1-9]\d?|[A-Za-z0-9_.-]+:[1-9]\d?(,[A-Za-z0-9_.-]+:[1-9]\d?)*)$"
# Flags whose name is not the field's own.
_FLAG_NAMES = {"map_file": "map"}
# Fields that mean nothing without each other, and limits that must not exceed others.
_TOGETHER = (
    ("kafka_cert_file", "kafka_key_file"),
    ("cassandra_cert_file", "cassandra_key_file"),
    ("web_cert_file", "web_key_file"),
    ("kafka_username", "kafka_password"),
    ("kafka_sasl_mechanism", "kafka_username"),
    ("cassandra_username", "cassandra_password"),
)
_ORDERED = (("query_limit_max", "query_cells_max"),)
# What a field takes, where msgspec's own words would show a pattern.
_FORMS = {
    "brokers": "host:port, more separated by commas",
    "cassandra_hosts": "host names, separated by commas or as a list",
    "cassandra_replication": "a number like 3, or factors by data centre like dc1:3,dc2:3",
    "cassandra_keyspace": "a lower-case identifier of at most 48 characters",
    "group": "at most 200 letters, digits, dots, dashes and underscores",
    "web_url": "a URL like https://worker-1:6066",
    "web_token": "at least 16 printable ASCII characters without spaces",
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
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    kafka_username: str = ""
    kafka_password: Secret = ""
    session_timeout_ms: Milliseconds = 10_000
    stuck_after_ms: Milliseconds = 60_000
    fetch_max_wait_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 50
    fetch_bytes_max: Positive = 50 * MIB
    gather_ms_max: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 10
    chunk_bytes_max: Positive = 8 * MIB
    chunk_records_max: Positive = 100_000
    pending_bytes_max: Positive = 256 * MIB
    disk_free_bytes_min: Annotated[int, msgspec.Meta(ge=0)] = 256 * MIB

    archive: Literal["embedded", "cassandra"] = "embedded"
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
    cassandra_username: str = ""
    cassandra_password: Secret = ""

    web_host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    web_port: Port = 6066
    web_token: Token = ""
    web_cert_file: str = ""
    web_key_file: str = ""
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


# What each field means, in the order of the operating page; checked to be complete when imported.
MEANINGS: dict[str, str] = {
    "map_file": "The map: sources and layers, a TOML file.",
    "node": "This worker's name in its group, where each has one of its own; empty: `HOST-PORT`, of"
    " the host's name and `web_port`.",
    "state_folder": "Local store of open windows. May be wiped: it comes back from the journal.",
    "insecure": "Allow a bind without token and TLS, and servers beyond loopback without TLS.",
    "brokers": "Kafka brokers to start from, `host:port` separated by commas.",
    "group": "Kafka consumer group; its members share the partitions of one map. Empty:"
    " `treasure-map.MAP`.",
    "kafka_tls": "Encrypt connections to Kafka; also on where a certificate is given.",
    "kafka_ca_file": "PEM file of the authorities that sign the brokers; empty: the system's.",
    "kafka_cert_file": "PEM file of this client's certificate for Kafka.",
    "kafka_key_file": "PEM file of the key of `kafka_cert_file`.",
    "kafka_sasl_mechanism": "How to log in to Kafka: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
    "kafka_username": "Name to log in to Kafka with.",
    "kafka_password": "Password to log in to Kafka with.",
    "session_timeout_ms": "A member not heard of for this long loses its partitions.",
    "stuck_after_ms": "A partition whose log grows while its owner stands for this long is claimed"
    " again; until it moves, `/readyz` answers 503.",
    "fetch_max_wait_ms": "Longest a broker holds a fetch for more records: idle delay per fetch.",
    "fetch_bytes_max": "Most bytes a broker puts in one answer to a fetch.",
    "gather_ms_max": (
        "Longest that a busy worker gathers records for one cycle; a quiet one does not wait."
    ),
    "chunk_bytes_max": (
        "Most bytes of record values folded in one cycle; fewer where a cycle takes long."
    ),
    "chunk_records_max": "Most records folded in one cycle.",
    "pending_bytes_max": "Memory of closed cells that archive or coarser layers have not taken,"
    " past which sources pause; layer topics at twice as much.",
    "disk_free_bytes_min": "Free bytes on the disk of the state folder, or of an embedded archive,"
    " below which sources pause; layer topics at half of it.",
    "archive": "Where closed cells rest: `embedded` (one worker only) or `cassandra`.",
    "archive_folder": "Folder of the embedded archive, one for each map. May be moved, not wiped:"
    " a worker with another archive than its journals' is refused.",
    "early_emit_ms": "Cells of open windows are sent on too once those of their partition have not"
    " changed for so long; 0: never.",
    "cassandra_hosts": "Cassandra nodes to start from.",
    "cassandra_port": "Port of every Cassandra node.",
    "cassandra_keyspace": "Keyspace of the layer tables.",
    "cassandra_local_dc": "Data centre this worker reads and writes in (LOCAL_QUORUM).",
    "cassandra_replication": "Copies of a row: a number, or `dc1:3,dc2:3` by data centre.",
    "cassandra_tls": "Encrypt connections to Cassandra; also on where a certificate, or a name that"
    " certificates must have, is given.",
    "cassandra_tls_name": "The name in every node's certificate; empty: the host of"
    " `cassandra_hosts` that has the node's address, or the address where none has it.",
    "cassandra_ca_file": "PEM file of the authorities that sign the nodes; empty: the system's.",
    "cassandra_cert_file": "PEM file of this client's certificate for Cassandra.",
    "cassandra_key_file": "PEM file of the key of `cassandra_cert_file`.",
    "cassandra_username": "Role to log in to Cassandra with; a worker needs SELECT and MODIFY on"
    " the keyspace.",
    "cassandra_password": "Password to log in to Cassandra with.",
    "web_host": "Address the query endpoint binds to.",
    "web_port": "Port of the query endpoint.",
    "web_token": "Bearer token that every request but the health checks must carry; 16 or more"
    " printable ASCII characters.",
    "web_cert_file": "PEM file of the query endpoint's certificate; turns TLS on.",
    "web_key_file": "PEM file of the key of `web_cert_file`.",
    "web_ca_file": "PEM file of the authorities that sign other workers' certificates; empty: the"
    " system's.",
    "web_url": "Where other workers reach this one's endpoint; empty: as `web_host` and `web_port`"
    " say, or this machine's own address where that is a wildcard.",
    "query_rows_max": "Most archive rows one query reads.",
    "query_cells_max": "Most live and archived rows one query merges.",
    "query_limit_max": "Most cells in one page of an answer.",
    "query_deadline_ms": "A query that takes longer is given up (HTTP 504).",
    "query_concurrency_max": "Queries answered at the same time; more are turned away (HTTP 503).",
    "query_cache_bytes_max": "Memory for archive rows that will not change; 0 keeps none.",
    "query_live_max": "Readers that follow cells at once; more are turned away (HTTP 503).",
}
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


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only mean this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


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
    if path:
        _read_file(pathlib.Path(path), given, problems)
    _read_environment(environ, given, problems)
    for name, value in (flags or {}).items():
        assert name in FIELDS, f"{name} is no field of Settings"
        if value is not None:
            given[name] = _Given(value, f"flag {flag(name) or name}", isinstance(value, str))
    values: dict[str, Any] = {}
    for name, field in given.items():
        try:
            values[name] = _convert(name, field)
        except (msgspec.ValidationError, ValueError) as error:
            shown = MASK if is_secret(name) else repr(field.value)
            problems.append(f"{name} ({field.where}): got {shown}; want {_wanted(name, error)}")
    settings = Settings(**values)
    sound = values.keys() | (FIELDS.keys() - given.keys())
    problems += [text for fields, text in _relations(settings) if sound.issuperset(fields)]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise SettingError(f"cannot use settings: {len(problems)} problem(s)\n{lines}")
    return settings


class _Given(NamedTuple):
    """A value, the place that gave it, and whether that place knows only text."""

    value: object
    where: str
    is_text: bool


def _read_file(path: pathlib.Path, given: dict[str, _Given], problems: list[str]) -> None:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"file {path}: cannot read it: {error}; want a TOML file of settings")
        return
    for name, value in document.items():
        if name in FIELDS:
            given[name] = _Given(value, f"file {path}", is_text=False)
        else:
            problems.append(f"{name} (file {path}): no such setting; {_nearest(name, FIELDS)}")


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


def _relations(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong between fields, each with the fields it is about."""
    yield from _posture(settings)
    for one, other in _TOGETHER:
        present, absent = (one, other) if getattr(settings, one) else (other, one)
        if getattr(settings, present) and not getattr(settings, absent):
            text = f"{present}: got a value, without {absent}; want both or neither; set {absent}"
            yield (one, other), text
    if settings.web_cert_file and settings.web_url.startswith("http:"):
        text = (
            f"web_url: got {settings.web_url}, with web_cert_file; want https://, as it speaks TLS"
        )
        yield ("web_url", "web_cert_file"), text
    for smaller, larger in _ORDERED:
        low, high = getattr(settings, smaller), getattr(settings, larger)
        if low > high:
            text = (
                f"{smaller}: got {low}; want at most {larger}, {high}; lower it or raise {larger}"
            )
            yield (smaller, larger), text


def _posture(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is reachable from, or reaches, beyond loopback is authenticated and encrypted."""
    if settings.insecure:
        return
    way_out = "or set insecure if the network itself is trusted"
    guards = ("web_token", "web_cert_file")
    missing = [name for name in guards if not getattr(settings, name)]
    if missing and not is_loopback(settings.web_host):
        text = (
            f"web_host: got {settings.web_host}, reachable from other machines;"
            f" want {' and '.join(missing)} with it; set them, bind to 127.0.0.1, {way_out}"
        )
        yield ("web_host", *guards), text
    hosts = [broker.strip().rpartition(":")[0] for broker in settings.brokers.split(",")]
    remote = [host for host in hosts if not is_loopback(host)]
    if remote and not settings.kafka_uses_tls:
        text = (
            f"brokers: got {', '.join(remote)}, beyond loopback without TLS;"
            f" want TLS; set kafka_tls or kafka_ca_file, {way_out}"
        )
        yield ("brokers", "kafka_tls"), text
    remote = [host for host in settings.cassandra_hosts if not is_loopback(host)]
    if settings.archive == "cassandra" and remote and not settings.cassandra_uses_tls:
        text = (
            f"cassandra_hosts: got {', '.join(remote)}, beyond loopback without TLS;"
            f" want TLS; set cassandra_tls or cassandra_ca_file, {way_out}"
        )
        yield ("cassandra_hosts", "archive", "cassandra_tls"), text
