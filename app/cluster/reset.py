"""Resetting a map: its own topics, group, archive and stores are deleted; raw topics stay.

Rows of records that raw topics no longer hold are lost with the archive, so nothing is done before
somebody has seen the list. Journals and archive go together: each refuses a foreign one beside it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from app.cluster.admin import admin_of
from app.cluster.groups import delete_group, group_exists, members_of
from app.cluster.rights import rights_of
from app.cluster.rights_check import check_rights
from app.cluster.topic_checks import configs_of, partitions_found
from app.cluster.topic_specs import topics_of
from app.cluster.topics import delete_topics
from app.config.archives import archive_of
from app.config.connections import kafka_options
from app.config.settings import Settings
from tables.model.errors import TreasureMapError
from tables.model.layer import Map
from tables.model.limits import RECORD_BYTES_MAX

_MARK = "max.message.bytes"
"""The setting by which a topic of ``map apply`` is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Belongings:
    """The things of a map that exist, and topics that are not the map's to delete.

    Attributes:
        topics: the names of the topics that the map has made, in this revision or an earlier one.
        doubtful: the names of topics that have names of the map's, but not the settings of
            ``map apply``: they may be another program's.
        group: the consumer group of its workers; None if brokers know none.
        stores: the folder of this machine's local stores; None if there is none.
        sources: the names of its source topics.
        feeds: the names of topics that may be feeds of layers that an earlier revision had.
    """

    topics: list[str]
    doubtful: list[str]
    group: str | None
    stores: Path | None
    sources: list[str]
    feeds: list[str]


class Reset:
    """Finds all that belongs to a map, and deletes it.

    Attributes:
        archive: the archive to delete, in words; empty if it is known that there is none.

    Raises:
        SettingError: the archive's driver is not installed.
    """

    def __init__(self, settings: Settings, themap: Map) -> None:
        self._settings = settings
        self._map = themap
        self._options = kafka_options(settings)
        self._group = settings.group_of(themap.name)
        self._wiping = archive_of(settings).wiping(settings, themap.name)
        self._stores = settings.state_folder.absolute() / themap.name
        self.archive = self._wiping.words

    async def check(self) -> None:
        """Check that the map may be reset now.

        Raises:
            RightsError: this user may not delete some topics, or not see and delete the group.
            ArchiveError: the archive is another map's, or does not answer.
            TreasureMapError: no broker answers, workers of the map run, a topic that the map needs
                is another program's, or the local stores are elsewhere.
        """
        cannot = f"cannot reset map {self._map.name}"
        await check_rights(
            self._settings.brokers, self._options, rights_of(self._map, "reset", self._group),
            cannot=cannot, role="reset", may_lack=True,
        )  # fmt: skip
        members = await members_of(self._settings.brokers, self._group, self._options)
        if members:
            raise TreasureMapError(
                f"{cannot}: workers of group {self._group} run; got {', '.join(members)}; want"
                " none; stop them all first"
            )
        if self._stores.is_symlink():
            raise TreasureMapError(
                f"{cannot}: its local stores are elsewhere; got the symbolic link {self._stores};"
                " want a folder; delete the link, and the stores in its target, by hand"
            )
        needed = {spec.name for spec in topics_of(self._map, replication=1)}
        if foreign := [name for name in (await self.look()).doubtful if name in needed]:
            raise TreasureMapError(
                f"{cannot}: topics of its names may be another program's; got"
                f" {', '.join(foreign)}; want {_MARK}={RECORD_BYTES_MAX}, as `map apply` makes"
                " topics; rename the map, or if they are the map's, set that with kafka-configs, or"
                " delete them with kafka-topics"
            )
        await asyncio.to_thread(self._wiping.check)

    async def look(self) -> Belongings:
        """Return the things that exist now."""
        brokers = self._settings.brokers
        async with admin_of(brokers, self._options) as admin:
            found = await partitions_found(admin)
            named = named_topics(self._map, found)
            configs, _ = await configs_of(admin, named)
        marked = {name for name in named if _is_marked(configs.get(name, {}))}
        own = [name for name in named if name in marked]
        sources = [source.topic for source in self._map.sources if source.topic in found]
        feeds = sorted(
            name
            for name in found
            if name.startswith(f"{self._map.name}.feed.") and name not in {*named, *sources}
        )
        exists = await group_exists(brokers, self._group, self._options)
        return Belongings(
            own,
            [name for name in named if name not in marked],
            self._group if exists else None,
            self._stores if self._stores.exists() else None,
            sources,
            feeds,
        )

    async def delete(self, doomed: Belongings) -> Belongings:
        """Delete things and the archive, and return the things that exist afterwards.

        If it breaks off, workers are refused until it is done again.

        Raises:
            TreasureMapError: something cannot be deleted, or is there again.
        """
        if doomed.topics:
            await delete_topics(self._settings.brokers, doomed.topics, self._options)
        await asyncio.to_thread(self._wiping.wipe)
        if doomed.stores is not None:
            await asyncio.to_thread(_remove, doomed.stores)
        if doomed.group is not None:
            await delete_group(self._settings.brokers, doomed.group, self._options)
        left = await self.look()
        again = [*left.topics, *([str(left.stores)] if left.stores else [])]
        if again:
            raise TreasureMapError(
                f"cannot reset map {self._map.name}: other things of it are there after the"
                f" deletion; got {', '.join(again)}; want none; end the program that makes them,"
                " then reset the map again"
            )
        return left


def named_topics(themap: Map, found: Collection[str]) -> list[str]:
    """Return the topics, among those found, whose names are the map's own, but for its sources.

    Journals of earlier revisions are known by their names, and tell which layer topics are the
    map's.
    """
    specs = topics_of(themap, replication=1)
    sources = {source.topic for source in themap.sources}
    own = [spec.name for spec in specs if spec.kind != "source" and spec.name in found]
    prefix = themap.journal_topic("")
    earlier = [name for name in found if name.startswith(prefix)]
    inputs = [name.removeprefix(prefix) for name in earlier]
    layers = f"{themap.name}.layer."
    earlier += [name for name in inputs if name.startswith(layers) and name in found]
    return own + sorted({*earlier} - {*own} - sources)


def _is_marked(config: Mapping[str, str]) -> bool:
    """Return whether a topic has the setting that all topics of ``map apply`` have but sources."""
    return config.get(_MARK) == str(RECORD_BYTES_MAX)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise TreasureMapError(
            f"cannot delete the local stores in {folder}: {error.strerror}; want a folder of this"
            " user's; delete it by hand"
        ) from error
