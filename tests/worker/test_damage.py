"""Damaged bytes of our own: refused in words or set aside, by a process that goes on.

Each kind is tried in a process of its own (tests/support/damage.py), because the fault that
this prevents ends the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

TRIES = 300
DEADLINE_S = 120

SEALED = ["journal 3", "layer-topic 2", "store", "archive 3", "peer"]
UNSEALED = ["journal 1", "journal 2", "layer-topic 1", "archive 2"]


def tried(kind: str, seed: int) -> dict[str, int]:
    """Return how many damaged copies were taken and refused; fail if the process ended."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.damage", kind, str(seed), str(TRIES)],
        check=False, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, f"{kind}, seed {seed}: {done.returncode}\n{done.stderr[-3_000:]}"
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", SEALED)
def test_whatever_changes_in_sealed_bytes_is_noticed(kind: str) -> None:
    """Bytes flipped, cut off, added, made up: none reaches a decoder."""
    found = tried(kind, 1)
    assert found.keys() == {"refused"}
    assert found["refused"] > TRIES - 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNSEALED)
def test_bytes_of_formats_without_checksum_end_no_process(kind: str) -> None:
    """Bytes with the structure of a block may be taken; the rest is refused."""
    found = tried(kind, 2)
    assert sum(found.values()) > TRIES - 20
    assert found["refused"] > TRIES / 2
