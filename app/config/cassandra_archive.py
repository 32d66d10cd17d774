"""The archive in Cassandra as the settings choose it: a keyspace that all workers have together."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from app.config.archive_kind import ArchiveKind, Fault, Schema, Wiping
from app.config.connections import cassandra_settings
from app.config.loopback import INSECURE, is_loopback

if TYPE_CHECKING:
    from app.config.settings import Settings
    from app.host.findings import Finding
    from app.host.reloads import Reloads
    from tables.archive.protocol import Archive
    from tables.model.layer import Map

_KEYSPACE: dict[str, tuple[str, ...]] = {
    "apply": ("CREATE", "ALTER", "SELECT", "MODIFY"),
    "reset": ("DROP", "SELECT", "MODIFY"),
}
_TABLES: dict[str, tuple[str, ...]] = {"worker": ("SELECT", "MODIFY"), "verify": ("SELECT",)}


class CassandraKind(ArchiveKind):
    """The kind ``cassandra``; its nodes have disks of their own."""

    name = "cassandra"
    serves_many = True
    extra = "cassandra"

    def exposed(self, settings: Settings) -> Iterator[Fault]:
        """Yield that nodes beyond loopback are reached without TLS."""
        remote = [host for host in settings.cassandra_hosts if not is_loopback(host)]
        if remote and not settings.cassandra_uses_tls:
            text = (
                f"cassandra_hosts: got {', '.join(remote)}, beyond loopback without TLS;"
                f" want TLS; set cassandra_tls or cassandra_ca_file, {INSECURE}"
            )
            yield ("cassandra_hosts", "archive", "cassandra_tls"), text

    def place(self, settings: Settings) -> str:
        """Return its name."""
        del settings
        return "Cassandra"

    def make(self, settings: Settings, reloads: Reloads | None = None) -> Archive:
        """Return the archive, to be opened."""
        made = cassandra_settings(settings, reloads)
        from tables.archive.cassandra.archive import CassandraArchive  # noqa: PLC0415 - an extra

        return CassandraArchive(made)

    def schema(self, settings: Settings, themap: Map) -> Schema:
        """Return the keyspace with a table for each layer."""
        made = cassandra_settings(settings)
        from tables.archive.cassandra.inspection import check_tables  # noqa: PLC0415 - an extra

        count = len(themap.layers)
        tables = f"{count} table{'' if count == 1 else 's'} in keyspace {made.keyspace}"
        return Schema(self.make(settings), tables, functools.partial(check_tables, made, themap))

    def examine(self, settings: Settings, themap: Map | None) -> list[Finding]:
        """Return findings of its nodes, its keyspace and the map's tables."""
        made = cassandra_settings(settings)
        from app.config.cassandra_findings import findings  # noqa: PLC0415 - an extra
        from tables.archive.cassandra.inspection import inspect  # noqa: PLC0415 - an extra

        return list(findings(made, inspect(made, themap), has_map=themap is not None))

    def wiping(self, settings: Settings, map_name: str) -> Wiping:
        """Return the map's tables."""
        made = cassandra_settings(settings)
        from tables.archive.cassandra.register import (  # noqa: PLC0415 - an extra
            check_wipe,
            wipe_keyspace,
        )

        cells = f"the tables of map {map_name} in keyspace {made.keyspace}"
        return Wiping(
            cells,
            functools.partial(check_wipe, made, map_name),
            functools.partial(wipe_keyspace, made, map_name),
        )

    def grants(self, settings: Settings, themap: Map, role: str, user: str) -> Iterator[str]:
        """Yield CQL for a role of Cassandra; for ``apply`` also the statement of its keyspace."""
        from tables.archive.cassandra.cql import (  # noqa: PLC0415 - if chosen
            REGISTER_TABLE,
            CassandraTable,
            create_keyspace,
        )

        keyspace = settings.cassandra_keyspace
        tables = [CassandraTable(themap, layer, keyspace).name for layer in themap.layers]
        if role == "apply":
            # Rights on a keyspace can be granted once it exists.
            yield f"{create_keyspace(keyspace, _copies(settings))};"
        yield from _grants([*tables, REGISTER_TABLE], role, user, keyspace)


def _copies(settings: Settings) -> dict[str, int]:
    """Return the copies of a row by data centre; a number alone is for the local one."""
    found = {}
    for part in settings.cassandra_replication.split(","):
        centre, _, factor = part.strip().rpartition(":")
        found[centre or settings.cassandra_local_dc] = int(factor)
    return found


def _grants(tables: Iterable[str], role: str, user: str, keyspace: str) -> Iterator[str]:
    """Yield CQL that grants a role of Cassandra the rights that it needs on these tables.

    ``map apply`` may make missing tables; all others use the tables as they are.
    """
    name = '"' + user.replace('"', '""') + '"'
    for permission in _KEYSPACE.get(role, ()):
        yield f'GRANT {permission} ON KEYSPACE "{keyspace}" TO {name};'
    for table in tables:
        for permission in _TABLES.get(role, ()):
            yield f'GRANT {permission} ON TABLE "{keyspace}"."{table}" TO {name};'
