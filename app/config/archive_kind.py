"""The protocol of a kind of archive: how the settings choose, check, make and wipe one.

``app/config/archives.py`` lists the kinds that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from app.config.settings import Settings
    from app.host.reloads import Reloads
    from tables.archive.protocol import Archive
    from tables.model.layer import Map

Fault = tuple[tuple[str, ...], str]
"""The settings that a fault is about, and a sentence."""


class Schema(NamedTuple):
    """Tables of ``map apply``: ``what`` names them, opening ``archive`` makes or checks them."""

    archive: Archive
    what: str


class Wiping(NamedTuple):
    """Cells that ``map start-over`` deletes: ``what`` names them, ``wipe`` deletes them and waits.

    ``wipe`` raises ArchiveError if they cannot be deleted.
    """

    what: str
    wipe: Callable[[], None]


class ArchiveKind(Protocol):
    """A kind of archive; its settings are fields of :class:`Settings`.

    Each method raises SettingError if the settings ask for something that is not there. Packages
    that only this kind needs are imported by the methods.
    """

    @property
    def name(self) -> str:
        """The value of the setting ``archive`` that chooses it."""

    @property
    def serves_many(self) -> bool:
        """Whether several workers of a group may have it together."""

    def exposed(self, settings: Settings) -> Iterator[Fault]:
        """Yield each fault of its connections beyond loopback, unless ``insecure`` is set."""

    def folders(self, settings: Settings) -> list[Path]:
        """Return the folders of this machine that it fills; they exist while it is open."""

    def place(self, settings: Settings) -> str:
        """Return the name of its location, for the log."""

    def make(self, settings: Settings, reloads: Reloads | None = None) -> Archive:
        """Return the archive, to be opened; ``reloads`` reads its certificates when they change."""

    def schema(self, settings: Settings, themap: Map) -> Schema | None:
        """Return the tables to make before workers of a map start, None if there are none."""

    def wiping(self, settings: Settings, map_name: str) -> Wiping:
        """Return the cells to delete when a map starts over."""

    def grants(self, settings: Settings, themap: Map, role: str, user: str) -> Iterator[str]:
        """Yield the commands that give a user the least rights of a role of ``map acl``."""
