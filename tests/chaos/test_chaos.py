"""A minute in which worker processes and Cassandra die: every row and every count is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.__main__ import show
from tests.chaos.arena import MAP_FILE, Arena
from tests.chaos.faults import (
    add,
    cassandra_away,
    freeze,
    kill,
    remove,
    swap,
    terminate,
    wipe,
)
from tests.chaos.run import run
from tests.support.cluster import Cluster
from tests.support.servers import CassandraServer

KILLS_MIN = 5
ROUND_S = 50.0
RATE = 1_500
FAULTS = [kill, wipe, swap, terminate, freeze, add, remove, cassandra_away, kill]


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
@pytest.mark.timeout(900)
async def test_rows_equal_a_recomputation_whatever_dies(
    kafka: str, cassandra_server: CassandraServer, tmp_path: Path
) -> None:
    """SIGKILL, SIGTERM, SIGSTOP past the session, state lost or old, workers and archive away."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}; again: make chaos SEED={seed} MINUTES=2")  # noqa: T201 - shown on failure
    with Cluster(
        kafka, tmp_path, map_file=MAP_FILE, archive="cassandra",
        cassandra_hosts=cassandra_server.host, cassandra_port=str(cassandra_server.port),
        cassandra_keyspace="chaos", group="chaos",
    ) as cluster:  # fmt: skip
        arena = Arena(tmp_path, seed, cluster, cassandra_server)
        verdict = await run(arena, FAULTS, 1, RATE, round_s=ROUND_S)
    show(verdict)
    assert verdict.differing == []
    assert verdict.faults["SIGKILL"] >= KILLS_MIN
    assert not [name for name in verdict.faults if "not possible" in name]
