"""The register in Cassandra: whose archive a map's tables are, and the journals behind its rows.

One table for all maps of a keyspace. A written row is never changed, and only written if none was
(lightweight transactions), so that of two workers which are first both go by the same.
"""

from __future__ import annotations

import re

from cassandra import ConsistencyLevel
from cassandra.cluster import Session
from cassandra.query import SimpleStatement

from tables.archive.cassandra.cluster import CassandraSettings, cluster_of, connect
from tables.archive.cassandra.cql import REGISTER_TABLE
from tables.archive.cassandra.driver import driver
from tables.archive.identity import History, draw_id

_OWN = ("", -1)
"""The topic and partition under which the archive's own id stands."""


def create_register(keyspace: str) -> str:
    """Return the statement that makes the table of a keyspace if it is missing."""
    return (
        f'CREATE TABLE IF NOT EXISTS "{keyspace}"."{REGISTER_TABLE}" (map text, topic text, '
        "partition int, id text, cluster text, PRIMARY KEY (map, topic, partition)) "
        "WITH comment = 'treasure-map archives: ids, and the journals that rows come from'"
    )


class Register:
    """The rows of one map. Every method waits for an answer, and raises the driver's errors."""

    def __init__(self, session: Session, keyspace: str, map_name: str) -> None:
        self._session = session
        self._keyspace = keyspace
        self._table = f'"{keyspace}"."{REGISTER_TABLE}"'
        self._map = map_name

    def open(self) -> str:
        """Return the id of the map's archive, drawn now if there is none; the table exists."""
        known = self.history(*_OWN) or self.remember(*_OWN, History(draw_id()))
        return known.id

    def wipe(self) -> None:
        """Delete the map's tables, which have comments that say so, and its rows here."""
        own = rf"treasure-map archive \d+: map {re.escape(self._map)}, "
        tables = self._session.cluster.metadata.keyspaces[self._keyspace].tables
        for name, table in list(tables.items()):
            if re.match(own, table.options["comment"]):
                self._session.execute(f'DROP TABLE IF EXISTS "{self._keyspace}"."{name}"')
        if REGISTER_TABLE not in tables:
            return
        found = f"SELECT topic, partition FROM {self._table} WHERE map = %s"  # noqa: S608
        for topic, partition in list(self._session.execute(found, (self._map,))):
            gone = (
                f"DELETE FROM {self._table} "  # noqa: S608 - names of a checked map
                "WHERE map = %s AND topic = %s AND partition = %s IF EXISTS"
            )
            self._session.execute(gone, (self._map, topic, partition))

    def history(self, topic: str, partition: int) -> History | None:
        """Return the journal that the rows of an input partition come from."""
        text = (
            f"SELECT id, cluster FROM {self._table} "  # noqa: S608 - names of a checked map
            "WHERE map = %s AND topic = %s AND partition = %s"
        )
        rows = list(self._session.execute(text, (self._map, topic, partition)))
        return History(*rows[0]) if rows else None

    def remember(self, topic: str, partition: int, history: History) -> History:
        """Return the journal they come from; it is ``history`` from now on if there is none."""
        statement = SimpleStatement(
            f"INSERT INTO {self._table} (map, topic, partition, id, cluster) "  # noqa: S608
            "VALUES (%s, %s, %s, %s, %s) IF NOT EXISTS",
            serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
            # A repeat does no harm: it finds the row that the first attempt wrote.
            is_idempotent=True,
        )
        values = (self._map, topic, partition, history.id, history.cluster)
        self._session.execute(statement, values)
        # The answer has the earlier row with columns in another order; this reads the row of now.
        found = self.history(topic, partition)
        assert found is not None, "a row that is there after IF NOT EXISTS"
        return found


def check_wipe(settings: CassandraSettings, map_name: str) -> None:
    """Check that Cassandra answers, before anything of a map is deleted.

    Raises:
        ArchiveError: it does not, or refuses.
    """
    step = f"delete archive of map {map_name}"
    with driver(step):
        cluster = cluster_of(settings)
        try:
            connect(cluster, settings, step)
        finally:
            cluster.shutdown()


def wipe_keyspace(settings: CassandraSettings, map_name: str) -> None:
    """Delete a map's tables; those of other maps stay. Waits for every answer.

    Raises:
        ArchiveError: Cassandra does not answer, or refuses.
    """
    step = f"delete archive of map {map_name}"
    with driver(step):
        cluster = cluster_of(settings)
        try:
            session = connect(cluster, settings, step)
            if settings.keyspace in cluster.metadata.keyspaces:
                Register(session, settings.keyspace, map_name).wipe()
        finally:
            cluster.shutdown()
