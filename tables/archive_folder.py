"""The embedded archive's folder: its database, opened, and its errors as the archive's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import rocksdict

from tables.errors import ArchiveError
from tables.sealed import DamagedError

log = logging.getLogger(__name__)

BLOCK_CACHE_BYTES = 16 << 20
WRITE_BUFFER_BYTES = 16 << 20
OPEN_FILES_MAX = 256


def open_folder(folder: Path) -> rocksdict.Rdict:
    """Open the database in a folder, which is made where it is missing. Raises ArchiveError."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create_if_missing=True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_open_files(OPEN_FILES_MAX)
    # Blocks are compressed already.
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_keep_log_file_num(2)
    tables = rocksdict.BlockBasedOptions()
    tables.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
    tables.set_cache_index_and_filter_blocks(True)
    options.set_block_based_table_factory(tables)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rocks("open archive"):
            return rocksdict.Rdict(str(folder), options)
    except (ArchiveError, OSError) as error:
        locked = "lock" in str(error).lower()
        what = (
            "another worker has it open; stop that worker, or use Cassandra, which serves many"
            if locked
            else "check that the folder is this worker's to write"
        )
        raise ArchiveError(f"cannot open archive in {folder}: {error}; {what}") from error


def reopen_folder(db: rocksdict.Rdict, folder: Path) -> rocksdict.Rdict:
    """Open the database again: after one write that failed, a full disk, RocksDB takes no other."""
    try:
        with rocks("close archive"):
            db.close()
    except ArchiveError as error:
        # It is closed nevertheless; nothing that was acknowledged is in doubt, all of it is synced.
        log.warning("an archive whose disk failed was closed with its error: %s", error)
    return open_folder(folder)


@contextlib.contextmanager
def rocks(what: str) -> Iterator[None]:
    """Turn RocksDB's errors, which are bare exceptions, into the archive's."""
    try:
        yield
    except DamagedError as error:
        raise ArchiveError(
            f"cannot {what}: {error}; restore the archive's folder from a copy"
        ) from error
    except Exception as error:
        if type(error) not in (Exception, rocksdict.DbClosedError):
            raise
        raise ArchiveError(
            f"cannot {what}: RocksDB says {error}; check the archive's folder and disk"
        ) from error


def synced() -> rocksdict.WriteOptions:
    """Return the options of a write that is acknowledged once it is on the disk."""
    options = rocksdict.WriteOptions()
    options.sync = True
    return options
