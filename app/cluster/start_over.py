"""Starting over: a map's own topics and its archive are deleted; its raw topics are read anew.

Rows of records that raw topics no longer hold are lost with the archive, so nothing is done before
somebody has seen the list. Journals and archive go together: each refuses another one beside it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from app.cluster.topics import delete_topics, members_of, own_topics
from app.config.connections import cassandra_settings, kafka_options
from app.config.settings import Settings
from tables.archive.embedded.wipe import wipe_folder
from tables.model.errors import TreasureMapError
from tables.model.layer import Map

if TYPE_CHECKING:
    from tables.archive.cassandra.archive import CassandraSettings


@dataclasses.dataclass(frozen=True, slots=True)
class Doomed:
    """What goes: topics by name, and the archive in words."""

    topics: list[str]
    archive: str


class StartOver:
    """Finds the topics and the archive of a map, and deletes them.

    Args:
        settings: the addresses of Kafka and the archive.
        themap: the map that starts over.

    Raises:
        SettingError: the archive's driver is not installed.
    """

    def __init__(self, settings: Settings, themap: Map) -> None:
        self._settings = settings
        self._map = themap
        self._options = kafka_options(settings)
        self._cassandra: CassandraSettings | None = None
        if settings.archive == "cassandra":
            self._cassandra = cassandra_settings(settings)

    async def look(self) -> Doomed:
        """Return the topics and the archive that would be deleted.

        Raises:
            TreasureMapError: no broker answers, or workers of the map run.
        """
        settings = self._settings
        group = settings.group_of(self._map.name)
        members = await members_of(settings.brokers, group, self._options)
        if members:
            raise TreasureMapError(
                f"cannot start over map {self._map.name}: workers of group {group} run; "
                f"got {', '.join(members)}; want none; stop them all first"
            )
        topics = await own_topics(settings.brokers, self._map, self._options)
        if self._cassandra is None:
            return Doomed(topics, f"the archive in folder {settings.archive_folder.absolute()}")
        keyspace = self._cassandra.keyspace
        return Doomed(topics, f"the tables of map {self._map.name} in keyspace {keyspace}")

    async def delete(self, doomed: Doomed) -> None:
        """Delete it; if that breaks off, workers are refused until it is done again.

        Raises:
            TreasureMapError: something cannot be deleted.
        """
        if doomed.topics:
            await delete_topics(self._settings.brokers, doomed.topics, self._options)
        if self._cassandra is None:
            wipe_folder(self._settings.archive_folder, self._map.name)
            return
        from tables.archive.cassandra.wipe import wipe_keyspace  # noqa: PLC0415 (an extra)

        await asyncio.to_thread(wipe_keyspace, self._cassandra, self._map.name)
