"""Two workers as processes, with TLS, tokens and a secret between them, from end to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app.trust.tokens import make_token, revoke_token
from tests.support.common import flight
from tests.support.pki import Authority
from tests.support.secured_workers import CELLS, ORIGINS, SECRET, Asker, secured
from tests.support.waiting import until
from tests.support.worker_process import Process, apply


async def test_workers_answer_for_each_other_over_tls(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """Each token opens only its own paths; between workers there is no token."""
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
    assert " WARNING " in next(line for line in log.splitlines() if "is not used" in line)
    renewed = authority.issue("renewed")
    for source, target in (
        (renewed.cert_file, foreign.cert_file),
        (renewed.locked_key_file, foreign.locked_key_file),
    ):
        await asyncio.to_thread(target.write_bytes, source.read_bytes())

    async def is_healed() -> bool:
        return await problem() == (200, "")

    await until(is_healed, 30)
