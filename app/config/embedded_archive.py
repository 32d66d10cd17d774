"""The embedded archive as the settings choose it: a folder that one worker has."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from app.config.archive_kind import ArchiveKind, Wiping
from app.host.findings import Finding

if TYPE_CHECKING:
    from app.config.settings import Settings
    from app.host.reloads import Reloads
    from tables.archive.protocol import Archive
    from tables.model.layer import Map


class EmbeddedKind(ArchiveKind):
    """The kind ``embedded``.

    It has no connections, and whoever may write the folder has all rights. A worker makes all of it
    when it opens the folder.
    """

    name = "embedded"
    serves_many = False

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

    def examine(self, settings: Settings, themap: Map | None) -> list[Finding]:
        """Return whose archive the folder has, as the file beside it says."""
        from tables.archive.embedded import extent  # noqa: PLC0415 - if chosen

        folder = settings.archive_folder
        try:
            known = extent.written(folder)
        except OSError as error:
            text = f"cannot read {folder}: {error.strerror}; set archive_folder to another folder"
            return [Finding("fail", "archive", text)]
        if known is None:
            return [Finding("ok", "archive", f"{folder} has none yet; a worker makes it")]
        if themap is not None and known[1] != themap.name:
            text = (
                f"{folder} has the rows of another map; got map {known[1]}; want {themap.name};"
                " set archive_folder to a folder of this map's own"
            )
            return [Finding("fail", "archive", text)]
        return [Finding("ok", "archive", f"{folder} has the rows of map {known[1]}")]

    def wiping(self, settings: Settings, map_name: str) -> Wiping:
        """Return the folder's archive."""
        from tables.archive.embedded.folder import has_archive  # noqa: PLC0415 - if chosen
        from tables.archive.embedded.wipe import check_wipe, wipe_folder  # noqa: PLC0415 - if chosen

        folder = settings.archive_folder
        cells = f"the archive in folder {folder.absolute()}" if has_archive(folder) else ""
        return Wiping(
            cells,
            functools.partial(check_wipe, folder, map_name),
            functools.partial(wipe_folder, folder, map_name),
        )
