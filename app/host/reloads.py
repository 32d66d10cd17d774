"""Files that a worker reads again while it runs: certificates, keys and tokens.

A check compares the size, times and inode of each file with those of the last contents in use.
Contents that cannot be used change nothing: the last good ones stay, with one warning. A file may
be half written when it is checked, so the warning waits for a second check.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from tables.model.errors import TreasureMapError

LOOK_S = 1.0
"""How often files are checked. A check is one system call a file, some microseconds."""

WARN_LOOKS = 2
"""The failed checks in a row before the warning: writers of two files need a moment between."""

Signature = tuple[tuple[int, ...] | None, ...]

log = logging.getLogger(__name__)


class Reload:
    """One thing made of files, with the name that metrics label it by: ``tokens``, for instance.

    ``load`` reads the files and puts their contents to use, or raises and changes nothing. Empty
    paths are left out.

    Attributes:
        error: why the files cannot be used as they are now; empty if they are in use.
        loads_total: how often changed contents were put to use.

    Raises:
        TreasureMapError, OSError: the first load fails.
    """

    def __init__(self, name: str, files: Sequence[str], load: Callable[[], None]) -> None:
        self.name = name
        self.files = tuple(file for file in files if file)
        self._load = load
        # Read before the files are: a change between the two is seen at the next check.
        self._seen = _signature(self.files)
        self._failed_looks = 0
        self.error = ""
        self.loads_total = 0
        load()

    def look(self) -> None:
        """Load the files if they have changed, or could not be used at the last check."""
        found = _signature(self.files)
        if found == self._seen and not self.error:
            return
        try:
            self._load()
        except (TreasureMapError, OSError) as error:
            self.error = str(error)
            self._failed_looks += 1
            if self._failed_looks == WARN_LOOKS:
                log.warning("%s: the last good contents stay in use: %s", self.name, error)
        else:
            log.info("%s: the changed files are in use: %s", self.name, ", ".join(self.files))
            self._seen, self._failed_looks, self.error = found, 0, ""
            self.loads_total += 1


class Reloads:
    """All things that are made of files."""

    def __init__(self) -> None:
        self.all: list[Reload] = []

    def add(self, name: str, files: Sequence[str], load: Callable[[], None]) -> None:
        """Load files now, and again whenever they change; see :class:`Reload`."""
        self.all.append(Reload(name, files, load))

    def look(self) -> None:
        """Check all files."""
        for one in self.all:
            one.look()

    async def keep_looking(self) -> None:
        """Check all files once a second."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def warnings(self) -> list[str]:
        """Return a sentence for each thing whose files cannot be used as they are now."""
        return [f"{one.name}: {one.error}" for one in self.all if one.error]


def _signature(files: Sequence[str]) -> Signature:
    """Return values that change when one of the files does; None is for a missing file."""
    found: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            stat = os.stat(file)  # noqa: PTH116 - follows the links of a mounted secret
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)
