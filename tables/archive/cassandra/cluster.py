"""The driver's cluster: how Cassandra is reached, and why it cannot be."""

from __future__ import annotations

import dataclasses
import logging
import ssl

from cassandra import ConsistencyLevel, ProtocolVersion, cluster, pool
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    TokenAwarePolicy,
)
from cassandra.query import tuple_factory

from tables.archive.cassandra.driver import login_refusal
from tables.archive.cassandra.endpoints import nodes_of
from tables.archive.cassandra.tls import plain_refusal, tls_refusal
from tables.model.errors import ArchiveRefusedError

log = logging.getLogger(__name__)

RECONNECT_S_MAX = 10.0
RECONNECTION = ExponentialReconnectionPolicy(0.5, RECONNECT_S_MAX, max_attempts=None)
"""The schedule for a node that is away. The driver's own policy waits up to ten minutes once a
node was away for as long, and gives it up after 64 attempts."""


def _goes_on(_handler: object, error: Exception, wait_s: float | None) -> bool:
    """Have a node that refuses a login tried again too.

    The driver gives it up for good, so that a password that was changed and put back, or roles that
    could not be read for a moment, would leave a worker without its archive until it is restarted.
    ``RECONNECTION`` makes such tries rare.
    """
    log.info("a node is tried again in %s s: %s", wait_s, error)
    return True


def keep_trying_nodes() -> None:
    """Have the driver give no node up; from now on, for all clusters of this process."""
    # The driver has no setting for it.
    pool._HostReconnectionHandler.on_exception = _goes_on  # noqa: SLF001
    cluster._ControlReconnectionHandler.on_exception = _goes_on  # noqa: SLF001


@dataclasses.dataclass(frozen=True, slots=True)
class CassandraSettings:
    """The addresses of Cassandra (4.0 or newer), and how to speak to it.

    ``replication`` is the number of replicas in ``local_dc`` if the keyspace has to be made; a
    keyspace that exists keeps its own. ``username`` and ``password`` go together. ``tls`` checks
    the authority of each node and its name: ``tls_name``, or if that is empty the one that
    :class:`NodeNames` has for it; it is None for connections without TLS. It may stand for another
    one at each connection, as when its files are read again; ``tls_shows_certificate`` says whether
    it has one of this client. ``in_flight_max`` bounds requests that wait for an answer.
    """

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 9042
    keyspace: str = "treasure_map"
    local_dc: str = "datacenter1"
    replication: int = 3
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    tls: ssl.SSLContext | None = dataclasses.field(default=None, repr=False)
    tls_name: str = ""
    tls_shows_certificate: bool = False
    request_timeout_s: float = 10.0
    in_flight_max: int = 64

    @property
    def place(self) -> str:
        """Hosts and port, in words."""
        return f"Cassandra at {', '.join(self.hosts)}, port {self.port}"


def cluster_of(settings: CassandraSettings) -> Cluster:
    """Return the driver's cluster of these settings, not connected yet; waits for host names.

    Raises:
        UnresolvableContactPoints: no address is known of any host.
    """
    keep_trying_nodes()
    nodes, others = nodes_of(
        settings.hosts, settings.port, settings.tls_name, tls=settings.tls is not None
    )
    login = None
    if settings.username is not None:
        login = PlainTextAuthProvider(settings.username, settings.password)
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.local_dc)),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=settings.request_timeout_s,
        row_factory=tuple_factory,
    )
    return Cluster(
        nodes,
        port=settings.port,
        endpoint_factory=others,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        auth_provider=login,
        ssl_context=settings.tls,
        # Named, because the driver otherwise tries versions downwards and warns of each.
        protocol_version=ProtocolVersion.V5,
        reconnection_policy=RECONNECTION,
        connect_timeout=settings.request_timeout_s,
        control_connection_timeout=settings.request_timeout_s,
        application_name="treasure-map",
    )


def connect(cluster: Cluster, settings: CassandraSettings, step: str) -> Session:
    """Return a session of a cluster; waits.

    ``step`` is its purpose, as a message has it after "cannot".

    Raises:
        ArchiveRefusedError: nodes answer, but cannot be used; the message names the remedy.
        NoHostAvailable: nodes do not answer; so do the driver's other errors say.
    """
    try:
        return cluster.connect()
    except NoHostAvailable as error:
        reason = (
            _datacenter_refusal(cluster, settings)
            or login_refusal(error, settings.username)
            or _handshake_refusal(cluster, settings)
        )
        if not reason:
            raise
        raise ArchiveRefusedError(f"cannot {step}: {reason}") from error


def _datacenter_refusal(cluster: Cluster, settings: CassandraSettings) -> str:
    """Return that nodes are there, and none in the datacenter: for the driver they are away."""
    found = {host.datacenter for host in cluster.metadata.all_hosts()} - {None}
    wanted = settings.local_dc
    if not found or wanted in found:
        return ""
    return (
        f"no node is in datacenter {wanted}; got nodes in {', '.join(sorted(found))}; set "
        "cassandra_local_dc to one of them"
    )


def _handshake_refusal(cluster: Cluster, settings: CassandraSettings) -> str:
    """Return why connections to the first node that answers break off; empty if none does."""
    for node in cluster.endpoints_resolved:
        if settings.tls is not None:
            name = node.ssl_options["server_hostname"]
            reason = tls_refusal(
                node.address, node.port, name, settings.tls,
                has_certificate=settings.tls_shows_certificate,
            )  # fmt: skip
        else:
            reason = plain_refusal(node.address, node.port)
        if reason:
            return reason
    return ""
