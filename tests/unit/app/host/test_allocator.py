"""A worker's options for the C library and the collector, tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import ROOT

KEEPS = """
import resource
from app.host.allocator import keep_freed_memory

def faults(times=20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        chunk = [bytearray(2 << 20) for _ in range(16)]
        del chunk
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
faults(times=1)
print(given_back, faults())
"""

SELDOM = """
import gc
from app.host.allocator import tune_gc

tune_gc()
before = gc.get_stats()[0]["collections"]
kept = [[] for _ in range(40_000)]
print(gc.get_freeze_count(), gc.get_stats()[0]["collections"] - before)
"""


GIVES_BACK = """
from pathlib import Path
from tests.support.waiting import wait_until
from app.host.allocator import trim_periodically, keep_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

FREED_KIB = 128 << 10
assert keep_freed_memory()
chunk = [bytearray(2 << 20) for _ in range(64)]
del chunk
kept = resident()
trim_periodically(0.05)
wait_until(lambda: resident() < kept - FREED_KIB * 3 // 4, 20, "freed memory")
print(kept, resident(), FREED_KIB)
"""


def run(code: str) -> list[int]:
    """Return the numbers that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another one")
def test_freed_memory_is_not_asked_for_again() -> None:
    """Chunks of many buffers, one after the other, touch the pages of the first."""
    given_back, kept = run(KEEPS)
    if given_back < 20_000:
        pytest.skip(f"freed memory costs {given_back} faults here: pages are huge, or it is kept")
    assert kept < given_back / 20


def test_what_lives_at_the_start_is_never_collected_again() -> None:
    """Forty thousand objects that stay alive start no collection either."""
    frozen, collections = run(SELDOM)
    assert frozen > 1_000
    assert collections == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another one")
def test_what_a_burst_took_is_given_back_after_a_while() -> None:
    """128 MiB of freed buffers are the system's again."""
    kept, left, freed = run(GIVES_BACK)
    assert left < kept - freed * 3 // 4
