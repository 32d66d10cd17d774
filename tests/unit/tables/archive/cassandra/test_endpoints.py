"""The name that each node's certificate must have, while nodes come and go."""

from __future__ import annotations

import pytest

from tests.support.clock import Clock

pytest.importorskip("cassandra", reason="the extra `cassandra` is not installed")

from cassandra import UnresolvableContactPoints
from cassandra.connection import DefaultEndPoint

from tables.archive.cassandra.endpoints import (
    RESOLVE_S,
    NodeEndPoint,
    NodeNames,
    addresses_of,
    nodes_of,
)

HOSTS = ("cassandra-0.cassandra", "cassandra-1.cassandra", "cassandra")


class Names:
    """Addresses of hosts that a test changes."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {
            "cassandra-0.cassandra": ["10.0.0.1"],
            "cassandra": ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        }
        self.lookups = 0

    def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host."""
        assert port == 9042
        self.lookups += 1
        return self.known.get(host, [])


def test_a_node_is_checked_against_the_first_host_that_has_its_address() -> None:
    """Several hosts may have it; without any it is the address, so that there always is a name."""
    names = NodeNames(HOSTS, 9042, "", Clock(), Names())
    assert names.addresses() == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert names.of("10.0.0.1") == "cassandra-0.cassandra"
    assert names.of("10.0.0.3") == "cassandra"
    assert names.of("10.0.0.9") == "10.0.0.9"


def test_one_name_may_be_that_of_all_nodes() -> None:
    """Their addresses do not matter."""
    names = NodeNames(HOSTS, 9042, "cassandra.example", Clock(), Names())
    assert {names.of(address) for address in ("10.0.0.1", "10.0.0.9")} == {"cassandra.example"}


def test_a_node_that_comes_back_at_another_address_keeps_its_name() -> None:
    """Hosts are looked up again after a while; one that is not known then keeps its addresses."""
    clock, lookup = Clock(), Names()
    names = NodeNames(HOSTS, 9042, "", clock, lookup)
    assert names.of("10.0.0.7") == "10.0.0.7"
    lookup.known = {"cassandra-1.cassandra": ["10.0.0.7"]}
    before = lookup.lookups
    assert names.of("10.0.0.7") == "10.0.0.7"
    assert lookup.lookups == before
    clock.now_s += RESOLVE_S
    assert names.of("10.0.0.7") == "cassandra-1.cassandra"
    assert names.of("10.0.0.1") == "cassandra-0.cassandra"


def test_the_driver_gets_the_name_that_holds_when_it_connects() -> None:
    """An end point equals any other of its address, and has no options without TLS."""
    clock, lookup = Clock(), Names()
    names = NodeNames(HOSTS, 9042, "", clock, lookup)
    point = NodeEndPoint("10.0.0.7", 9042, names)
    assert point == DefaultEndPoint("10.0.0.7", 9042)
    assert point.ssl_options == {"server_hostname": "10.0.0.7"}
    lookup.known["cassandra-1.cassandra"] = ["10.0.0.7"]
    clock.now_s += RESOLVE_S
    assert point.ssl_options == {"server_hostname": "cassandra-1.cassandra"}
    assert NodeEndPoint("10.0.0.7", 9042, None).ssl_options is None


def test_hosts_without_an_address_are_told() -> None:
    """It passes by itself: the name server may be away."""
    assert addresses_of("nowhere.invalid", 9042) == []
    with pytest.raises(UnresolvableContactPoints, match=r"nowhere\.invalid"):
        nodes_of(("nowhere.invalid",), 9042, tls=True)
    nodes, _ = nodes_of(("127.0.0.1", "127.0.0.1"), 9042, tls=True)
    assert [node.ssl_options for node in nodes] == [{"server_hostname": "127.0.0.1"}]
