"""Wiping archives: a map starts over, and its history goes, its own alone."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import rocksdict

from tables.archive.embedded import extent as archive_extent
from tables.archive.embedded.books import Books
from tables.archive.embedded.folder import has_archive, open_folder
from tables.archive.identity import Whose, check_map
from tables.model.errors import ArchiveDamagedError, ArchiveError

log = logging.getLogger(__name__)


def check_wipe(folder: Path, map_name: str) -> None:
    """Check that a folder's archive, if there is one, is a map's to delete.

    Raises:
        ArchiveError: it is another map's or another program's, or a worker has it open.
    """
    if not has_archive(folder):
        return
    try:
        with contextlib.closing(open_folder(folder)) as db:
            whose = Books(db).whose()
    except ArchiveDamagedError as error:
        # The extent names the map too, because a damaged archive needs to start over.
        known = archive_extent.written(folder)
        if known is None:
            raise ArchiveError(
                f"cannot delete archive in {folder}: it is damaged, and does not say of which map "
                f"it is ({error}); remove the folder, if it is this map's"
            ) from error
        log.warning("the archive to delete is damaged: %s", error)
        whose = Whose("", known[1])
    if whose is not None:
        check_map(str(folder), whose, map_name)


def wipe_folder(folder: Path, map_name: str) -> None:
    """Delete an embedded archive, if there is one; other files in the folder stay.

    Raises:
        ArchiveError: as :func:`check_wipe`, or it cannot be deleted.
    """
    if not has_archive(folder):
        return
    check_wipe(folder, map_name)
    try:
        rocksdict.Rdict.destroy(str(folder))
        (folder / archive_extent.NAME).unlink(missing_ok=True)
        if any(folder.iterdir()):
            # It says that the folder may be an archive's again, whatever else lies there.
            archive_extent.write_down(folder, archive_extent.Extent(0, 0, 0), map_name)
    except Exception as error:
        raise ArchiveError(
            f"cannot delete archive in {folder}: {error}; check that it is this user's to delete"
        ) from error
