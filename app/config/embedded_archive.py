"""The embedded archive as the settings choose it: a folder that one worker has."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from app.config.archive_kind import Fault, Wiping

if TYPE_CHECKING:
    from app.config.settings import Settings
    from app.host.reloads import Reloads
    from tables.archive.protocol import Archive
    from tables.model.layer import Map


class EmbeddedKind:
    """The kind ``embedded``; see :class:`app.config.archive_kind.ArchiveKind`."""

    name = "embedded"
    serves_many = False

    def exposed(self, settings: Settings) -> Iterator[Fault]:
        """Yield nothing: it has no connections."""
        del settings
        yield from ()

    def folders(self, settings: Settings) -> list[Path]:
        """Return its folder."""
        return [settings.archive_folder]

    def place(self, settings: Settings) -> str:
        """Return its folder."""
        return str(settings.archive_folder.absolute())

    def make(self, settings: Settings, reloads: Reloads | None = None) -> Archive:
        """Return the archive, to be opened."""
        from tables.archive.embedded.archive import EmbeddedArchive  # noqa: PLC0415 - if chosen

        del reloads
        return EmbeddedArchive(settings.archive_folder)

    def schema(self, settings: Settings, themap: Map) -> None:
        """Return None: a worker makes all of it when it opens the folder."""

    def wiping(self, settings: Settings, map_name: str) -> Wiping:
        """Return the folder's archive."""
        from tables.archive.embedded.wipe import wipe_folder  # noqa: PLC0415 - if chosen

        folder = settings.archive_folder
        what = f"the archive in folder {folder.absolute()}"
        return Wiping(what, functools.partial(wipe_folder, folder, map_name))

    def grants(self, settings: Settings, themap: Map, role: str, user: str) -> Iterator[str]:
        """Yield nothing: who may write the folder has all rights."""
        del settings, themap, role, user
        yield from ()
