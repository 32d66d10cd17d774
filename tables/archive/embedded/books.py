"""Bookkeeping of an embedded archive, beside its rows: its map, its layers, its journals.

Each is one value, sealed like the rows. Values of earlier releases are not, and are sealed when the
archive opens, once all of them were found to be readable. docs/formats/archive.md lists them.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import rocksdict

from tables.archive.embedded.folder import LAYERS, OPENED, WHOSE, rocks, synced
from tables.archive.embedded.runs import SEALED, between, is_description
from tables.archive.identity import History, Whose
from tables.record.sealed import DamagedError, seal, unsealed

FORMAT = "3"
"""The format: since 3, blocks are sealed. A folder of 2 is taken over, its blocks as they are."""

_UNSEALED = "2"
_BOOKS, _BOOKS_END = b"\x00", b"\x01"
_HISTORY = b"\x00history\x00"
_OPENED_BYTES = 4

T = TypeVar("T")


class Books:
    """The bookkeeping of one open database.

    Every method raises ArchiveDamagedError if a value is not the written one, and ArchiveError
    if RocksDB does not read or write it.
    """

    def __init__(self, db: rocksdict.Rdict) -> None:
        self._db = db

    def check(self) -> None:
        """Read every entry, and change nothing."""
        with rocks("open archive"):
            found = {key: _content_of(key, value) for key, value in self._all().items()}
            if WHOSE in found and OPENED not in found:
                # Runs would be numbered anew, over those that there are.
                raise DamagedError("it does not say how often it was opened")
        for key in found:
            if key.startswith(_HISTORY):
                self._read("read the history of a journal", key, History)
            elif key.startswith(LAYERS):
                self.layer(key[len(LAYERS) :].decode(errors="replace"))
        self.whose()
        self.opened()

    def seal(self) -> None:
        """Seal the values that an earlier release wrote."""
        with rocks("open archive"):
            old = [(key, value) for key, value in self._all().items() if _is_bare(value)]
            for key, value in old:
                self._db.put(key, seal(SEALED, value), synced())

    def whose(self) -> Whose | None:
        """Return id and map of the archive, None if it does not have them yet."""
        return self._read("read whose it is", WHOSE, Whose)

    def put_whose(self, whose: Whose) -> None:
        """Write whose it is."""
        self._put("say whose it is", WHOSE, msgspec.json.encode(whose))

    def history(self, topic: str, partition: int) -> History | None:
        """Return the journal that a partition's rows come from, None while there are no rows."""
        step = f"read the history of {topic}"
        return self._read(step, _history_key(topic, partition), History)

    def put_history(self, topic: str, partition: int, history: History) -> None:
        """Write the journal that they come from."""
        key = _history_key(topic, partition)
        self._put(f"remember the history of {topic}", key, msgspec.json.encode(history))

    def layer(self, name: str) -> dict[str, str] | None:
        """Return the description of a layer's rows, as of this format; None without rows."""
        step = f"open layer {name} of the archive"
        found = self._read(step, LAYERS + name.encode(), dict[str, str])
        if found is None:
            return None
        with rocks(step):
            if not is_description(found):
                raise DamagedError("its description makes no sense")
        return found | {"format": FORMAT} if found.get("format") == _UNSEALED else found

    def put_layer(self, name: str, described: dict[str, str]) -> None:
        """Describe a layer's rows, if they are described otherwise."""
        key, content = LAYERS + name.encode(), msgspec.json.encode(described)
        with rocks(f"describe layer {name}"):
            if self._db.get(key) != seal(SEALED, content):
                self._db.put(key, seal(SEALED, content), synced())

    def opened(self) -> int:
        """Return the number of times that it was opened."""
        with rocks("read how often the archive was opened"):
            if (stored := self._db.get(OPENED)) is None:
                return 0
            content = _content_of(OPENED, stored)
            if len(content) != _OPENED_BYTES:
                raise DamagedError("how often it was opened is not a number of 4 bytes")
            return int.from_bytes(content)

    def put_opened(self, opened: int) -> None:
        """Write the number of times that it was opened."""
        self._put("count how often it was opened", OPENED, opened.to_bytes(_OPENED_BYTES))

    def _read(self, step: str, key: bytes, kind: type[T]) -> T | None:
        with rocks(step):
            if (stored := self._db.get(key)) is None:
                return None
            try:
                return msgspec.json.decode(_content_of(key, stored), type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise DamagedError(f"its entry {key!r} cannot be read: {error}") from error

    def _put(self, step: str, key: bytes, content: bytes) -> None:
        with rocks(step):
            self._db.put(key, seal(SEALED, content), synced())

    def _all(self) -> dict[bytes, bytes]:
        # No row is read: the archive opens even if rows are damaged.
        return dict(between(self._db, _BOOKS, _BOOKS_END))


def _content_of(key: bytes, stored: bytes) -> bytes:
    """Return the content of a value, sealed or of an earlier release."""
    if _is_bare(stored):
        return stored
    try:
        return bytes(unsealed(stored))
    except DamagedError as error:
        raise DamagedError(f"its entry {key!r} is damaged: {error}") from error


def _is_bare(stored: bytes) -> bool:
    """Return whether a value is of a release that did not seal: JSON, or a number below 2^24."""
    return stored[:1] == b"{" or (len(stored) == _OPENED_BYTES and stored[0] == 0)


def _history_key(topic: str, partition: int) -> bytes:
    return _HISTORY + f"{topic}\0{partition}".encode()
