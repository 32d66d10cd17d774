"""Archived rows, read without the worker's code: by plain CQL, or from the embedded one's folder.

An embedded archive is opened for reading beside the worker that writes to it; both formats are
described in docs/formats/archive.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import polars as pl
import rocksdict
from xxhash import xxh3_64_digest

from app.settings import Settings
from app.verify.partition import Key, Place
from app.verify.rows import key_hash
from app.verify.topics import VerifyError
from app.verify.windows import window_nominal_ms
from tables.layer import Layer, Map

_BUCKET_WINDOWS, _BUCKET_MS_MIN = 32, 10_000
_BIAS = 2**63
_SEALED = b"\x03"
_PLACES = {"window_start", "source_partition"}
_PAGE_ROWS = 2_000
_REQUEST_SECONDS = 60.0

Stored = dict[str, Any]
"""One row: its columns by name, but for key, window and source partition."""

Archived = dict[tuple[Place, int], Stored]
"""A layer's rows by place and source partition."""


def bucket_of(layer: Layer, start_ms: int) -> int:
    """Return the bucket that a window belongs to."""
    return start_ms // max(_BUCKET_MS_MIN, _BUCKET_WINDOWS * window_nominal_ms(layer))


class CassandraRows:
    """The rows in Cassandra; use it in a ``with`` statement. Every call waits for an answer.

    Raises:
        VerifyError: Cassandra does not answer, or the driver is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        try:
            from cassandra import auth, cluster, policies, query  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise VerifyError(
                f"cannot read archive cassandra: {error}; install treasure-map[cassandra]"
            ) from error
        profile = cluster.ExecutionProfile(
            load_balancing_policy=policies.DCAwareRoundRobinPolicy(settings.cassandra_local_dc),
            consistency_level=6,  # LOCAL_QUORUM
            request_timeout=_REQUEST_SECONDS,
            row_factory=query.dict_factory,
        )
        self._statement = query.SimpleStatement
        self._cluster = cluster.Cluster(
            list(settings.cassandra_hosts),
            port=settings.cassandra_port,
            execution_profiles={cluster.EXEC_PROFILE_DEFAULT: profile},
            auth_provider=auth.PlainTextAuthProvider(
                settings.cassandra_username, settings.cassandra_password
            )
            if settings.cassandra_username
            else None,
            ssl_context=_tls(settings),
            protocol_version=5,
        )
        try:
            self._session = self._cluster.connect()
        except Exception as error:  # the driver has no root of its errors
            self._cluster.shutdown()
            raise VerifyError(f"cannot reach Cassandra: {error}; check hosts and rights") from error

    def __enter__(self) -> Self:
        """Return the rows."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self._cluster.shutdown()

    def read(self, themap: Map, layer: Layer) -> Archived:
        """Return all rows of a layer.

        Raises:
            VerifyError: Cassandra does not answer, or a row is not where its key belongs.
        """
        table = f'"{self._settings.cassandra_keyspace}"."{themap.name}_{layer.name}"'
        text = f"SELECT * FROM {table}"  # noqa: S608 - names of a checked map
        rows: Archived = {}
        for row in self._select(table, text):
            key: Key = tuple(row.pop(f"key_{field.name}") for field in layer.key)
            start, partition = row.pop("window_start"), row.pop("source_partition")
            got = (row.pop("slot"), row.pop("bucket"))
            want = (key_hash(layer, key) % layer.slots, bucket_of(layer, start))
            if got != want:
                raise VerifyError(
                    f"cannot read {table}: a row lies where no query finds it; got slot and bucket"
                    f" {got} for key {key}, window {start}; want {want}"
                )
            rows[(key, start), partition] = row
        return rows

    def _select(self, table: str, text: str) -> Iterator[Stored]:
        try:
            yield from self._session.execute(self._statement(text, fetch_size=_PAGE_ROWS))
        except Exception as error:  # the driver has no root of its errors
            raise VerifyError(f"cannot read {table}: {error}; check Cassandra") from error


