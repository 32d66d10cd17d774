"""Starting over: a map's own topics and its archive are deleted; its raw topics are read anew.

Rows of records that raw topics no longer hold are lost with the archive, so nothing is done before
somebody has seen the list. Journals and archive go together: each refuses a foreign one beside it.
"""

from __future__ import annotations

import asyncio
import dataclasses

from app.cluster.rights import rights_of
from app.cluster.rights_check import check_rights
from app.cluster.topics import delete_topics, members_of, own_topics
from app.config.archives import archive_of
from app.config.connections import kafka_options
from app.config.settings import Settings
from tables.model.errors import TreasureMapError
from tables.model.layer import Map


@dataclasses.dataclass(frozen=True, slots=True)
class Doomed:
    """The things to delete: topics by name, and the archive in words."""

    topics: list[str]
    archive: str


class StartOver:
    """Finds the topics and the archive of a map, and deletes them.

    Raises:
        SettingError: the archive's driver is not installed.
    """

    def __init__(self, settings: Settings, themap: Map) -> None:
        self._settings = settings
        self._map = themap
        self._options = kafka_options(settings)
        self._wiping = archive_of(settings).wiping(settings, themap.name)

    async def look(self) -> Doomed:
        """Return the topics and the archive that would be deleted.

        Raises:
            RightsError: this user may not delete some topics, or not see the group.
            TreasureMapError: no broker answers, or workers of the map run.
        """
        settings = self._settings
        group = settings.group_of(self._map.name)
        await check_rights(
            settings.brokers, self._options, rights_of(self._map, "start-over", group),
            cannot=f"cannot start over map {self._map.name}", role="start-over", may_lack=True,
        )  # fmt: skip
        members = await members_of(settings.brokers, group, self._options)
        if members:
            raise TreasureMapError(
                f"cannot start over map {self._map.name}: workers of group {group} run; "
                f"got {', '.join(members)}; want none; stop them all first"
            )
        topics = await own_topics(settings.brokers, self._map, self._options)
        return Doomed(topics, self._wiping.words)

    async def delete(self, doomed: Doomed) -> None:
        """Delete them; if that breaks off, workers are refused until it is done again.

        Raises:
            TreasureMapError: something cannot be deleted.
        """
        if doomed.topics:
            await delete_topics(self._settings.brokers, doomed.topics, self._options)
        await asyncio.to_thread(self._wiping.wipe)
