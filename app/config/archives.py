"""The kinds of archives that there are, by the setting ``archive``: this is the one list of them.

A kind is a package in ``tables/archive/`` that keeps ``protocol.py``, a module beside this one with
a subclass of ``ArchiveKind``, its settings, and an entry here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.config.archive_kind import ArchiveKind
from app.config.cassandra_archive import CassandraKind
from app.config.embedded_archive import EmbeddedKind
from tables.model.errors import SettingError

if TYPE_CHECKING:
    from app.config.settings import Settings

ARCHIVES: tuple[ArchiveKind, ...] = (EmbeddedKind(), CassandraKind())


def names() -> list[str]:
    """Return the values that the setting ``archive`` may have."""
    return [kind.name for kind in ARCHIVES]


def archive_of(settings: Settings) -> ArchiveKind:
    """Return the kind that the settings choose.

    Raises:
        SettingError: there is no such kind.
    """
    for kind in ARCHIVES:
        if kind.name == settings.archive:
            return kind
    raise SettingError(
        f"cannot use archive: got {settings.archive!r}; want one of {', '.join(names())}; set"
        " archive to one of them"
    )


def for_many() -> str:
    """Return the kinds that serve several workers, in words."""
    return " or ".join(kind.name for kind in ARCHIVES if kind.serves_many)


def why_alone(settings: Settings) -> str:
    """Return why a worker must be the only one of its group, empty if it may have others."""
    kind = archive_of(settings)
    if kind.serves_many:
        return ""
    return (
        f"its archive is {kind.name} and serves one worker only; set archive to {for_many()} for "
        "more workers, or stop the other one"
    )
