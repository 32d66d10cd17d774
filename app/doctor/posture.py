"""Security: connections and files that others could read, though the settings allow it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from app.config.checks import relations
from app.config.settings import Settings
from app.host.findings import Finding, of_problem
from app.trust.secret_files import readable_secrets


def posture(settings: Settings) -> Iterator[Finding]:
    """Yield connections beyond loopback that ``insecure`` allows, and files of secrets to close."""
    strict = msgspec.structs.replace(settings, insecure=False)
    exposed = [text for _, text in relations(strict)]
    for text in exposed:
        yield of_problem("warn", text)
    if not exposed:
        yield Finding("ok", "connections", "each is on this machine, or encrypted")
    readable = readable_secrets(settings.secret_files)
    for text in readable:
        yield Finding("warn", "secrets", text)
    if settings.secret_files and not readable:
        yield Finding("ok", "secrets", "nobody else on this machine may read their files")
