"""Inspections of Cassandra: its keyspace and tables against a map, its version and its clock.

They make and change nothing.
"""

from __future__ import annotations

import dataclasses
import time

from cassandra import InvalidRequest, Unauthorized
from cassandra.cluster import Session
from cassandra.metadata import KeyspaceMetadata, NetworkTopologyStrategy, SimpleStrategy

from tables.archive.cassandra.cluster import CassandraSettings, cluster_of, connect
from tables.archive.cassandra.cql import CassandraTable
from tables.archive.cassandra.driver import driver
from tables.archive.cassandra.schema import Schema
from tables.model.errors import ArchiveError
from tables.model.layer import Map


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """The state of a cluster and of a map's part of it.

    Attributes:
        version: the release of the node that was asked.
        ahead_ms: how far that node's clock is ahead of this host's; below 0: behind.
        nodes: nodes of the local data centre.
        copies: copies of a row there; None if the keyspace is missing or has a strategy of its own.
        commitlog_sync: how that node syncs its log of writes; empty if this user may not read it.
        lacking: the missing tables and columns, which ``map apply`` makes.
        refused: why tables are those of other layers.
    """

    version: str
    ahead_ms: float
    nodes: int
    copies: int | None
    commitlog_sync: str
    lacking: list[str]
    refused: list[str]


def inspect(settings: CassandraSettings, themap: Map | None) -> Inspection:
    """Inspect a cluster, and the tables of a map if there is one; waits for every answer.

    Raises:
        ArchiveError: Cassandra does not answer, or refuses.
    """
    step = f"inspect {settings.place}"
    with driver(step, "check addresses, datacenter, user and rights"):
        cluster = cluster_of(settings)
        try:
            session = connect(cluster, settings, step)
            version, ahead_ms = _node(session)
            hosts = cluster.metadata.all_hosts()
            lacking, refused = Schema(session, settings).look(_tables(settings, themap))
            return Inspection(
                version,
                ahead_ms,
                sum(host.datacenter == settings.local_dc for host in hosts),
                _copies(cluster.metadata.keyspaces.get(settings.keyspace), settings.local_dc),
                _commitlog_sync(session),
                lacking,
                refused,
            )
        finally:
            cluster.shutdown()


def check_tables(settings: CassandraSettings, themap: Map) -> None:
    """Check that no table of a map is another layer's; missing ones are as they should be.

    Raises:
        ArchiveError: some are, or Cassandra does not answer or refuses.
    """
    if refused := inspect(settings, themap).refused:
        raise ArchiveError("\n".join(refused))


def _tables(settings: CassandraSettings, themap: Map | None) -> list[CassandraTable]:
    if themap is None:
        return []
    return [CassandraTable(themap, layer, settings.keyspace) for layer in themap.layers]


def _node(session: Session) -> tuple[str, float]:
    """Return the release of a node, and how far its clock is ahead in ms, at least."""
    asked_ms = time.time() * 1_000
    (row,) = session.execute("SELECT release_version, toUnixTimestamp(now()) FROM system.local")
    answered_ms = time.time() * 1_000
    # It was read between the two; of the possible differences this one is the nearest to 0.
    return str(row[0]), row[1] - min(max(row[1], asked_ms), answered_ms)


def _commitlog_sync(session: Session) -> str:
    wanted = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'"
    try:
        return "".join(str(value) for (value,) in session.execute(wanted))
    except (Unauthorized, InvalidRequest):
        # Versions before 4.0 have no such table, and roles may read it only if they are allowed to.
        return ""


def _copies(keyspace: KeyspaceMetadata | None, local_dc: str) -> int | None:
    strategy = None if keyspace is None else keyspace.replication_strategy
    if isinstance(strategy, NetworkTopologyStrategy):
        return int(strategy.dc_replication_factors.get(local_dc, 0))
    if isinstance(strategy, SimpleStrategy):
        return int(strategy.replication_factor_info.full_replicas)
    return None
