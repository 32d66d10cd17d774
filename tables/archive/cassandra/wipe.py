"""Wiping a map's archive in Cassandra: its tables, and its rows in the register."""

from __future__ import annotations

from tables.archive.cassandra.cluster import CassandraSettings, cluster_of, connect
from tables.archive.cassandra.driver import driver
from tables.archive.cassandra.register import Register


def wipe_keyspace(settings: CassandraSettings, map_name: str) -> None:
    """Delete a map's tables; those of other maps stay. Waits for every answer.

    Raises:
        ArchiveError: Cassandra does not answer, or refuses.
    """
    what = f"delete archive of map {map_name}"
    with driver(what):
        cluster = cluster_of(settings)
        try:
            session = connect(cluster, settings, what)
            if settings.keyspace in cluster.metadata.keyspaces:
                Register(session, settings.keyspace, map_name).wipe()
        finally:
            cluster.shutdown()
