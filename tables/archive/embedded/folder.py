"""The embedded archive's folder: its database, opened, and its errors as the archive's.

A folder is checked before anything is written to it: it may be another program's, or damaged in a
way that RocksDB would make worse.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rocksdict

from tables.archive.embedded import extent as archive_extent
from tables.model.errors import ArchiveDamagedError, ArchiveError
from tables.record.sealed import DamagedError
from tables.state.rocks_files import DAMAGE, ROCKS_FILE

log = logging.getLogger(__name__)

BLOCK_CACHE_BYTES = 16 << 20
WRITE_BUFFER_BYTES = 16 << 20
OPEN_FILES_MAX = 256

# No layer's rows start with a zero byte: names of layers are not empty.
LAYERS = b"\x00layer\x00"
OPENED = b"\x00opened"
WHOSE = b"\x00archive"

RESTORE = (
    "restore the archive's folder from a copy, or start over with `reset`; "
    "docs/OPERATING.md, When bytes are damaged, has the cost of each"
)
_ROWS_FILE = re.compile(r"\d+\.(sst|log|blob)")
_LOCKED = ("While lock file", "lock hold by current process")
_FOREIGN_SHOWN = 3


def open_folder(folder: Path) -> rocksdict.Rdict:
    """Open the database in a folder, which is made if it is missing.

    Raises:
        ArchiveDamagedError: files of it are damaged or missing; nothing was written.
        ArchiveError: it is another program's, another process has it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check(folder)
        with rocks("open archive"):
            return rocksdict.Rdict(str(folder), _options())
    except ArchiveDamagedError as error:
        raise ArchiveDamagedError(f"cannot open archive in {folder}: {error}") from error
    except (ArchiveError, OSError) as error:
        if any(words in str(error) for words in _LOCKED):
            advice = "; another worker has it open; stop it, or use Cassandra, which serves many"
        elif isinstance(error, _ForeignError):
            advice = "; want one that is new, or an archive's; set archive_folder to one of its own"
        else:
            advice = "; check that the folder is this worker's to write"
        raise ArchiveError(f"cannot open archive in {folder}: {error}{advice}") from error


def reopen_folder(db: rocksdict.Rdict, folder: Path) -> rocksdict.Rdict:
    """Open the database again: after a write that failed, a full disk, RocksDB accepts no other."""
    try:
        with rocks("close archive"):
            db.close()
    except ArchiveError as error:
        # It is closed nevertheless; nothing that was acknowledged is in doubt, all of it is synced.
        log.warning("an archive whose disk failed was closed with its error: %s", error)
    return open_folder(folder)


def has_archive(folder: Path) -> bool:
    """Return whether a folder has a database, or remains of an archive."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return _is_begun(folder) or any(map(ROCKS_FILE.fullmatch, names))


@contextlib.contextmanager
def rocks(step: str) -> Iterator[None]:
    """Turn RocksDB's errors, which are bare exceptions, into the archive's."""
    try:
        yield
    except DamagedError as error:
        raise ArchiveDamagedError(f"cannot {step}: {error}; {RESTORE}") from error
    except Exception as error:
        if type(error) not in (Exception, rocksdict.DbClosedError):
            raise
        if any(words in str(error) for words in DAMAGE):
            raise ArchiveDamagedError(
                f"cannot {step}: RocksDB says {error}; its files are damaged; {RESTORE}"
            ) from error
        raise ArchiveError(
            f"cannot {step}: RocksDB says {error}; check the archive's folder and disk"
        ) from error


def synced() -> rocksdict.WriteOptions:
    """Return the options of a write that is acknowledged once it is on the disk."""
    options = rocksdict.WriteOptions()
    options.sync = True
    return options


def _is_begun(folder: Path) -> bool:
    """Return whether something was acknowledged in a folder; nothing is in one that was wiped."""
    before = archive_extent.written(folder)
    return before is not None and before[0].sequence > 0


class _ForeignError(ArchiveError):
    """The folder is another program's."""


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create_if_missing=True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_open_files(OPEN_FILES_MAX)
    # Blocks are compressed already.
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_keep_log_file_num(2)
    # All writes are synced, so a log may end in one that was cut off, and in nothing else. By
    # default RocksDB ends at a damaged write, as if those behind it had not been acknowledged.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    tables = rocksdict.BlockBasedOptions()
    tables.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
    tables.set_cache_index_and_filter_blocks(True)
    options.set_block_based_table_factory(tables)
    return options


