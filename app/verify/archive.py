"""Archived rows, read without the worker's code: by plain CQL, or from the embedded one's folder.

An embedded archive is opened for reading beside the worker that writes to it; both formats are
described in docs/formats/archive.md.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import rocksdict
from xxhash import xxh3_64_digest

from app.config.connections import cassandra_tls
from app.config.settings import Settings
from app.verify import sql
from app.verify.database import COLUMN_TYPES, Database
from app.verify.errors import VerifyError
from app.verify.layers import key_hash
from app.verify.same import archived_table, stored_columns
from app.verify.windows import window_nominal_ms
from tables.model.layer import Layer, Map
from treasure_map.extras import install

_BUCKET_WINDOWS, _BUCKET_MS_MIN = 32, 10_000
_BIAS = 2**63
_SEALED = b"\x03"
_PAGE_ROWS = 2_000
_REQUEST_SECONDS = 60.0

_ROWS = 50_000
_WIDE = ("sum", "sqlo", "sqhi")


def load_archived(database: Database, layer: Layer, frames: Iterable[pl.DataFrame]) -> int:
    """Make the table of a layer's archived rows; return how many there are.

    Columns of frames are ``source_partition``, ``key_…``, ``window_start``, accumulators, and
    ``write_time`` if the latest of several rows of one cell and partition counts.
    """
    table, raw = archived_table(layer), f"raw_{layer.name}"
    keys, stored = sql.keys_of(layer), stored_columns(layer)
    types = ["part INTEGER"]
    types += [f"{k} {COLUMN_TYPES[f.type][1]}" for k, f in zip(keys, layer.key, strict=True)]
    types += ["start BIGINT", *(f"{a} {'DOUBLE' if floats else 'HUGEINT'}" for a, floats in stored)]
    database.run(f"CREATE OR REPLACE TABLE {raw} ({', '.join(types)}, write_time BIGINT)")
    for frame in frames:
        database.load(f"INSERT INTO {raw} FROM incoming", _as_loaded(layer, frame))
    identity = ", ".join(["part", *keys, "start"])
    database.run(
        f"CREATE OR REPLACE TABLE {table} AS SELECT * EXCLUDE (write_time) FROM {raw} QUALIFY"
        f" row_number() OVER (PARTITION BY {identity} ORDER BY write_time DESC) = 1"
    )
    database.run(f"DROP TABLE {raw}")
    return database.number(f"SELECT count(*) FROM {table}")


def _as_loaded(layer: Layer, frame: pl.DataFrame) -> pl.DataFrame:
    """Return rows in the order of their table; types that DuckDB's Arrow lacks are text."""
    names = ["source_partition", *layer.key_columns, "window_start"]
    names += [acc.column for acc in layer.accumulators] + ["write_time"]
    columns = []
    for name in names:
        column = frame[name] if name in frame.columns else pl.repeat(None, frame.height, eager=True)
        wide = column.dtype in (pl.Int128, pl.Object)
        columns.append((column.cast(pl.String) if wide else column).alias(name))
    return pl.DataFrame(columns)


def bucket_of(layer: Layer, start_ms: int) -> int:
    """Return the bucket that a window belongs to."""
    return start_ms // max(_BUCKET_MS_MIN, _BUCKET_WINDOWS * window_nominal_ms(layer))


