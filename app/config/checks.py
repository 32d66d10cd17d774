"""Checks between settings: pairs, limits under limits, and guards of all beyond loopback."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from app.config.archive_kind import Fault
from app.config.archives import archive_of
from app.config.loopback import INSECURE, is_loopback

if TYPE_CHECKING:
    from app.config.settings import Settings

# Fields that mean nothing without each other, and limits that must not exceed others.
_TOGETHER = (
    ("kafka_cert_file", "kafka_key_file"),
    ("cassandra_cert_file", "cassandra_key_file"),
    ("web_cert_file", "web_key_file"),
    ("kafka_username", "kafka_password"),
    ("kafka_sasl_mechanism", "kafka_username"),
    ("cassandra_username", "cassandra_password"),
    ("schema_registry_username", "schema_registry_password"),
)
# Fields that mean nothing without another.
_NEEDS = tuple(
    (f"{of}_key_password_file", f"{of}_key_file") for of in ("kafka", "cassandra", "web")
)
_ORDERED = (("query_limit_max", "query_cells_max"),)


_TOKENS = "web_token or web_tokens_file"


def relations(settings: Settings) -> Iterator[Fault]:
    """Yield each fault between fields: the fields that it is about, and a sentence."""
    yield from _posture(settings)
    for one, other in _TOGETHER:
        present, absent = (one, other) if getattr(settings, one) else (other, one)
        if getattr(settings, present) and not getattr(settings, absent):
            text = f"{present}: got a value, without {absent}; want both or neither; set {absent}"
            yield (one, other), text
    for one, other in _NEEDS:
        if getattr(settings, one) and not getattr(settings, other):
            text = f"{one}: got a value, without {other}; want the key that it opens; set {other}"
            yield (one, other), text
    if settings.web_cert_file and settings.web_url.startswith("http:"):
        text = (
            f"web_url: got {settings.web_url}, with web_cert_file; want https://, as it speaks TLS"
        )
        yield ("web_url", "web_cert_file"), text
    have_secret = bool(settings.peer_secret or settings.web_token)
    if settings.web_tokens_file and archive_of(settings).serves_many and not have_secret:
        text = (
            f"web_tokens_file: got {settings.web_tokens_file}, without peer_secret; want"
            " peer_secret too if a group may have several workers, by which they know each"
            " other; set the same at all of them"
        )
        yield ("web_tokens_file", "archive", "peer_secret", "web_token"), text
    for smaller, larger in _ORDERED:
        low, high = getattr(settings, smaller), getattr(settings, larger)
        if low > high:
            text = (
                f"{smaller}: got {low}; want at most {larger}, {high}; lower it or raise {larger}"
            )
            yield (smaller, larger), text


def _posture(settings: Settings) -> Iterator[Fault]:
    """Connections from and to hosts beyond loopback are authenticated and encrypted."""
    if settings.insecure:
        return
    guards = ("web_token", "web_tokens_file", "web_cert_file")
    missing = [] if settings.web_token or settings.web_tokens_file else [_TOKENS]
    missing += [] if settings.web_cert_file else ["web_cert_file"]
    if missing and not is_loopback(settings.web_host):
        text = (
            f"web_host: got {settings.web_host}, reachable from other machines;"
            f" want {' and '.join(missing)} with it; set them, bind to 127.0.0.1, {INSECURE}"
        )
        yield ("web_host", *guards), text
    hosts = [broker.strip().rpartition(":")[0] for broker in settings.brokers.split(",")]
    remote = [host for host in hosts if not is_loopback(host)]
    if remote and not settings.kafka_uses_tls:
        text = (
            f"brokers: got {', '.join(remote)}, beyond loopback without TLS;"
            f" want TLS; set kafka_tls or kafka_ca_file, {INSECURE}"
        )
        yield ("brokers", "kafka_tls"), text
    url = urllib.parse.urlsplit(settings.schema_registry_url)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        text = (
            f"schema_registry_url: got {settings.schema_registry_url}, beyond loopback without TLS;"
            f" want https://; change it, {INSECURE}"
        )
        yield ("schema_registry_url",), text
    yield from archive_of(settings).exposed(settings)
