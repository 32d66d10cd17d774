"""Local stores of simulated hosts: real RocksDBs, kept open from run to run, as opening is slow.

Who opens a store gets one of them, empty in a new run, and a lock that goes with its process.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import rocksdict

from tables.state.store import PartitionStore
from tests.simulation.loop import PROCESS, Process

Contents = dict[bytes, bytes]

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it


class Stores:
    """All local stores of a run, by place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._databases: list[rocksdict.Rdict] = []
        self._free: list[rocksdict.Rdict] = []
        self._used: dict[Path, rocksdict.Rdict] = {}
        self._locks: dict[Path, Process] = {}

    def begin(self) -> None:
        """Begin a run: there are no stores."""
        for place in list(self._used):
            self.lose(place)
        self._locks.clear()

    def open(self, place: Path, damaged: Callable[[], None] = lambda: None) -> PartitionStore:
        """Open a store for the process that runs; takes the place of the product's class."""
        holder = self._locks.get(place)
        assert holder is None or not holder.alive, f"{place} is open in process {holder}"
        self._locks[place] = PROCESS.get()
        return SimulatedStore(self, place, damaged)

    def unlock(self, place: Path) -> None:
        """Give a lock back, if the process that runs has it."""
        if self._locks.get(place) is PROCESS.get():
            del self._locks[place]

    def places(self) -> list[Path]:
        """Return the places that have stores."""
        return sorted(self._used)

    def database(self, place: Path) -> rocksdict.Rdict:
        """Return the database of a place, a new one if there was none."""
        if place not in self._used:
            if not self._free:
                options = rocksdict.Options(raw_mode=True)
                options.create_if_missing(True)
                options.set_write_buffer_size(1 << 18)
                folder = self._folder / str(len(self._databases))
                self._free.append(rocksdict.Rdict(str(folder), options))
                self._databases += self._free
            self._used[place] = self._free.pop()
        return self._used[place]

    def copy(self, place: Path) -> Contents:
        """Return all that a store holds."""
        return dict(self._used[place].items())

    def lose(self, place: Path) -> None:
        """Remove a store."""
        database = self._used.pop(place, None)
        if database is not None:
            for key in list(database.keys()):
                database.delete(key)
            self._free.append(database)

    def put(self, place: Path, contents: Contents) -> None:
        """Put a copy in a store's place."""
        self.lose(place)
        database = self.database(place)
        for key, value in contents.items():
            database[key] = value

    def close(self) -> None:
        """Close all databases."""
        for database in self._databases:
            database.close()


class SimulatedStore(PartitionStore):
    """The real local store, over a database that stays open."""

    def __init__(self, stores: Stores, place: Path, damaged: Callable[[], None]) -> None:
        self._stores = stores
        super().__init__(place, damaged)

    def _opened(self) -> rocksdict.Rdict:
        return self._stores.database(self.folder)

    def close(self) -> None:
        """Give the lock back."""
        self._stores.unlock(self.folder)


@contextlib.contextmanager
def temporary_stores() -> Iterator[Stores]:
    """Make stores, in memory if the system has a folder for that; remove them afterwards."""
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="simulation", dir=memory) as folder:
        stores = Stores(Path(folder))
        try:
            yield stores
        finally:
            stores.close()
