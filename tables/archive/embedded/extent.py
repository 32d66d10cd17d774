"""The extent of an embedded archive, in a file beside its database.

RocksDB accepts a list of its tables, or a log of writes, that was cut off: it
opens, and deletes files that it no longer knows. So its extent is written down after each
write that was acknowledged, and an archive that ends before that is refused. The file also says
whose the folder is if the database cannot.

    sealed: sequence | number of the list | bytes of the list, 8 bytes each | name of the map
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

import rocksdict

from tables.record.sealed import DamagedError, seal, unsealed

NAME = "treasure-map-extent"
_FORMAT = 3
_NUMBERS = struct.Struct(">QQQ")


class Extent(NamedTuple):
    """The extent of a database: its last write, and the list of its tables.

    Attributes:
        sequence: RocksDB's number of the last write.
        manifest: the number in the name of the list; a later one replaces it.
        manifest_bytes: its size; it only grows.
    """

    sequence: int
    manifest: int
    manifest_bytes: int

    def lacks(self, before: Extent) -> str:
        """Return in words the part that is missing since ``before``; empty if nothing is."""
        if self.sequence < before.sequence:
            return f"its last write is {self.sequence}, and {before.sequence} were acknowledged"
        if self[1:] < before[1:] and self.manifest <= before.manifest:
            return (
                f"MANIFEST-{self.manifest:06} has {self.manifest_bytes} bytes, and "
                f"MANIFEST-{before.manifest:06} had {before.manifest_bytes}"
            )
        return ""


def reached(folder: Path, db: rocksdict.Rdict) -> Extent:
    """Return the extent of an open database. Raises OSError, or an exception of RocksDB's."""
    manifest = (folder / "CURRENT").read_text().strip()
    size = (folder / manifest).stat().st_size
    return Extent(db.latest_sequence_number(), int(manifest.removeprefix("MANIFEST-")), size)


def written(folder: Path) -> tuple[Extent, str] | None:
    """Return the written extent and its map; None if there is nothing readable."""
    with contextlib.suppress(FileNotFoundError, DamagedError, struct.error, UnicodeDecodeError):
        content = bytes(unsealed((folder / NAME).read_bytes()))
        numbers = _NUMBERS.unpack_from(content)
        return Extent(*numbers), content[_NUMBERS.size :].decode()
    return None


def write_down(folder: Path, extent: Extent, map_name: str) -> None:
    """Write it over the older one. It has the same size, so it needs no room and changes at once.

    It is not synced: an older extent on disk is behind, and only checks less.
    """
    content = seal(_FORMAT, _NUMBERS.pack(*extent) + map_name.encode())
    file = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, content, 0)
        os.ftruncate(file, len(content))
    finally:
        os.close(file)