class FolderRows:
    """The rows in an embedded archive's folder; use it in a ``with`` statement.

    Raises:
        VerifyError: the folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(create_if_missing=False)
        try:
            self._db = rocksdict.Rdict(
                str(folder), options, access_type=rocksdict.AccessType.read_only()
            )
        except Exception as error:  # RocksDB's errors are bare
            raise VerifyError(
                f"cannot open archive in {folder}: {error}; give the worker's --archive-folder"
            ) from error

    def __enter__(self) -> Self:
        """Return the rows."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the folder."""
        self._db.close()

    def read(self, themap: Map, layer: Layer) -> Archived:
        """Return all rows of a layer.

        Raises:
            VerifyError: the folder holds no such layer, or a row is not where its key belongs.
        """
        described = self._db.get(b"\x00layer\x00" + layer.name.encode())
        whose = json.loads(self._db.get(b"\x00archive") or b"{}")
        if described is None or whose.get("map", themap.name) != themap.name:
            raise VerifyError(
                f"cannot read layer {layer.name} in {self._folder}: it is of another map; want"
                f" that of {themap.name}; give the worker's --archive-folder"
            )
        description = json.loads(described)
        columns = description["column order"].split(", ")
        rows: Archived = {}
        written: dict[tuple[Place, int], int] = {}
        last: tuple[bytes, bytes] = b"", b""
        for place, block in self._scan(layer.name.encode() + b"\x00"):
            bucket, run = int.from_bytes(place[:8], "big") - _BIAS, place[:16]
            for number, row in enumerate(_rows_of(layer, block).to_dicts()):
                key: Key = tuple(row.pop(f"key_{field.name}") for field in layer.key)
                start, partition = row.pop("window_start"), row.pop("source_partition")
                at = (run, b"".join(map(_sorted_bytes, key)))
                found = bucket == bucket_of(layer, start) and at >= last
                if not found or (number == 0 and place[16:-4] != at[1]):
                    raise VerifyError(
                        f"cannot read layer {layer.name} in {self._folder}: a row lies where no"
                        f" query finds it; got bucket {bucket} for key {key}, window {start}; want"
                        f" {bucket_of(layer, start)}, in order of keys"
                    )
                last = at
                write_time, cell = row.pop("write_time"), ((key, start), partition)
                if write_time > written.get(cell, write_time - 1):
                    written[cell] = write_time
                    rows[cell] = {
                        column: row.get(column, None if column[:4] in ("min_", "max_") else 0)
                        for column in columns
                        if column not in _PLACES and not column.startswith("key_")
                    }
        return rows

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = self._db.iter()
        try:
            rows.seek(prefix)
            while rows.valid() and rows.key().startswith(prefix):
                yield rows.key()[len(prefix) :], rows.value()
                rows.next()
        finally:
            del rows  # a live iterator would keep the folder open


def open_archive(
    settings: Settings,
) -> contextlib.AbstractContextManager[CassandraRows | FolderRows]:
    """Return the archive of these settings, open.

    Raises:
        VerifyError: it cannot be opened.
    """
    if settings.archive == "cassandra":
        return CassandraRows(settings)
    return FolderRows(settings.archive_folder)


def _rows_of(layer: Layer, stored: bytes) -> pl.DataFrame:
    """Return the rows of a piece, whose checksum must be right; older ones have none."""
    if stored[:1] == _SEALED:
        checksum, stored = stored[1:9], stored[9:]
        if xxh3_64_digest(stored, _SEALED[0]) != checksum:
            raise VerifyError(
                f"cannot read layer {layer.name}: a piece of its rows is damaged; restore the "
                "archive's folder from a copy"
            )
    return pl.read_ipc_stream(io.BytesIO(stored))


def _sorted_bytes(value: str | float) -> bytes:
    """Return a key field as the archive's places have it."""
    if isinstance(value, bool):
        return bytes((value,))
    if isinstance(value, str):
        return value.encode().replace(b"\x00", b"\x00\xff") + b"\x00\x00"
    return (int(value) + _BIAS).to_bytes(8, "big")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.cassandra_uses_tls:
        return None
    context = ssl.create_default_context(cafile=settings.cassandra_ca_file or None)
    if settings.cassandra_cert_file:
        context.load_cert_chain(settings.cassandra_cert_file, settings.cassandra_key_file)
    return context
