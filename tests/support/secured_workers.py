"""Workers with TLS, tokens and a secret between them, and somebody who asks them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import servers
from tests.support.pki import Authority, Certificate
from tests.support.worker_process import Process

SECRET = "secret-between-workers"  # noqa: S105 - no password of anything
CELLS = "/v1/layers/hour/cells?from=0&to=86400000"
ORIGINS = ("EWR", "JFK", "LGA", "BOS")


def secured(
    make: Callable[..., Process],
    folder: Path,
    authority: Authority,
    certificates: list[Certificate],
) -> list[Process]:
    """Return workers of one group, which share tokens and a secret; none has an archive yet."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    (nobody,) = servers.free_ports(1)
    workers: list[Process] = []
    for made in certificates:
        settings = {
            "web_cert_file": str(made.cert_file),
            "web_key_file": str(made.locked_key_file),
            "web_key_password_file": str(folder / "password"),
            "web_ca_file": str(authority.ca_file),
            "web_tokens_file": str(folder / "tokens.json"),
            "peer_secret_file": str(secret),
            # An embedded one serves one worker; live cells need none.
            "archive": "cassandra",
            "cassandra_port": str(nobody),
        }
        if workers:
            settings |= {name: workers[0].settings[name] for name in ("map_file", "group")}
        workers.append(make(**settings))
    return workers


class Asker:
    """Asks workers with a token."""

    def __init__(self, authority: Authority, token: str) -> None:
        self._tls = ssl.create_default_context(cafile=authority.ca_file)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def ask(self, worker: Process, path: str, method: str = "GET") -> tuple[int, Any]:
        """Return status and answer; 0 while the worker does not listen."""
        url = f"https://127.0.0.1:{worker.port}{path}"
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers) as session,
                session.request(method, url, ssl=self._tls) as response,
            ):
                if response.content_type in ("application/json", "application/problem+json"):
                    return response.status, await response.json(content_type=None)
                return response.status, await response.text()
        except aiohttp.ClientConnectorError:
            assert worker.running.poll() is None, worker.log()
            return 0, None
