"""Verify on real workers: what they come to equals a recomputation from their topics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from workers import Cluster

from app.generate_plan import MAP_FILE
from app.settings import load_settings
from app.verify import verify


@pytest.mark.slow
async def test_verify_finds_a_worker_equal_after_input_of_every_kind(
    broker: str, tmp_path: Path
) -> None:
    """All forms, bad and late events; what is recomputed is the manifest's ledger too."""
    with Cluster(broker, tmp_path, map_file=MAP_FILE, archive="embedded") as cluster:
        worker = cluster.add()
        path = tmp_path / "manifest.json"
        await asyncio.to_thread(
            cluster.run, "generate", "--brokers", broker, "--manifest", str(path),
            "--rate", "10000", "--seconds", "2", "--speed", "300", "--bad", "0.02",
            "--late", "0.03", "--format", "mixed", "--batch", "100", "--processes", "2",
        )  # fmt: skip
        flags = {"map_file": str(MAP_FILE), "brokers": broker}
        settings = load_settings(flags | {"archive_folder": str(tmp_path / "archive")}, {})
        report = await verify(settings, urls=[worker.url])
        assert report.equal, [str(one) for one in report.differences]
        assert all(layer.expected == layer.http for layer in report.layers)
        manifest = json.loads(path.read_bytes())
        assert report.ledger == manifest["ledger"]
        for number, told in manifest["partitions"].items():
            assert report.partitions[f"{manifest['topic']}[{number}]"] == told["ledger"]
