"""The OpenAPI document against a running worker: whatever it allows is answered as it says."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.common import HOUR_MS, flight
from tests.support.worker_process import Process, apply

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "unsupported_method",
)  # fmt: skip
ENDLESS = "/live$"
"""A stream has no end that a fuzzer could wait for."""


CONFIGURATION = """
[parameters]
"query.max_staleness_ms" = 60000
"""
"""An answer that nothing can be young enough for is a 504, as the document says."""


@pytest.mark.slow
async def test_whatever_the_document_allows_is_answered_as_it_says(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """Hundreds of valid and invalid requests: no answer is a fault or has another shape."""
    worker = processes()
    await apply(worker)
    worker.start()
    await worker.ready()
    events = [flight(hour * HOUR_MS) for hour in range(4)]
    await worker.send(f"{worker.map_name}.raw", *((0, event) for event in events))
    document = f"http://127.0.0.1:{worker.port}/openapi.json"
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", document,
        "--exclude-path-regex", ENDLESS, "--checks", ",".join(CHECKS),
        "--max-examples", "25", "--generation-deterministic", "--no-color",
        "--phases", "examples,coverage,fuzzing", "--request-timeout", "20",
    ]  # fmt: skip
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    told = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert told is not None, done.stdout[-2_000:]
    assert int(told[1]) == int(told[2]) > 300
