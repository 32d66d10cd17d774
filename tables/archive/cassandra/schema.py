"""The schema in Cassandra: keyspace and tables are checked, and missing ones are made.

Statements are sent only for missing things: a user that may read and write rows opens a schema
that is there, and need not own any of it. Mostly ``map apply`` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable

from cassandra import InvalidRequest, Unauthorized
from cassandra.cluster import Session

from tables.archive.cassandra.cluster import CassandraSettings
from tables.archive.cassandra.cql import REGISTER_TABLE, CassandraTable, create_keyspace
from tables.archive.cassandra.driver import said
from tables.archive.cassandra.register import create_register
from tables.archive.layout import missing_accumulators
from tables.called import called
from tables.model.errors import ArchiveError, ArchiveRefusedError


class Schema:
    """Keyspace and tables of one map. Every method waits, and raises the driver's errors too."""

    def __init__(self, session: Session, settings: CassandraSettings) -> None:
        self._cluster = session.cluster
        self._session = session
        self._settings = settings
        self._keyspace = settings.keyspace

    def make(self, tables: Iterable[CassandraTable]) -> None:
        """Make missing tables, and check existing ones.

        Raises:
            ArchiveRefusedError: something is missing, and this user may not make it.
            ArchiveError: a table is another layer's.
        """
        tables = list(tables)
        names = [*(table.name for table in tables), REGISTER_TABLE]
        if missing := [name for name in names if not self._has(name)]:
            # Another worker may just have made it: then this driver does not know of it yet.
            self._cluster.refresh_schema_metadata()
            missing = [name for name in missing if not self._has(name)]
        if self._keyspace not in self._cluster.metadata.keyspaces:
            copies = {self._settings.local_dc: self._settings.replication}
            self._make(f"keyspace {self._keyspace}", create_keyspace(self._keyspace, copies))
            # Another worker may have made it first, likewise.
            self._cluster.refresh_keyspace_metadata(self._keyspace)
        for table in tables:
            if table.name in missing:
                self._make(f"table {self._keyspace}.{table.name}", table.create)
            self._add_columns(table)
        if REGISTER_TABLE in missing:
            self._make(f"table {self._keyspace}.{REGISTER_TABLE}", create_register(self._keyspace))

    def look(self, tables: Iterable[CassandraTable]) -> tuple[list[str], list[str]]:
        """Return the things that :meth:`make` would make, and why it would refuse tables."""
        lacking, refused = [], []
        for table in tables:
            name = f"table {self._keyspace}.{table.name}"
            if not self._has(table.name):
                lacking.append(name)
                continue
            try:
                columns = self.missing_columns(table)
            except ArchiveError as error:
                refused.append(str(error))
            else:
                lacking += [f"column {column} of {name}" for column in columns]
        if not self._has(REGISTER_TABLE):
            lacking.append(f"table {self._keyspace}.{REGISTER_TABLE}")
        return lacking, refused

    def missing_columns(self, table: CassandraTable) -> list[str]:
        """Return the accumulators that the table lacks, once all nodes agree on the schema.

        Raises:
            ArchiveError: the table is another layer's.
        """
        self._cluster.refresh_table_metadata(self._keyspace, table.name)
        found = self._cluster.metadata.keyspaces[self._keyspace].tables[table.name]
        have = {f"column {name}": column.cql_type for name, column in found.columns.items()}
        have["partition key"] = ", ".join(column.name for column in found.partition_key)
        have["clustering key"] = ", ".join(column.name for column in found.clustering_key)
        have["comment"] = found.options["comment"]
        return missing_accumulators(f"table {self._keyspace}.{table.name}", have, table.describe())

    def _has(self, table: str) -> bool:
        keyspace = self._cluster.metadata.keyspaces.get(self._keyspace)
        return keyspace is not None and table in keyspace.tables

    def _add_columns(self, table: CassandraTable) -> None:
        while missing := self.missing_columns(table):
            columns = f"columns {', '.join(missing)} of table {self._keyspace}.{table.name}"
            try:
                self._make(columns, table.add(missing))
            except InvalidRequest:
                # Another worker may have added some of them first; then fewer are missing now.
                if self.missing_columns(table) == missing:
                    raise

    def _make(self, name: str, statement: str) -> None:
        try:
            self._session.execute(statement)
        except Unauthorized as error:
            raise ArchiveRefusedError(
                f"cannot open archive in {self._settings.place}: {name} must be made, and "
                f"Cassandra refuses: {said(error)}; run `{called('map apply')}` with the "
                "cassandra_username of a role that has it, once"
            ) from error
