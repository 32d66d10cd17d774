"""Nodes of Cassandra by address, each with the name that its certificate must have.

The driver knows nodes by the addresses that they gossip, and would check certificates against
those. People write host names, and certificates have them:

    cassandra_tls_name given    -> every node's certificate must have that name
    a host has the address      -> the certificate must have that host, the first of several
    no host has the address     -> the certificate must have the address

Addresses of hosts are resolved again while nodes come and go, so that a node which is found later,
or comes back at another address, is checked against its host too. There is always a name.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cassandra import UnresolvableContactPoints
from cassandra.connection import DefaultEndPoint, DefaultEndPointFactory

RESOLVE_S = 10.0
"""The time for which addresses of hosts are remembered. Names of a cluster manager change with each
restart of a node, and the driver waits half a second to ten before it tries one again."""

Lookup = Callable[[str, int], list[str]]


def addresses_of(host: str, port: int) -> list[str]:
    """Return the addresses of a host, each once; none if the name is unknown now."""
    try:
        found = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclasses.dataclass(eq=False)
class NodeNames:
    """The name that the certificate of each node must have. For any thread.

    Args:
        hosts: names or addresses, as ``cassandra_hosts`` gives them.
        port: of every node.
        name: the name of all nodes; empty if each has that of its host.
        clock_s: seconds of a clock that never goes back.
        lookup: returns the addresses of a host; may wait.
    """

    hosts: Sequence[str]
    port: int
    name: str = ""
    clock_s: Callable[[], float] = time.monotonic
    lookup: Lookup = addresses_of

    def __post_init__(self) -> None:
        self._found: Mapping[str, list[str]] = {}
        self._found_s = -RESOLVE_S

    def addresses(self) -> list[str]:
        """Return the addresses of all hosts, in their order, each once; may wait for a lookup."""
        now_s = self.clock_s()
        if now_s >= self._found_s + RESOLVE_S:
            # If a name is not known now, its earlier addresses are better than nothing.
            before = self._found
            self._found = {
                host: self.lookup(host, self.port) or before.get(host, []) for host in self.hosts
            }
            self._found_s = now_s
        return list(dict.fromkeys(a for found in self._found.values() for a in found))

    def of(self, address: str) -> str:
        """Return the name that the certificate of the node at an address must have."""
        if self.name:
            return self.name
        self.addresses()
        return next((host for host, found in self._found.items() if address in found), address)


class NodeEndPoint(DefaultEndPoint):  # type: ignore[misc]  # the driver comes without types
    """A node's address, and its name when it is connected to; equal to any other of its address."""

    def __init__(self, address: str, port: int, names: NodeNames | None) -> None:
        super().__init__(address, port)
        self._names = names

    @property
    def ssl_options(self) -> dict[str, str] | None:
        """Arguments of the driver for ``SSLContext.wrap_socket``; None without TLS."""
        if self._names is None:
            return None
        return {"server_hostname": self._names.of(self.address)}


class NodeEndPoints(DefaultEndPointFactory):  # type: ignore[misc]  # likewise
    """Makes the end points of nodes that others gossip, maybe with a port of their own."""

    def __init__(self, port: int, names: NodeNames | None) -> None:
        super().__init__(port)
        self._names = names

    def create(self, row: Any) -> NodeEndPoint:
        """Return the end point of a row of ``system.peers``."""
        found = super().create(row)
        return NodeEndPoint(found.address, found.port, self._names)


def nodes_of(
    hosts: Sequence[str], port: int, name: str = "", *, tls: bool
) -> tuple[list[NodeEndPoint], NodeEndPoints]:
    """Return the first end points of a cluster, and the factory of its others; may wait.

    Arguments are as of :class:`NodeNames`; ``tls`` says whether connections are encrypted.

    Raises:
        UnresolvableContactPoints: no address is known of any host.
    """
    names = NodeNames(hosts, port, name)
    addresses = names.addresses()
    if not addresses:
        raise UnresolvableContactPoints(f"no address is known of {', '.join(hosts)}")
    checked = names if tls else None
    return [NodeEndPoint(a, port, checked) for a in addresses], NodeEndPoints(port, checked)
