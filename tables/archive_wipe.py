"""Wiping archives: a map starts over, and its history goes, its own alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import rocksdict

from tables.archive_embedded import WHOSE
from tables.archive_folder import open_folder
from tables.archive_identity import Whose, check_map
from tables.errors import ArchiveError


def wipe_folder(folder: Path, map_name: str) -> None:
    """Delete an embedded archive, if there is one; what else may lie in the folder stays.

    Raises:
        ArchiveError: it is another map's, a worker has it open, or it cannot be deleted.
    """
    if not (folder / "CURRENT").exists():
        return
    db = open_folder(folder)
    stored = db.get(WHOSE)
    db.close()
    if stored is not None:
        check_map(str(folder), msgspec.json.decode(stored, type=Whose), map_name)
    try:
        rocksdict.Rdict.destroy(str(folder))
    except Exception as error:
        raise ArchiveError(
            f"cannot delete archive in {folder}: {error}; check that it is this user's to delete"
        ) from error
