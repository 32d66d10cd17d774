"""Wiping a map's archive in Cassandra: its tables, and what the register says of it."""

from __future__ import annotations

from tables.archive_cassandra import CassandraSettings, cluster_of
from tables.archive_driver import AGAIN, driver
from tables.archive_register import Register


def wipe_keyspace(settings: CassandraSettings, map_name: str) -> None:
    """Delete a map's tables; those of other maps stay. Waits for every answer.

    Raises:
        ArchiveError: Cassandra does not answer, or refuses.
    """
    with driver(f"delete archive of map {map_name}", AGAIN):
        cluster = cluster_of(settings)
        try:
            session = cluster.connect()
            if settings.keyspace in cluster.metadata.keyspaces:
                Register(session, settings.keyspace, map_name).wipe()
        finally:
            cluster.shutdown()
