"""The fields of the settings: name, type, limits, default and meaning of each, in one place.

Flags, environment variables, keys of the settings file and the table of docs/OPERATING.md follow
from them. A secret has a field beside it, named like it with ``_file`` at the end.
"""

from __future__ import annotations

import pathlib
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo

from tables.called import called

MIB = 1024 * 1024
_BROKERS = r"^\s*[^\s,:]+:\d{1,5}(\s*,\s*[^\s,:]+:\d{1,5})*\s*$"
_GROUP = r"^[A-Za-z0-9._-]{0,200}$"
_KEYSPACE = r"^[a-z][a-z0-9_]{0,47}$"
_URL = r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$"
_REPLICATION = r"^([1-9]\d?|[A-Za-z0-9_.-]+:[1-9]\d?(,[A-Za-z0-9_.-]+:[1-9]\d?)*)$"
_TOKEN = "at least 16 printable ASCII characters without spaces"  # noqa: S105 - its form

Positive = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Secret = Annotated[str, Meta(extra={"secret": True})]
Token = Annotated[str, Meta(pattern=r"^([!-~]{16,})?$", extra={"secret": True, "wanted": _TOKEN})]
PrivateFile = Annotated[str, Meta(extra={"private": True})]


def means(text: str, *, wanted: str = "", flag: str = "", default: str = "", **limits: Any) -> Meta:
    """Return the annotation of a setting: its meaning and its limits.

    Args:
        text: a sentence for the page and the flag, with the names of other settings in back ticks.
        wanted: the form of a value, for a refusal; empty: msgspec's own words.
        flag: the name of the flag; empty: the field's.
        default: words for a default that only the running worker knows.
        limits: the limits of the value, as arguments of ``msgspec.Meta``.
    """
    extra = {"wanted": wanted, "flag": flag, "default": default}
    return Meta(description=text, extra=extra, **limits)


def _authorities(of: str) -> Meta:
    return means(f"PEM file of the authorities that sign the {of}; empty: the system's.")


def _certificate(of: str) -> Meta:
    return means(f"PEM file of this client's certificate for {of}.")


def _key(cert_file: str) -> Meta:
    return means(f"PEM file of the key of `{cert_file}`.")


def _passphrase(key_file: str) -> Meta:
    return means(f"File that holds the passphrase of `{key_file}`; empty: it has none.")


def _holds(secret: str) -> Meta:
    return means(f"File that holds `{secret}`; give one of the two.")


