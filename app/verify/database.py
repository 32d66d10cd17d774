"""The engine that recomputes: DuckDB over files in a temporary folder, which goes with it.

It spills rows beyond its memory into the folder too. Rows come in as frames, which DuckDB
reads as Arrow. Nothing is computed in frames, but lines that may not be JSON are found there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from app.verify.errors import VerifyError
from treasure_map.extras import install

if TYPE_CHECKING:
    import duckdb

MEMORY_BYTES_MAX = 1 << 30
"""Memory of the engine alone: its input needs as much again, with Python."""

THREADS_MAX = 4

COLUMN_TYPES: dict[str, tuple[pl.DataType, str]] = {
    "string": (pl.String(), "VARCHAR"), "int": (pl.Int64(), "BIGINT"),
    "bool": (pl.Boolean(), "BOOLEAN"), "float": (pl.Float64(), "DOUBLE"),
}  # fmt: skip
"""The types of a column in frames and in tables, by the declared type of its field."""

_FETCH_ROWS = 10_000
_INSERT_ROWS = 50_000


class Database(contextlib.AbstractContextManager["Database"]):
    """Tables in a temporary folder; use it in a ``with`` statement, in one thread at a time.

    Attributes:
        folder: holds all its files.

    Raises:
        VerifyError: DuckDB is not installed; a statement failed, most often as the disk is full.
    """

    def __init__(self) -> None:
        try:
            import duckdb  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise VerifyError(f"cannot verify: {error}; {install('verify')}") from error
        self._error = duckdb.Error
        self.folder = Path(tempfile.mkdtemp(prefix="treasure-map-verify-"))
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(
            self.folder / "rows.db",
            config={
                "memory_limit": f"{MEMORY_BYTES_MAX}B",
                "temp_directory": str(self.folder / "spill"),
                "threads": min(THREADS_MAX, os.cpu_count() or 1),
                "autoinstall_known_extensions": False,
            },
        )
        # Its files go with the folder, so nothing more is written into them at the end.
        self._connection.execute("PRAGMA disable_checkpoint_on_shutdown")

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        shutil.rmtree(self.folder)

    def run(self, statement: str) -> None:
        """Run a statement."""
        with self._failures():
            self._connection.execute(statement)

    def load(self, statement: str, frame: pl.DataFrame) -> None:
        """Run a statement that reads the rows of a frame from ``incoming``, once."""
        # Columns of nothing but nulls may have no type, which DuckDB does not accept.
        typed = frame.with_columns(pl.col(pl.Null).cast(pl.String))
        with self._failures():
            self._connection.register("incoming", typed.__arrow_c_stream__())
            self._connection.execute(statement)
            self._connection.unregister("incoming")

    def insert(self, table: str, rows: Iterable[tuple[Any, ...]]) -> int:
        """Insert rows into a table, some at a time; return how many there were."""
        left, count = iter(rows), 0
        while some := list(itertools.islice(left, _INSERT_ROWS)):
            frame = pl.DataFrame(some, orient="row", infer_schema_length=None)
            self.load(f"INSERT INTO {table} FROM incoming", frame)
            count += len(some)
        return count

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield a query's rows as they are fetched; other statements may run meanwhile."""
        with self._failures(), self._connection.cursor() as cursor:
            cursor.execute(query)
            while some := cursor.fetchmany(_FETCH_ROWS):
                yield from some

    def all(self, query: str) -> list[tuple[Any, ...]]:
        """Return all of a query's rows, which are few."""
        with self._failures():
            return self._connection.execute(query).fetchall()

    def number(self, query: str) -> int:
        """Return the one number of a query; 0 for null."""
        return int(self.all(query)[0][0] or 0)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise VerifyError(
                f"cannot recompute: {error}; got a failure in {self.folder}; want disk for the"
                " rows; name a folder that has it in TMPDIR"
            ) from error


def text(value: str) -> str:
    """Return a text as SQL has it."""
    return "'" + value.replace("'", "''") + "'"
