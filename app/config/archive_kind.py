"""The base of a kind of archive: how the settings choose, check, make and wipe one.

``app/config/archives.py`` lists the kinds that there are.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from app.config.settings import Settings
    from app.host.findings import Finding
    from app.host.reloads import Reloads
    from tables.archive.protocol import Archive
    from tables.model.layer import Map

Fault = tuple[tuple[str, ...], str]
"""The settings that a fault is about, and a sentence."""


class Schema(NamedTuple):
    """Tables of ``map apply``: ``words`` name them, opening ``archive`` makes or checks them.

    ``check`` makes nothing. It waits, and raises ArchiveError if a table is another layer's.
    """

    archive: Archive
    words: str
    check: Callable[[], None]


class Wiping(NamedTuple):
    """Cells that ``reset`` deletes: ``words`` name them, ``wipe`` deletes them and waits.

    ``words`` are empty if it is known that there are none. ``check`` deletes nothing. It waits, and
    raises ArchiveError if they are not the map's, or cannot be reached; ``wipe`` raises it too if
    they cannot be deleted.
    """

    words: str
    check: Callable[[], None]
    wipe: Callable[[], None]


class ArchiveKind(abc.ABC):
    """A kind of archive; its settings are fields of :class:`Settings`.

    Each method raises SettingError if the settings ask for something that is not there. Packages
    that only this kind needs are imported by the methods.

    Attributes:
        name: the value of the setting ``archive`` that chooses it.
        serves_many: whether several workers of a group may have it together.
        extra: the extra of the distribution that brings its packages; empty if it needs none.
    """

    name: str
    serves_many: bool
    extra: str = ""

    def exposed(self, settings: Settings) -> Iterator[Fault]:
        """Yield each fault of its connections beyond loopback, unless ``insecure`` is set."""
        del settings
        yield from ()

    def folders(self, settings: Settings) -> list[Path]:
        """Return the folders of this machine that it fills; they exist while it is open."""
        del settings
        return []

    @abc.abstractmethod
    def place(self, settings: Settings) -> str:
        """Return the name of its location, for the log."""

    @abc.abstractmethod
    def make(self, settings: Settings, reloads: Reloads | None = None) -> Archive:
        """Return the archive, to be opened; ``reloads`` reads its certificates when they change."""

    def schema(self, settings: Settings, themap: Map) -> Schema | None:
        """Return the tables to make before workers of a map start, None if there are none."""
        del settings, themap
        return None

    def examine(self, settings: Settings, themap: Map | None) -> list[Finding]:
        """Return findings of it, and of a map's part of it; it waits, and makes nothing.

        Raises:
            ArchiveError: it does not answer, or refuses.
        """
        del settings, themap
        return []

    @abc.abstractmethod
    def wiping(self, settings: Settings, map_name: str) -> Wiping:
        """Return the cells to delete when a map is reset."""

    def grants(self, settings: Settings, themap: Map, role: str, user: str) -> Iterator[str]:
        """Yield the commands that give a user the least rights of a role of ``map acl``."""
        del settings, themap, role, user
        yield from ()
