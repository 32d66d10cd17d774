"""Answers of workers over HTTP, in a table; they come as Arrow, a page at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import polars as pl

from app.verify import sql
from app.verify.compare import DifferenceLog
from app.verify.database import COLUMN_TYPES, Database
from app.verify.same import answers_table, measure_columns
from tables.model.layer import Layer


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of ``urls`` for one layer; their table is made anew.

    ``found`` gets a difference for an answer with columns other than expected.
    """

    database: Database
    layer: Layer
    urls: Sequence[str]
    found: DifferenceLog

    def __post_init__(self) -> None:
        layer = self.layer
        keys = zip(sql.keys_of(layer), layer.key, strict=True)
        measures = measure_columns(layer)
        types = ["url INTEGER", *(f"{name} {COLUMN_TYPES[field.type][1]}" for name, field in keys)]
        types += ["start BIGINT", "stop BIGINT", "version BIGINT"]
        types += [f"{name} {'DOUBLE' if floats else 'HUGEINT'}" for name, floats in measures]
        self.database.run(f"CREATE OR REPLACE TABLE {answers_table(layer)} ({', '.join(types)})")

    def load(self, url: int, frame: pl.DataFrame) -> None:
        """Add rows of a worker's answer; ``url`` is the number of its URL."""
        if not frame.height:
            return
        layer = self.layer
        names = [*(field.name for field in layer.key), "window_start", "window_end", "version"]
        measures = [measure.name for measure in layer.measures]
        wrong = set(frame.columns) ^ {*names, *measures} or {
            name
            for name, (_, floats) in zip(measures, measure_columns(layer), strict=True)
            if frame.schema[name].is_float() != floats and frame.schema[name] != pl.Null
        }
        if wrong:
            where = f"{layer.name} columns {', '.join(sorted(wrong))} at {self.urls[url]}"
            self.found.add("http", where, sorted(names + measures), dict(frame.schema))
            return
        columns = [pl.repeat(url, frame.height, dtype=pl.Int32, eager=True).alias("url")]
        columns += [_number(frame[name]) for name in names + measures]
        self.database.load(
            f"INSERT INTO {answers_table(layer)} FROM incoming",
            pl.DataFrame([column.alias(f"c{i}") for i, column in enumerate(columns)]),
        )


def _number(column: pl.Series) -> pl.Series:
    """Return a column with times, which are timestamps in answers, as epoch milliseconds."""
    return column.dt.epoch("ms") if column.dtype == pl.Datetime else column
