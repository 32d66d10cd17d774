"""Verify without servers: logs in memory into its tables, and into the plain rules beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from app.verify import sql
from app.verify.answers import Answers
from app.verify.archive import load_archived
from app.verify.arrow import ArrowRows
from app.verify.cells import Cell, measure_of
from app.verify.compare import DifferenceLog, read_sums
from app.verify.database import Database
from app.verify.events import Events
from app.verify.layers import Cells
from app.verify.letters import Letters
from app.verify.records import Record, RecordReader
from app.verify.report import Difference
from app.verify.whole import EVER_SINCE, Whole
from app.verify.windows import window_end
from tables.model.layer import Layer, Map
from tests.support.common import MemoryLog
from tests.support.plain.letters import Letters as PlainLetters
from tests.support.plain.partition import Partition as PlainPartition
from tests.support.plain.partition import Place
from tests.support.plain.rows import Rows, rows_of

Archived = dict[tuple[Place, int], dict[str, Any]]


def records_of(log: MemoryLog, topic: str, part: int) -> list[Record]:
    """Return the records of a log in memory."""
    return [
        Record(entry.offset, entry.append_time_ms, entry.value, tuple(entry.headers))
        for entry in log.records.get((topic, part), [])
    ]


@dataclasses.dataclass
class Recomputed:
    """The contents of verify's tables of a log."""

    database: Database
    themap: Map
    events: dict[str, Events]
    letters: Letters
    cells: Cells

    @classmethod
    def of(
        cls,
        database: Database,
        log: MemoryLog,
        themap: Map,
        *,
        early: bool = False,
        whole: Whole = EVER_SINCE,
    ) -> Recomputed:
        """Read the whole log."""
        letters = Letters(database)
        for kind in ("dead", "late"):
            for part in range(themap.side_partitions):
                letters.take(records_of(log, themap.side_topic(kind), part))
        letters.load()
        events = {
            source.name: Events(database, source, themap.base_layers(source.name), letters)
            for source in themap.sources
        }
        found = cls(database, themap, events, letters, Cells(database, themap, events, early=early))
        for one in events.values():
            one.know(whole)
            for part in range(one.source.partitions):
                one.start(part, 0)
                one.take(part, records_of(log, one.source.topic, part))
        found.settle()
        return found

    def settle(self) -> None:
        """Make the results of all taken records."""
        for one in self.events.values():
            one.load()
            one.try_suspects()
            one.settle()
        self.cells.make()

    def ledgers(self) -> list[dict[str, int]]:
        """Return the counts of the partitions of all sources that are not zero."""
        return [
            {name: count for name, count in part.ledger.items() if count}
            for one in self.events.values()
            for part in one.partitions
        ]

    def differences(self) -> list[Difference]:
        """Return the letters that do not agree."""
        found = [one for events in self.events.values() for one in events.differences]
        for events in self.events.values():
            found += events.letters_differing()
        return found + list(self.cells.late_letters())

    def rows(self, layer: Layer) -> dict[tuple[Place, int], tuple[bool, Cell]]:
        """Return the parts of a layer's cells: whether their windows are closed, and the parts."""
        sums = sql.sums_of(layer)
        columns = [*sql.keys_of(layer), "start", "part", "closed", "stop", "events"]
        columns += [column for one in sums for column in one.columns]
        found = {}
        query = f"SELECT {', '.join(columns)} FROM {Cells.table(layer)}"  # noqa: S608 - of a map
        for row in self.database.rows(query):
            keys = len(layer.key)
            start, part, closed, stop, events = row[keys : keys + 5]
            assert stop == window_end(layer, start)
            cell, rest = Cell({}, events), row[keys + 5 :]
            for one in sums:
                cell.fields[one.name] = read_sums(one, rest[:7])
                rest = rest[7:]
            found[(row[:keys], start), part] = closed, cell
        return found

    def load_archived(self, layer: Layer, archived: Archived) -> None:
        """Have other rows of a layer in the archive's table."""

        def frames() -> Iterator[pl.DataFrame]:
            for ((key, start), part), stored in archived.items():
                keys = dict(zip(layer.key_columns, key, strict=True))
                row = {"source_partition": part, **keys, "window_start": start, **stored}
                wide = {name: pl.Int128 for name in stored if name[:2] in ("su", "sq")}
                yield pl.DataFrame([row], schema_overrides=wide)

        load_archived(self.database, layer, frames())

    def load_answers(
        self,
        layer: Layer,
        answers: Mapping[str, Mapping[Place, Mapping[str, Any]]],
        found: DifferenceLog,
    ) -> None:
        """Have answers in their table; each has the columns of an answer but for the key."""
        table = Answers(self.database, layer, list(answers), found)
        for number, rows in enumerate(answers.values()):
            for (key, start), columns in rows.items():
                names = [field.name for field in layer.key]
                row = dict(zip(names, key, strict=True)) | {"window_start": start} | dict(columns)
                types: dict[str, pl.DataType] = {
                    name: pl.Decimal(38, 0)
                    for name, value in row.items()
                    if type(value) is int and not -(2**63) <= value < 2**63
                }
                types["window_start"] = types["window_end"] = pl.Datetime("ms", "UTC")
                table.load(number, pl.DataFrame([row], schema_overrides=types))


def plain_partitions(log: MemoryLog, themap: Map) -> list[PlainPartition]:
    """Return the partitions of the one source by plain rules."""
    (source,) = themap.sources
    letters = PlainLetters()
    for kind in ("dead", "late"):
        for part in range(themap.side_partitions):
            for record in records_of(log, themap.side_topic(kind), part):
                letters.take(record)
    reader = RecordReader(source, ArrowRows(source))
    partitions = []
    for part in range(source.partitions):
        one = PlainPartition(
            source,
            themap.base_layers(source.name),
            part,
            letters.of(source.topic, part),
            reader,
        )
        one.start(0)
        for record in records_of(log, source.topic, part):
            one.take(record)
        partitions.append(one)
    return partitions


def plain_rows(log: MemoryLog, themap: Map, *, early: bool = False) -> dict[str, Rows]:
    """Return the rows of every layer by plain rules."""
    (source,) = themap.sources
    return rows_of(themap, {source.name: plain_partitions(log, themap)}, early=early)


def measures_of(layer: Layer, cell: Cell) -> list[Any]:
    """Return a cell's measures, exact if its sums are."""
    return [measure_of(cell, measure)[0] for measure in layer.measures]
