"""Three brokers with TLS between them, and a worker that goes on when one of them dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support import manifests
from tests.support.cluster import Worker
from tests.support.kafka_cluster import KafkaCluster
from tests.support.pki import Authority
from tests.support.secure_servers import MAP
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


async def test_a_worker_goes_on_when_one_of_three_nodes_with_tls_dies(
    secure_cluster: tuple[KafkaCluster, Authority], tmp_path: Path
) -> None:
    """Every row equals a recomputation, before and after; in clear nobody gets in."""
    cluster, authority = secure_cluster
    file = tmp_path / "map.toml"
    file.write_text(MAP.replace("NAME", f"m{uuid.uuid4().hex[:8]}"))
    client = authority.issue("client")
    settings = {
        "brokers": cluster.bootstrap, "map_file": str(file),
        "kafka_ca_file": str(authority.ca_file), "kafka_cert_file": str(client.cert_file),
        "kafka_key_file": str(client.key_file), "archive_folder": str(tmp_path / "archive"),
    }  # fmt: skip
    environment = dict(os.environ)
    environment |= {f"TREASURE_MAP_{name.upper()}": value for name, value in settings.items()}

    async def run(*arguments: str, **changes: str) -> tuple[int, str]:
        own = {f"TREASURE_MAP_{name.upper()}": value for name, value in changes.items()}
        command = [sys.executable, "-m", "app", *arguments]

        def finish() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, env=environment | own, cwd=ROOT, capture_output=True, text=True,
                check=False, timeout=240,
            )  # fmt: skip

        done = await asyncio.to_thread(finish)
        return done.returncode, done.stdout + done.stderr

    async def load(*arguments: str) -> dict[str, Any]:
        manifest = tmp_path / "manifest.json"
        code, text = await run(
            "generate", "--manifest", str(manifest), "--rate", "500", "--seconds", "2",
            "--processes", "1", "--no-settle", *arguments,
        )  # fmt: skip
        assert code == 0, text
        return dict(json.loads(manifest.read_text()))

    code, text = await run("map", "apply", str(file), "--replication", "3")
    assert code == 0, text
    code, text = await run("map", "apply", str(file), kafka_ca_file="", kafka_cert_file="",
                           kafka_key_file="")  # fmt: skip
    assert code == 1
    assert "kafka_tls" in text
    worker = Worker("a", tmp_path, environment)
    worker.start()
    try:
        await load()
        cluster.nodes[0].kill()
        manifest = await load("--append")

        async def applied() -> bool:
            ledger = await asyncio.to_thread(worker.get, "ledger")
            return ledger is not None and manifests.is_applied(manifest, [ledger])

        await until(applied, 120)
        code, text = await run("verify", "--url", worker.url)
        assert (code, "all equal" in text) == (0, True), text
    finally:
        worker.stop()
