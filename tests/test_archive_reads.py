"""Reads of Cassandra: partitions of the same replicas go into one request, and each into one."""

from __future__ import annotations

import itertools
import random

import pytest
from cassandra.connection import DefaultEndPoint
from cassandra.metadata import KeyspaceMetadata, Metadata
from cassandra.policies import SimpleConvictionPolicy
from cassandra.pool import Host
from hypothesis import given
from hypothesis import strategies as st

from tables.archive_reads import ROWS_MAX, SLOTS_MAX, Requests, routing_key

KEYSPACE = "sky"
MURMUR3 = "org.apache.cassandra.dht.Murmur3Partitioner"


def ring(nodes: int, replicas: int, seed: int = 1) -> Metadata:
    """Return what the driver knows of a cluster with 16 tokens a node."""
    rng = random.Random(seed)
    metadata = Metadata()
    metadata.keyspaces[KEYSPACE] = KeyspaceMetadata(
        KEYSPACE,
        True,
        "SimpleStrategy",
        {"replication_factor": str(replicas)},
    )
    tokens = {}
    for number in range(nodes):
        host = Host(DefaultEndPoint(f"10.0.0.{number}"), SimpleConvictionPolicy)
        metadata.add_or_return_host(host)
        tokens[host] = [str(rng.randrange(-(2**63), 2**63)) for _ in range(16)]
    metadata.rebuild_token_map(MURMUR3, tokens)
    return metadata


@given(
    st.integers(0, 8), st.integers(1, 3), st.integers(1, 40), st.integers(1, 4),
    st.floats(0, 10_000),
)  # fmt: skip
def test_every_partition_is_in_one_request_with_those_of_its_replicas(
    nodes: int, replicas: int, slots: int, buckets: int, rows: float
) -> None:
    """Whatever the cluster, also where nothing is known of it."""
    metadata = ring(nodes, replicas) if nodes else Metadata()
    requests = Requests(KEYSPACE)
    requests.found("hours", 1, int(rows))
    partitions = list(itertools.product(range(slots), range(-1, buckets - 1)))
    found = requests.of(metadata, "hours", partitions)
    placed = [(slot, request.bucket) for request in found for slot in request.slots]
    assert sorted(placed) == sorted(partitions)
    for request in found:
        assert len(request.slots) <= SLOTS_MAX
        assert len(request.slots) == 1 or len(request.slots) * rows <= ROWS_MAX + len(request.slots)
        on = [
            metadata.get_replicas(KEYSPACE, routing_key(s, request.bucket)) for s in request.slots
        ]
        assert all(set(hosts) == set(on[0]) for hosts in on)


def test_where_all_nodes_have_everything_a_bucket_is_one_request() -> None:
    """And where replicas differ there are more."""
    partitions = list(itertools.product(range(8), (5, 6)))
    assert len(Requests(KEYSPACE).of(ring(3, 3), "hours", partitions)) == 2
    assert len(Requests(KEYSPACE).of(ring(6, 1), "hours", partitions)) > 4


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (10, 1), (500, 2), (1_500, 8), (90_000, 8)])
def test_large_partitions_are_read_side_by_side(rows: int, count: int) -> None:
    """By what the last read of all keys found in a partition."""
    requests = Requests(KEYSPACE)
    requests.found("hours", 8, 8 * rows)
    requests.found("days", 8, 1)
    partitions = [(slot, 0) for slot in range(8)]
    assert len(requests.of(ring(1, 1), "hours", partitions)) == count
    requests.found("hours", 0, 0)
    assert len(requests.of(ring(1, 1), "hours", partitions)) == count