class SettingFields(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a worker and its commands; an empty string or list means "not set"."""

    map_file: Annotated[
        pathlib.Path, means("The map: sources and layers, a TOML file.", flag="map")
    ] = pathlib.Path("map.toml")
    node: Annotated[
        str,
        means(
            "This worker's name, unique in its group; empty: `HOST-PORT`,"
            " of the host's name and `web_port`.",
            max_length=200,
            default="the host's name",
        ),
    ] = ""
    state_folder: Annotated[
        pathlib.Path,
        means("Local store of open windows. May be wiped: it comes back from the journal."),
    ] = pathlib.Path("var/state")
    insecure: Annotated[
        bool, means("Allow a bind without token and TLS, and servers beyond loopback without TLS.")
    ] = False

    brokers: Annotated[
        str,
        means(
            "Kafka brokers to start from, `host:port` separated by commas.",
            pattern=_BROKERS,
            wanted="host:port, more separated by commas",
        ),
    ] = "127.0.0.1:9092"
    group: Annotated[
        str,
        means(
            "Kafka consumer group; its members share the partitions of one map. Empty:"
            " `treasure-map.MAP`.",
            pattern=_GROUP,
            wanted="at most 200 letters, digits, dots, dashes and underscores",
        ),
    ] = ""
    kafka_tls: Annotated[
        bool, means("Encrypt connections to Kafka; also on if a certificate is given.")
    ] = False
    kafka_ca_file: Annotated[str, _authorities("brokers")] = ""
    kafka_cert_file: Annotated[str, _certificate("Kafka")] = ""
    kafka_key_file: Annotated[PrivateFile, _key("kafka_cert_file")] = ""
    kafka_key_password_file: Annotated[PrivateFile, _passphrase("kafka_key_file")] = ""
    kafka_sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        means("How to log in to Kafka: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."),
    ] = ""
    kafka_username: Annotated[str, means("Name to log in to Kafka with.")] = ""
    kafka_password: Annotated[Secret, means("Password to log in to Kafka with.")] = ""
    kafka_password_file: Annotated[
        PrivateFile,
        means("File that holds `kafka_password`, with or without a line end; give one of the two."),
    ] = ""
    session_timeout_ms: Annotated[
        Milliseconds, means("A member not heard of for this long loses its partitions.")
    ] = 10_000
    stuck_after_ms: Annotated[
        Milliseconds,
        means(
            "A partition whose log grows while its owner stands for this long is claimed again;"
            " until it moves, `/readyz` answers 503."
        ),
    ] = 60_000
    fetch_max_wait_ms: Annotated[
        int,
        means(
            "Longest a broker holds a fetch for more records: idle delay per fetch.",
            ge=0,
            le=60_000,
        ),
    ] = 50
    fetch_bytes_max: Annotated[
        Positive, means("Most bytes a broker puts in one answer to a fetch.")
    ] = 50 * MIB
    gather_ms_max: Annotated[
        int,
        means(
            "Longest that a busy worker gathers records for one cycle; a quiet one does not wait.",
            ge=0,
            le=10_000,
        ),
    ] = 10
    chunk_bytes_max: Annotated[
        Positive,
        means("Most bytes of record values folded in one cycle; fewer if a cycle takes long."),
    ] = 8 * MIB
    chunk_records_max: Annotated[Positive, means("Most records folded in one cycle.")] = 100_000
    pending_bytes_max: Annotated[
        Positive,
        means(
            "Memory of closed cells that archive or coarser layers do not have yet, past which"
            " sources pause; layer topics at twice as much."
        ),
    ] = 256 * MIB
    disk_free_bytes_min: Annotated[
        int,
        means(
            "Free bytes on the disk of the state folder, or of an embedded archive, below which"
            " sources pause; layer topics at half of it.",
            ge=0,
        ),
    ] = 256 * MIB

    archive: Annotated[
        str, means("Archive of closed cells: `embedded` (one worker only) or `cassandra`.")
    ] = "embedded"
    archive_folder: Annotated[
        pathlib.Path,
        means(
            "Folder of the embedded archive, one for each map. May be moved, not wiped: a worker"
            " with another archive than its journals' is refused."
        ),
    ] = pathlib.Path("var/archive")
    early_emit_ms: Annotated[
        int,
        means(
            "Cells of open windows are sent on too once those of their partition have not changed"
            " for so long; 0: never.",
            ge=0,
            le=86_400_000,
        ),
    ] = 10_000
    cassandra_hosts: Annotated[
        tuple[str, ...],
        means(
            "Cassandra nodes to start from.", wanted="host names, separated by commas or as a list"
        ),
    ] = ("127.0.0.1",)
    cassandra_port: Annotated[Port, means("Port of every Cassandra node.")] = 9042
    cassandra_keyspace: Annotated[
        str,
        means(
            "Keyspace of the layer tables.",
            pattern=_KEYSPACE,
            wanted="a lower-case identifier of at most 48 characters",
        ),
    ] = "treasure_map"
    cassandra_local_dc: Annotated[
        str, means("Data centre this worker reads and writes in (LOCAL_QUORUM).", min_length=1)
    ] = "datacenter1"
    cassandra_replication: Annotated[
        str,
        means(
            "Copies of a row: a number, or `dc1:3,dc2:3` by data centre.",
            pattern=_REPLICATION,
            wanted="a number like 3, or factors by data centre like dc1:3,dc2:3",
        ),
    ] = "1"
    cassandra_tls: Annotated[
        bool,
        means(
            "Encrypt connections to Cassandra; also on if a certificate, or a name that"
            " certificates must have, is given."
        ),
    ] = False
    cassandra_tls_name: Annotated[
        str,
        means(
            "The name in every node's certificate; empty: the host of `cassandra_hosts` that has"
            " the node's address, or the address if none has it."
        ),
    ] = ""
    cassandra_ca_file: Annotated[str, _authorities("nodes")] = ""
    cassandra_cert_file: Annotated[str, _certificate("Cassandra")] = ""
    cassandra_key_file: Annotated[PrivateFile, _key("cassandra_cert_file")] = ""
    cassandra_key_password_file: Annotated[PrivateFile, _passphrase("cassandra_key_file")] = ""
    cassandra_username: Annotated[
        str,
        means(
            "Role to log in to Cassandra with; a worker needs SELECT and MODIFY on the keyspace."
        ),
    ] = ""
    cassandra_password: Annotated[Secret, means("Password to log in to Cassandra with.")] = ""
    cassandra_password_file: Annotated[PrivateFile, _holds("cassandra_password")] = ""

    schema_registry_url: Annotated[
        str,
        means(
            "Schema registry of sources of format `avro`: its URL, with the path of Confluent's"
            " interface if it has one.",
            pattern=_URL,
            wanted="a URL like https://registry:8081",
        ),
    ] = ""
    schema_registry_ca_file: Annotated[str, _authorities("schema registry")] = ""
    schema_registry_username: Annotated[
        str,
        means(
            "Name to log in to the schema registry with.",
            pattern=r"^[^:]*$",
            wanted="a name without colon",
        ),
    ] = ""
    schema_registry_password: Annotated[
        Secret, means("Password to log in to the schema registry with.")
    ] = ""
    schema_registry_password_file: Annotated[PrivateFile, _holds("schema_registry_password")] = ""

    web_host: Annotated[str, means("Address the query endpoint binds to.", min_length=1)] = (
        "127.0.0.1"
    )
    web_port: Annotated[Port, means("Port of the query endpoint.")] = 6066
    web_token: Annotated[
        Token,
        means(
            "One bearer token with all scopes, which readers of the query endpoint send; 16 or"
            " more printable ASCII characters."
        ),
    ] = ""
    web_token_file: Annotated[PrivateFile, _holds("web_token")] = ""
    web_tokens_file: Annotated[
        PrivateFile,
        means(
            f"File of tokens with names and scopes, which `{called('token')}` writes; read again"
            " when it changes."
        ),
    ] = ""
    peer_secret: Annotated[
        Token,
        means(
            "Secret by which workers of a group trust each other, the same at all of them; 16 or"
            " more printable ASCII characters. Empty: derived from `web_token`."
        ),
    ] = ""
    peer_secret_file: Annotated[PrivateFile, _holds("peer_secret")] = ""
    web_cert_file: Annotated[
        str, means("PEM file of the query endpoint's certificate; turns TLS on.")
    ] = ""
    web_key_file: Annotated[PrivateFile, _key("web_cert_file")] = ""
    web_key_password_file: Annotated[PrivateFile, _passphrase("web_key_file")] = ""
    web_ca_file: Annotated[str, _authorities("other workers' certificates")] = ""
    web_url: Annotated[
        str,
        means(
            "URL at which other workers reach this one's endpoint; empty: as `web_host` and"
            " `web_port` say, or this machine's own address if that is a wildcard.",
            pattern=_URL,
            wanted="a URL like https://worker-1:6066",
        ),
    ] = ""
    query_rows_max: Annotated[Positive, means("Most archive rows one query reads.")] = 1_000_000
    query_cells_max: Annotated[Positive, means("Most live and archived rows one query merges.")] = (
        1_000_000
    )
    query_limit_max: Annotated[Positive, means("Most cells in one page of an answer.")] = 10_000
    query_deadline_ms: Annotated[
        Milliseconds, means("A query that takes longer is given up (HTTP 504).")
    ] = 10_000
    query_concurrency_max: Annotated[
        int,
        means("Queries answered at the same time; more are turned away (HTTP 503).", ge=1, le=1000),
    ] = 4
    query_cache_bytes_max: Annotated[
        int, means("Memory for archive rows that will not change; 0 keeps none.", ge=0)
    ] = 64 << 20
    query_live_max: Annotated[
        int,
        means(
            "Readers that follow cells at once; more are turned away (HTTP 503).", ge=0, le=10_000
        ),
    ] = 64


def plain_type(field: FieldInfo) -> Any:
    """Return the type of a field without its limits and its meaning."""
    return get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type


def meaning(field: FieldInfo) -> str:
    """Return the sentence with the meaning of a setting.

    Raises:
        ValueError: the field has no meaning.
    """
    for meta in _metas(field):
        if meta.description:
            return meta.description
    raise ValueError(
        f"cannot describe setting {field.name}: got no text at its field; want one;"
        ' write it as Annotated[TYPE, means("...")]'
    )


def is_secret(field: FieldInfo) -> bool:
    """Return whether the value of a field must never be shown."""
    return bool(trait(field, "secret"))


def flag(field: FieldInfo) -> str | None:
    """Return the flag of a field, None for a secret."""
    name = trait(field, "flag") or field.name
    return None if is_secret(field) else f"--{name.replace('_', '-')}"


def trait(field: FieldInfo, name: str) -> Any:
    """Return the trait of this name, None if the field does not have it.

    Traits are ``secret``, ``private`` (a file that nobody else should read), ``found`` (not a
    setting: it is found while settings are read), and the words ``wanted``, ``flag`` and
    ``default`` of :func:`means`.
    """
    return next(filter(None, ((meta.extra or {}).get(name) for meta in _metas(field))), None)


def _metas(field: FieldInfo) -> tuple[Meta, ...]:
    return getattr(field.type, "__metadata__", ())
