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

from tables.archive.cassandra.reads import ROWS_MAX, TOGETHER_MAX, Request, Requests, routing_key

KEYSPACE = "sky"
MURMUR3 = "org.apache.cassandra.dht.Murmur3Partitioner"


def places_of(request: Request) -> list[tuple[int, int]]:
    """Return the partitions of a request."""
    return list(itertools.product(request.slots, request.buckets))


def ring(nodes: int, replicas: int, seed: int = 1) -> Metadata:
    """Return the driver's metadata of a cluster with 16 tokens a node."""
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
    nodes=st.integers(0, 8), replicas=st.integers(1, 3), slots=st.integers(1, 40),
    buckets=st.integers(1, 4), rows=st.integers(0, 10_000), whole_key=st.booleans(),
)  # fmt: skip
def test_every_partition_is_in_one_request_with_those_of_its_replicas(
    nodes: int, replicas: int, slots: int, buckets: int, rows: int, *, whole_key: bool
) -> None:
    """Every cluster has this, and so has one of which nothing is known."""
    metadata = ring(nodes, replicas) if nodes else Metadata()
    requests = Requests(KEYSPACE)
    requests.found("hours", 1, rows)
    partitions = list(itertools.product(range(slots), range(-1, buckets - 1)))
    found = requests.of(metadata, "hours", partitions, whole_key=whole_key)
    assert sorted(place for request in found for place in places_of(request)) == sorted(partitions)
    for request in found:
        places = places_of(request)
        assert len(places) <= TOGETHER_MAX
        assert len(places) == 1 or whole_key or len(places) * rows <= ROWS_MAX
        hosts = [frozenset(metadata.get_replicas(KEYSPACE, routing_key(*at))) for at in places]
        assert len(set(hosts)) == 1


def test_where_all_nodes_have_everything_requests_are_few() -> None:
    """There are more if replicas differ."""
    partitions = list(itertools.product(range(8), (5, 6)))
    assert Requests(KEYSPACE).of(ring(3, 3), "hours", partitions) == [
        Request(tuple(range(8)), (5, 6))
    ]
    assert len(Requests(KEYSPACE).of(ring(6, 1), "hours", partitions)) > 4
    year = [(3, bucket) for bucket in range(274)]
    requests = Requests(KEYSPACE)
    requests.found("hours", 1, 90_000)
    assert len(requests.of(ring(3, 3), "hours", year, whole_key=True)) == 18
    assert len(requests.of(ring(3, 3), "hours", year)) == 274


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (10, 1), (500, 2), (1_500, 8), (90_000, 8)])
def test_large_partitions_are_read_side_by_side(rows: int, count: int) -> None:
    """The last read of all keys gives the rows of a partition."""
    requests = Requests(KEYSPACE)
    requests.found("hours", 8, 8 * rows)
    requests.found("days", 8, 1)
    partitions = [(slot, 0) for slot in range(8)]
    assert len(requests.of(ring(1, 1), "hours", partitions)) == count
    requests.found("hours", 0, 0)
    assert len(requests.of(ring(1, 1), "hours", partitions)) == count
