"""The local store: one RocksDB per source partition, written in atomic batches.

    key "meta"                        MessagePack of tables.state.partition_meta.Meta
    key "block/" layer "/" sequence   version (8 bytes, signed), then the block's bytes
    key "sum"                         exclusive or of a hash of each of these, 8 bytes

All values are sealed (``tables.record.sealed``). The store is a cache of the journal: it is usable
only if it is whole and the journal still holds the entry it names, and is discarded otherwise. A
reused store saves reading the journal from its start.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import rocksdict

from tables.model.errors import TreasureMapError
from tables.record.sealed import HEAD_BYTES, DamagedError, digest, seal, unpacked, unsealed
from tables.state.block_table import BlockWrite
from tables.state.input_plan import InputPlan
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState
from tables.state.rocks_files import DAMAGE, ROCKS_FILE

log = logging.getLogger(__name__)

FORMAT = 4
WRITE_BUFFER_BYTES = 4 << 20
BLOCK_CACHE_BYTES = 1 << 20
"""State is kept in memory as frames; the store is read once, so it needs next to no cache."""

_VERSION = struct.Struct(">q")
_FORMAT_KEY = b"format"
_META_KEY = b"meta"
_SUM_KEY = b"sum"
_BLOCKS = b"block/"
_META = msgspec.msgpack.Decoder(Meta)


class PartitionStore:
    """The store of one partition in ``folder``; RocksDB's lock keeps other processes out.

    ``damaged`` is called if it is found to be damaged.
    """

    _is_damaged = False

    def __init__(self, folder: Path, damaged: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self._damaged = damaged
        self._hashes: dict[bytes, int] | None = None
        self._db = self._opened()

    def _opened(self) -> rocksdict.Rdict:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                return rocksdict.Rdict(str(self.folder), _options())
            except Exception as error:
                if not any(word in str(error) for word in DAMAGE):
                    raise
                self._log_damaged(error)
                self._remove()
                return rocksdict.Rdict(str(self.folder), _options())
        except Exception as error:
            raise TreasureMapError(
                f"cannot open local store {self.folder}: {error}; is another worker using this "
                "folder, or may this one not write to it? Give each worker its own state_folder; "
                "it may be removed: it is rebuilt"
            ) from error

    def _remove(self) -> None:
        """Remove RocksDB's files and no others; its lock stays."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name != "LOCK" and ROCKS_FILE.fullmatch(path.name):
                path.unlink()

    def load(self, plan: InputPlan) -> PartitionState | None:
        """Return the stored state, or None if it is missing, of another format, or not whole."""
        try:
            if self._db.get(_FORMAT_KEY) == bytes((FORMAT,)):
                return self._load(plan)
        except Exception as error:
            # RocksDB's errors are bare exceptions.
            if type(error) not in (Exception, DamagedError):
                raise
            self._log_damaged(error)
            self._is_damaged = True
        return None

    def _log_damaged(self, error: Exception) -> None:
        log.warning(
            "local store %s is damaged, and made anew from the journal: %s", self.folder, error
        )
        self._damaged()

    def _load(self, plan: InputPlan) -> PartitionState:
        meta = self._db.get(_META_KEY)
        if meta is None:
            raise DamagedError("it names no journal")
        state = PartitionState(plan, unpacked(_META, unsealed(meta)))
        hashes = {_META_KEY: _hash(_META_KEY, meta)}
        for key, value in self._blocks():
            hashes[_BLOCKS + key] = _hash(_BLOCKS + key, value)
            layer, _, sequence = key.decode(errors="replace").partition("/")
            if not sequence.isdecimal():
                raise DamagedError(f"it holds a block {key!r}")
            if (table := state.all_tables.get(layer)) is not None:
                content = unsealed(value)
                (version,) = _VERSION.unpack_from(content)
                table.load(int(sequence), version, bytes(content[_VERSION.size :]))
        # RocksDB takes a list of its tables that was cut off for one that ends there.
        if self._db.get(_SUM_KEY) != _sum(hashes):
            raise DamagedError("some of it is gone: its values do not add up to their sum")
        self._hashes = hashes
        return state

    def _blocks(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the blocks by layer and sequence; ``items`` would end early at a damaged page."""
        rows = self._db.iter()
        try:
            rows.seek(_BLOCKS)
            while rows.valid() and (key := rows.key()).startswith(_BLOCKS):
                yield key[len(_BLOCKS) :], rows.value()
                rows.next()
            rows.status()
        finally:
            # A live iterator would keep the folder locked after the store is closed.
            del rows

    def save(self, writes: list[BlockWrite], meta: Meta) -> None:
        """Write blocks and meta in one atomic batch. Raises TreasureMapError if the disk is full.

        The write-ahead log is not synced: deltas that a crash of the machine loses are read from
        the journal.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        hashes = self._stored()
        for write in writes:
            key = _BLOCKS + f"{write.layer}/{write.sequence}".encode()
            if write.data is None:
                batch.delete(key)
                hashes.pop(key, None)
            else:
                value = seal(FORMAT, _VERSION.pack(write.version) + write.data)
                batch.put(key, value)
                hashes[key] = _hash(key, value)
        value = seal(FORMAT, msgspec.msgpack.encode(meta))
        batch.put(_META_KEY, value)
        hashes[_META_KEY] = _hash(_META_KEY, value)
        batch.put(_SUM_KEY, _sum(hashes))
        batch.put(_FORMAT_KEY, bytes((FORMAT,)))
        with self._disk("write"):
            self._db.write(batch)
        self._hashes = hashes

    def _stored(self) -> dict[bytes, int]:
        """Return the hash of each value that counts; the written ones are known only afterwards."""
        if self._hashes is None:
            with self._disk("read"):
                return {_BLOCKS + key: _hash(_BLOCKS + key, value) for key, value in self._blocks()}
        return dict(self._hashes)

    def clear(self) -> None:
        """Discard all that is stored; a damaged store is made anew, or it would fail again."""
        self._hashes = None
        if self._is_damaged:
            with contextlib.suppress(TreasureMapError):
                self.close()
            self._remove()
            self._db = self._opened()
            self._is_damaged = False
            return
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key in list(self._db.keys()):
            batch.delete(key)
        with self._disk("write"):
            self._db.write(batch)

    @contextlib.contextmanager
    def _disk(self, verb: str) -> Iterator[None]:
        """Turn RocksDB's errors, which are bare exceptions, into one that names the remedy."""
        try:
            yield
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise TreasureMapError(
                f"cannot {verb} local store {self.folder}: {error}; want a disk that has room and "
                "takes writes; make room, then start the worker again: it resumes from its journal"
            ) from error

    def close(self) -> None:
        """Close RocksDB and give its lock back.

        Raises:
            TreasureMapError: a write failed before, or the last write cannot be kept.
        """
        with self._disk("close"):
            self._db.close()


def _hash(key: bytes, value: bytes) -> int:
    """Return a hash of a sealed value and its key; of the value its checksum will do."""
    return digest(key + value[:HEAD_BYTES])


def _sum(hashes: dict[bytes, int]) -> bytes:
    """Return the sealed sum of hashes, whatever their order."""
    total = functools.reduce(operator.xor, hashes.values(), 0)
    return seal(FORMAT, total.to_bytes(8))


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_keep_log_file_num(2)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
    options.set_block_based_table_factory(table)
    return options