class CassandraRows(contextlib.AbstractContextManager["CassandraRows"]):
    """The rows in Cassandra; use it in a ``with`` statement. Every call waits for an answer.

    Raises:
        VerifyError: Cassandra does not answer, or the driver is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        try:
            from cassandra import auth, cluster, policies, query  # noqa: PLC0415 - an extra

            from tables.archive.cassandra.endpoints import nodes_of  # noqa: PLC0415 - an extra too
        except ImportError as error:
            raise VerifyError(
                f"cannot read archive cassandra: {error}; {install('cassandra')}"
            ) from error
        profile = cluster.ExecutionProfile(
            load_balancing_policy=policies.DCAwareRoundRobinPolicy(settings.cassandra_local_dc),
            consistency_level=6,  # LOCAL_QUORUM
            request_timeout=_REQUEST_SECONDS,
            row_factory=query.dict_factory,
        )
        self._statement = query.SimpleStatement
        hosts, port = settings.cassandra_hosts, settings.cassandra_port
        tls = cassandra_tls(settings)
        try:
            nodes, others = nodes_of(hosts, port, settings.cassandra_tls_name, tls=tls is not None)
        except Exception as error:  # the driver's, an extra: no host name is known
            raise VerifyError(f"cannot reach Cassandra: {error}; check cassandra_hosts") from error
        self._cluster = cluster.Cluster(
            nodes,
            port=port,
            endpoint_factory=others,
            execution_profiles={cluster.EXEC_PROFILE_DEFAULT: profile},
            auth_provider=auth.PlainTextAuthProvider(
                settings.cassandra_username, settings.cassandra_password
            )
            if settings.cassandra_username
            else None,
            ssl_context=tls,
            protocol_version=5,
        )
        try:
            self._session = self._cluster.connect()
        except Exception as error:  # the driver has no root of its errors
            self._cluster.shutdown()
            raise VerifyError(f"cannot reach Cassandra: {error}; check hosts and rights") from error

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def frames(self, themap: Map, layer: Layer) -> Iterator[pl.DataFrame]:
        """Yield the rows of a layer; VerifyError if one is in a wrong slot or bucket."""
        table = f'"{self._settings.cassandra_keyspace}"."{themap.name}_{layer.name}"'
        rows: list[dict[str, Any]] = []
        for row in self._select(table):
            key = tuple(row[name] for name in layer.key_columns)
            start = row["window_start"]
            got = (row.pop("slot"), row.pop("bucket"))
            want = (key_hash(layer.key, key) % layer.slots, bucket_of(layer, start))
            if got != want:
                raise VerifyError(
                    f"cannot read {table}: a row lies where no query finds it; got slot and bucket"
                    f" {got} for key {key}, window {start}; want {want}"
                )
            rows.append(row)
            if len(rows) == _ROWS:
                yield _frame(layer, rows)
                rows = []
        if rows:
            yield _frame(layer, rows)

    def _select(self, table: str) -> Iterator[dict[str, Any]]:
        try:
            yield from self._session.execute(
                self._statement(f"SELECT * FROM {table}", fetch_size=_PAGE_ROWS)
            )
        except Exception as error:  # the driver has no root of its errors
            raise VerifyError(f"cannot read {table}: {error}; check Cassandra") from error


class FolderRows(contextlib.AbstractContextManager["FolderRows"]):
    """The rows in an embedded archive's folder; use it in a ``with`` statement.

    Raises:
        VerifyError: the folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(create_if_missing=False)
        # A damaged write is an error, not the end of the log.
        options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
        try:
            self._db = rocksdict.Rdict(
                str(folder), options, access_type=rocksdict.AccessType.read_only()
            )
        except Exception as error:  # RocksDB's errors are bare
            raise VerifyError(
                f"cannot open archive in {folder}: {error}; give the worker's --archive-folder"
            ) from error

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def frames(self, themap: Map, layer: Layer) -> Iterator[pl.DataFrame]:
        """Yield the rows of a layer; VerifyError if one is in a wrong bucket or out of order."""
        described = self._db.get(b"\x00layer\x00" + layer.name.encode())
        whose = json.loads(_content(layer, self._db.get(b"\x00archive") or b"{}"))
        if described is None or whose.get("map", themap.name) != themap.name:
            raise VerifyError(
                f"cannot read layer {layer.name} in {self._folder}: it is of another map; want"
                f" that of {themap.name}; give the worker's --archive-folder"
            )
        frames: list[pl.DataFrame] = []
        last: tuple[bytes, bytes] = b"", b""
        for piece, block in self._scan(layer.name.encode() + b"\x00"):
            frame = pl.read_ipc_stream(io.BytesIO(_content(layer, block)))
            last = self._check_order(layer, piece, frame, last)
            frames.append(frame)
            if sum(one.height for one in frames) >= _ROWS:
                yield pl.concat(frames, how="diagonal")
                frames = []
        if frames:
            yield pl.concat(frames, how="diagonal")

    def _check_order(
        self, layer: Layer, piece: bytes, frame: pl.DataFrame, last: tuple[bytes, bytes]
    ) -> tuple[bytes, bytes]:
        """Refuse rows that no query finds; return run and key of the last row of a piece.

        ``piece`` is the piece's RocksDB key behind the layer's name.
        """
        bucket, run = int.from_bytes(piece[:8], "big") - _BIAS, piece[:16]
        columns = [frame[name].to_list() for name in [*layer.key_columns, "window_start"]]
        for number, (*key, start) in enumerate(zip(*columns, strict=True)):
            at = (run, b"".join(map(_sorted_bytes, key)))
            found = bucket == bucket_of(layer, start) and at >= last
            if not found or (number == 0 and piece[16:-4] != at[1]):
                raise VerifyError(
                    f"cannot read layer {layer.name} in {self._folder}: a row lies where no"
                    f" query finds it; got bucket {bucket} for key {tuple(key)}, window {start};"
                    f" want {bucket_of(layer, start)}, in order of keys"
                )
            last = at
        return last

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = self._db.iter()
        try:
            rows.seek(prefix)
            while rows.valid() and rows.key().startswith(prefix):
                yield rows.key()[len(prefix) :], rows.value()
                rows.next()
            rows.status()
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise VerifyError(
                f"cannot read archive in {self._folder}: {error}; its files are damaged; restore "
                "them from a copy"
            ) from error
        finally:
            del rows  # a live iterator would keep the folder open


def open_archive(settings: Settings) -> CassandraRows | FolderRows:
    """Return the archive of these settings, open; VerifyError if it cannot be opened."""
    if settings.archive == "cassandra":
        return CassandraRows(settings)
    return FolderRows(settings.archive_folder)


def _content(layer: Layer, stored: bytes) -> bytes:
    """Return the content of a sealed value; its checksum must be right, if it has one."""
    if stored[:1] == _SEALED:
        checksum, stored = stored[1:9], stored[9:]
        if xxh3_64_digest(stored, _SEALED[0]) != checksum:
            raise VerifyError(
                f"cannot read layer {layer.name}: a piece of its rows is damaged; restore the "
                "archive's folder from a copy"
            )
    return stored


def _frame(layer: Layer, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return rows of Cassandra as a frame: numbers beyond 64 bits are text, for DuckDB."""
    sums = {acc.column for acc in layer.accumulators if acc.type == "int" and acc.kind in _WIDE}
    columns: dict[str, pl.Series] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in sums:
            values = [None if value is None else str(value) for value in values]
        columns[name] = pl.Series(name, values, pl.String if name in sums else None)
    return pl.DataFrame(columns)


def _sorted_bytes(value: str | float) -> bytes:
    """Return a key field as the RocksDB keys of pieces have it."""
    if isinstance(value, bool):
        return bytes((value,))
    if isinstance(value, str):
        return value.encode().replace(b"\x00", b"\x00\xff") + b"\x00\x00"
    return (int(value) + _BIAS).to_bytes(8, "big")