def _check(folder: Path) -> None:
    """Refuse a folder that is not an archive's, or a damaged one; write nothing to it."""
    files = [path.name for path in folder.iterdir() if not path.is_dir()]
    if "CURRENT" not in files:
        _check_files(folder, files)
        return
    # Its own small file is written by rocksdict even if a database is only read.
    configured = "rocksdict-config.json" in files
    try:
        _try_lock(folder)
        with rocks("open archive"):
            access = rocksdict.AccessType.read_only(error_if_log_file_exist=False)
            db = rocksdict.Rdict(str(folder), _options(), access_type=access)
            try:
                _check_database(folder, db)
            finally:
                db.close()
    except ArchiveDamagedError:
        raise
    except ArchiveError as error:
        if "comparator" in str(error):
            raise _ForeignError(f"it has another program's database: {error}") from error
        raise
    finally:
        if not configured:
            (folder / "rocksdict-config.json").unlink(missing_ok=True)


def _check_files(folder: Path, files: list[str]) -> None:
    """Refuse a folder without a database that has files of an archive or of another program."""
    rocks_files = [name for name in files if _ROWS_FILE.fullmatch(name)]
    if rocks_files or _is_begun(folder):
        raise ArchiveDamagedError(f"its file CURRENT is gone, and others are there; {RESTORE}")
    if archive_extent.NAME in files:
        return
    # Names with a dot in front are those of file systems and desktops.
    foreign = sorted(
        name for name in files if not name.startswith(".") and not ROCKS_FILE.fullmatch(name)
    )
    if foreign:
        shown = ", ".join(foreign[:_FOREIGN_SHOWN])
        more = f" and {len(foreign) - _FOREIGN_SHOWN} more" * (len(foreign) > _FOREIGN_SHOWN)
        raise _ForeignError(f"the folder has other files: got {shown}{more}")


def _try_lock(folder: Path) -> None:
    """Refuse a folder that another process has open: it is only whole once that has closed it.

    RocksDB takes its lock before it finds that there is a database, which is set to be an error
    here. Its own lines about that are written elsewhere.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        options = _options()
        options.set_error_if_exists(True)
        options.set_db_log_dir(elsewhere)
        try:
            rocksdict.Rdict(str(folder), options).close()
        except Exception as error:
            if type(error) is not Exception:
                raise
            if "error_if_exists" not in str(error):
                raise ArchiveError(str(error)) from error


def _check_database(folder: Path, db: rocksdict.Rdict) -> None:
    """Refuse a database that ends before its extent, or does not have our keys."""
    before = archive_extent.written(folder)
    if before is not None:
        if lacking := archive_extent.reached(folder, db).lacks(before[0]):
            raise ArchiveDamagedError(f"the end of it is gone: {lacking}; {RESTORE}")
        return
    cursor = db.iter()
    try:
        cursor.seek(b"")
        first = cursor.key() if cursor.valid() else None
        cursor.seek(LAYERS)
        has_layers = cursor.valid() and cursor.key().startswith(LAYERS)
        cursor.status()
    finally:
        del cursor
    is_ours = has_layers or any(db.get(key) is not None for key in (OPENED, WHOSE))
    families = [name for name in rocksdict.Rdict.list_cf(str(folder)) if name != "default"]
    if families or not (is_ours or first is None):
        name = f"column family {families[0]}" if families else f"key {first!r}"
        raise _ForeignError(f"it has another program's database: got {name}")
