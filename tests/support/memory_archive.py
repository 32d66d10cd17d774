"""A kind of archive that only tests have: rows in the memory of one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from app.config.archive_kind import ArchiveKind, Fault, Schema, Wiping
from app.config.settings import Settings
from app.host.reloads import Reloads
from tables.archive.identity import History, Whose, check_map, draw_id
from tables.archive.layout import check_key, missing_accumulators, not_expired, too_many_rows
from tables.archive.protocol import Archive, CellRange
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveError
from tables.model.layer import Layer, Map
from tables.state.cell import archive_schema

Identity = tuple[Any, ...]


@dataclasses.dataclass
class Contents:
    """Rows that outlive a closed archive, by layer and identity, with write times."""

    whose: Whose | None = None
    described: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    rows: dict[str, dict[Identity, tuple[int, dict[str, Any]]]] = dataclasses.field(
        default_factory=dict
    )
    histories: dict[tuple[str, int], History] = dataclasses.field(default_factory=dict)

    def check(self, themap: Map) -> None:
        """Check that it is the map's, and so are its layers."""
        if self.whose is not None:
            check_map("memory", self.whose, themap.name)
        for layer in themap.layers:
            known = self.described.get(layer.name)
            if known is not None:
                missing_accumulators(f"rows of layer {layer.name}", known, _described(layer))


class MemoryArchive:
    """An archive on contents that others may open after it."""

    def __init__(self, contents: Contents, clock_ms: Callable[[], int]) -> None:
        self._contents = contents
        self._clock_ms = clock_ms
        self._map_name = ""
        self.is_open = False

    @property
    def id(self) -> str:
        """The id that it drew when it was opened first; empty while it is closed."""
        whose = self._contents.whose
        return whose.id if self.is_open and whose is not None else ""

    @property
    def place(self) -> str:
        """The place of the archive."""
        return f"map {self._map_name} in memory"

    async def open(self, themap: Map) -> None:
        """Check that it is the map's, and so are its layers."""
        contents = self._contents
        self._map_name = themap.name
        contents.check(themap)
        for layer in themap.layers:
            known = contents.described.get(layer.name, {})
            contents.described[layer.name] = known | _described(layer)
        contents.whose = contents.whose or Whose(draw_id(), themap.name)
        self.is_open = True

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Keep of each row the value of the largest write time."""
        self._check("write")
        kept = self._contents.rows.setdefault(layer.name, {})
        rows = rows.with_columns(write_times_us.alias("at"))
        for row in rows.filter(not_expired(layer, self._clock_ms())).iter_rows(named=True):
            at = row.pop("at")
            identity = tuple(row[name] for name in _identity(layer))
            if identity not in kept or kept[identity][0] <= at:
                kept[identity] = (at, row)

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Return the rows in range."""
        check_key(layer, cells)
        self._check("read")
        (cost or QueryCost()).archive_partitions += 1
        found = [
            row
            for _, row in self._contents.rows.get(layer.name, {}).values()
            if cells.from_ms <= row["window_start"] < cells.to_ms
            and all(row[f"key_{name}"] == value for name, value in cells.key.items())
        ]
        if len(found) > cells.rows_max:
            raise too_many_rows(layer, cells)
        schema = archive_schema(layer)
        columns = {name: [row.get(name) for row in found] for name in schema}
        return pl.DataFrame(columns, schema=schema).filter(not_expired(layer, self._clock_ms()))

    async def check(self) -> None:
        """Return if it is open."""
        self._check("reach")

    async def history(self, topic: str, partition: int) -> History | None:
        """Return which journal the rows of a partition come from."""
        self._check("read")
        return self._contents.histories.get((topic, partition))

    async def remember(self, topic: str, partition: int, history: History) -> History:
        """Return which journal they come from, from now on ``history`` if none was known."""
        self._check("write")
        return self._contents.histories.setdefault((topic, partition), history)

    async def close(self) -> None:
        """Close it."""
        self.is_open = False

    def _check(self, verb: str) -> None:
        if not self.is_open:
            raise ArchiveError(f"cannot {verb} archive: it is closed")


class MemoryKind(ArchiveKind):
    """The kind ``memory``; all its archives have the same contents."""

    name = "memory"

    def __init__(
        self,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        serves_many: bool = False,
        faults: tuple[Fault, ...] = (),
    ) -> None:
        self._clock_ms = clock_ms
        self._faults = faults
        self.serves_many = serves_many
        self.contents = Contents()

    def exposed(self, settings: Settings) -> Iterator[Fault]:
        """Yield the faults that it was made with."""
        del settings
        yield from self._faults

    def folders(self, settings: Settings) -> list[Path]:
        """Return a folder that exists, as if it filled it."""
        return [settings.state_folder]

    def place(self, settings: Settings) -> str:
        """Return the place of the archive."""
        del settings
        return "the memory of a test"

    def make(self, settings: Settings, reloads: Reloads | None = None) -> Archive:
        """Return an archive on its contents."""
        del settings, reloads
        return MemoryArchive(self.contents, self._clock_ms)

    def schema(self, settings: Settings, themap: Map) -> Schema:
        """Return the schema that opening it makes."""
        words = f"memory of {len(themap.layers)} layers"
        return Schema(self.make(settings), words, lambda: self.contents.check(themap))

    def wiping(self, settings: Settings, map_name: str) -> Wiping:
        """Return its contents."""
        del settings

        def wipe() -> None:
            self.contents = Contents()

        return Wiping(f"the rows of map {map_name} in memory", lambda: None, wipe)

    def grants(self, settings: Settings, themap: Map, role: str, user: str) -> Iterator[str]:
        """Yield a command that nobody runs."""
        del settings
        yield f"let {user} remember {themap.name} as {role}"


def _identity(layer: Layer) -> list[str]:
    return [*layer.key_columns, "window_start", "source_partition"]


def _described(layer: Layer) -> dict[str, str]:
    columns = {f"column {name}": str(kind) for name, kind in archive_schema(layer).items()}
    return {"window": str(layer.window), **columns}
