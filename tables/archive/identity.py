"""The identity of an archive: its own id, its map, and the journal of each partition's rows.

Rows of two maps, or of two histories of one topic, cannot be parted once they are mixed: they
differ in versions alone, and the greater one wins. So an archive has an id of its own, which lies
inside it and moves with it, and remembers which journal writes the rows of an input partition; and
a journal remembers the archive that has its rows (docs/formats/journal.md rule 19).
"""

from __future__ import annotations

import secrets

import msgspec

from tables.model.errors import ArchiveError

ID_BYTES = 8
"""The length of a random id; two of a billion archives share one with a probability of 3 %."""


class Whose(msgspec.Struct, frozen=True):
    """The identity of an archive: its id, and the name of the map whose rows it has."""

    id: str
    map: str


class History(msgspec.Struct, frozen=True):
    """A journal partition's history: the id that its first claim drew, and Kafka's cluster id."""

    id: str
    cluster: str = ""


def draw_id() -> str:
    """Return a new id, of hexadecimal digits."""
    return secrets.token_hex(ID_BYTES)


def check_map(place: str, whose: Whose, map_name: str) -> None:
    """Refuse an archive of another map.

    Raises:
        ArchiveError: names its map and the remedy.
    """
    if whose.map != map_name:
        raise ArchiveError(
            f"cannot open archive in {place}: it has the rows of another map; got map {whose.map};"
            f" want map {map_name}; give each map an archive_folder of its own"
        )
