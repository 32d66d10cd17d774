"""A small soak of the transport; the long one is ``python -m tests.integration.soak_transport``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.integration import soak_transport

REBALANCES = 4
SEED = int(os.environ.get("SOAK_SEED", "7"))


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_positions_are_right_after_members_came_went_and_froze(kafka: str, tmp_path: Path) -> None:
    """Worker processes through a few rebalances end with every record handled exactly once."""
    del kafka  # the soak restarts its own broker; asking for one skips without Java
    done = subprocess.run(
        [*soak_transport.PROGRAM, f"--rebalances={REBALANCES}", f"--seed={SEED}",
         f"--keep={tmp_path / 'soak'}"],
        capture_output=True, text=True, check=False, timeout=270,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {SEED}: {done.stderr[-4_000:]}"
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["rebalances"] > REBALANCES
    assert seen["records"] > 50
