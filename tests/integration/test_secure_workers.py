"""Two workers as processes, with TLS, tokens and a secret between them, from end to end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from app.trust.tokens import make_token, revoke_token
from tests.support import servers
from tests.support.common import flight, until
from tests.support.pki import Authority, Certificate
from tests.support.station_support import Process, apply

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


async def test_workers_answer_for_each_other_over_tls(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """With tokens that open only what they are for, and none of them between workers."""
    pytest.importorskip("cassandra")
    authority = Authority(tmp_path)
    (tmp_path / "password").write_text("the passphrase of a key")
    one, two = secured(
        processes, tmp_path, authority, [authority.issue("one"), authority.issue("two")]
    )
    token = make_token(tmp_path / "tokens.json", "reader", ["read"])
    reader = Asker(authority, token)
    await apply(one)
    for worker in (one, two):
        worker.start()

    async def owns(worker: Process) -> bool:
        _, found = await reader.ask(worker, "/v1/cluster")
        return found is not None and len(found["workers"]) == 2

    for worker in (one, two):
        await until(lambda worker=worker: owns(worker), 90)
    raw = f"{one.map_name}.raw"
    await one.send(raw, *((number % 2, flight(1, at, "UA")) for number, at in enumerate(ORIGINS)))

    async def is_whole(worker: Process) -> bool:
        status, page = await reader.ask(worker, CELLS)
        return (
            status == 200
            and not page["partial"]
            and {cell["key"]["origin"] for cell in page["cells"]} == set(ORIGINS)
        )

    for worker in (one, two):
        await until(lambda worker=worker: is_whole(worker), 60)
        _, cluster = await reader.ask(worker, "/v1/cluster")
        assert sorted(
            (found["url"], found["own"], found["problem"]) for found in cluster["workers"]
        ) == sorted(
            (f"https://127.0.0.1:{other.port}", other is worker, "") for other in (one, two)
        )

    admin = Asker(authority, make_token(tmp_path / "tokens.json", "admin", ["admin"]))
    nobody = Asker(authority, "")
    for worker in (one, two):
        await until(lambda worker=worker: gives(admin, worker, "/metrics", 200), 10)
        assert (await admin.ask(worker, CELLS))[0] == 403
        assert (await reader.ask(worker, "/metrics"))[0] == 403
        assert (await nobody.ask(worker, CELLS))[0] == 401
        assert (await nobody.ask(worker, "/livez"))[0] == 200
        assert set((await nobody.ask(worker, "/readyz"))[1]) == {"ready"}
        assert (await reader.ask(worker, "/v1/worker/live", "POST"))[0] == 403
        assert (await nobody.ask(worker, "/v1/worker/live", "POST"))[0] == 401
        _, metrics = await admin.ask(worker, "/metrics")
        numbers = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
        assert float(numbers["treasure_map_worker_asks_total"]) > 0
        assert numbers["treasure_map_insecure"] == "0.0"
    revoke_token(tmp_path / "tokens.json", "reader")
    for worker in (one, two):
        await until(lambda worker=worker: gives(reader, worker, CELLS, 401), 10)
        assert await worker.stop() == 0
        for secret in (SECRET, token, "the passphrase"):
            assert secret not in worker.log()


async def gives(asker: Asker, worker: Process, path: str, status: int) -> bool:
    """Return whether a path gives a status."""
    return (await asker.ask(worker, path))[0] == status


async def test_a_worker_whose_certificate_fails_is_told_and_heals(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """Its cells are missing, with a warning and a word at /v1/cluster, until it is renewed."""
    pytest.importorskip("cassandra")
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    (tmp_path / "password").write_text("the passphrase of a key")
    foreign = other.issue("two")
    one, two = secured(processes, tmp_path, authority, [authority.issue("one"), foreign])
    reader = Asker(authority, make_token(tmp_path / "tokens.json", "reader", ["read"]))
    await apply(one)
    for worker in (one, two):
        worker.start()
    url = f"https://127.0.0.1:{two.port}"

    async def problem() -> tuple[int, str]:
        status, _ = await reader.ask(one, CELLS)
        _, cluster = await reader.ask(one, "/v1/cluster")
        if cluster is None or len(cluster["workers"]) < 2:
            return 0, ""
        (found,) = [about for about in cluster["workers"] if about["url"] == url]
        return status, str(found["problem"])

    async def is_told() -> bool:
        # Without the other worker's cells the archive is asked, which is not there.
        status, told = await problem()
        return "unable to get local issuer certificate" in told and status == 503

    await until(is_told, 90)
    for _ in range(5):
        await problem()
    log = one.log()
    assert log.count(f"worker {url} is not used, answers lack its live cells") == 1
    assert "[WARNING]" in next(line for line in log.splitlines() if "is not used" in line)
    renewed = authority.issue("renewed")
    for source, target in (
        (renewed.cert_file, foreign.cert_file),
        (renewed.locked_key_file, foreign.locked_key_file),
    ):
        await asyncio.to_thread(target.write_bytes, source.read_bytes())

    async def is_healed() -> bool:
        return await problem() == (200, "")

    await until(is_healed, 30)
