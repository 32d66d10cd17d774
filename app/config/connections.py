"""Settings as the Kafka and Cassandra clients want them."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

from app.host.reloads import Reloads
from app.trust.certificates import PemFiles, client_context
from tables.model.errors import SettingError
from treasure_map.extras import install

if TYPE_CHECKING:
    from app.config.settings import Settings
    from tables.archive.cassandra.archive import CassandraSettings


def kafka_options(settings: Settings, reloads: Reloads | None = None) -> dict[str, Any]:
    """Return the security options of every aiokafka client: TLS and login.

    Files of certificates are read again by ``reloads`` when they change.

    Raises:
        SettingError: a certificate file cannot be used.
    """
    options: dict[str, Any] = {}
    if settings.kafka_uses_tls:
        files = PemFiles(
            "kafka", settings.kafka_ca_file, settings.kafka_cert_file, settings.kafka_key_file,
            settings.kafka_key_password_file,
        )  # fmt: skip
        options["ssl_context"] = client_context(files, reloads)
    if settings.kafka_sasl_mechanism:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password
    secure = "SSL" if settings.kafka_uses_tls else "PLAINTEXT"
    options["security_protocol"] = f"SASL_{secure}" if settings.kafka_sasl_mechanism else secure
    return options


def client_options(login: Settings | None) -> dict[str, Any]:
    """Return :func:`kafka_options`, or those of a plain connection without settings."""
    return {} if login is None else kafka_options(login)


def cassandra_tls(settings: Settings, reloads: Reloads | None = None) -> ssl.SSLContext | None:
    """Return the context that checks the nodes of Cassandra, None for connections without TLS.

    Raises:
        SettingError: a certificate file cannot be used.
    """
    if not settings.cassandra_uses_tls:
        return None
    files = PemFiles(
        "cassandra", settings.cassandra_ca_file, settings.cassandra_cert_file,
        settings.cassandra_key_file, settings.cassandra_key_password_file,
    )  # fmt: skip
    return client_context(files, reloads)


def cassandra_settings(settings: Settings, reloads: Reloads | None = None) -> CassandraSettings:
    """Return the settings of the Cassandra archive; imports the Cassandra driver.

    Raises:
        SettingError: the driver is not installed, the archive cannot make such a replication, or a
            certificate file cannot be used.
    """
    try:
        from tables.archive.cassandra.archive import CassandraSettings  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise SettingError(
            f"cannot use archive cassandra: {error}; want the package cassandra-driver; "
            f"{install('cassandra')}"
        ) from error
    return CassandraSettings(
        hosts=settings.cassandra_hosts,
        port=settings.cassandra_port,
        keyspace=settings.cassandra_keyspace,
        local_dc=settings.cassandra_local_dc,
        replication=_replication(settings),
        username=settings.cassandra_username or None,
        password=settings.cassandra_password or None,
        # Made here: the driver would try for ever to connect without its files.
        tls=cassandra_tls(settings, reloads),
        tls_name=settings.cassandra_tls_name,
        tls_shows_certificate=bool(settings.cassandra_cert_file),
    )


def _replication(settings: Settings) -> int:
    text = settings.cassandra_replication
    centre, colon, factor = text.rpartition(":")
    if colon and centre != settings.cassandra_local_dc:
        raise SettingError(
            f"cannot make keyspace {settings.cassandra_keyspace}: it would span other data "
            f"centres than {settings.cassandra_local_dc}; got cassandra_replication {text!r}; want "
            "a number of copies; make the keyspace by hand, then set a number: a keyspace that "
            "exists keeps its replication"
        )
    return int(factor)


def advertised_url(settings: Settings) -> str:
    """Return the URL at which other workers reach this one's endpoint."""
    if settings.web_url:
        return settings.web_url.rstrip("/")
    host = settings.web_host
    if host in ("0.0.0.0", "::", "[::]"):  # noqa: S104 - compared, not bound
        host = socket.gethostbyname(socket.gethostname())
    scheme = "https" if settings.web_cert_file else "http"
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{bracketed}:{settings.web_port}"


def peers_tls(settings: Settings, reloads: Reloads | None = None) -> ssl.SSLContext | None:
    """Return the context that checks other workers' certificates, None for the system's.

    Raises:
        SettingError: the file of authorities cannot be used.
    """
    if not settings.web_ca_file:
        return None
    return client_context(PemFiles("web", settings.web_ca_file), reloads)
