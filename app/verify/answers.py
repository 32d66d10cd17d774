"""Answers of workers over HTTP, in a table; they come as Arrow, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from app.verify import sql
from app.verify.compare import DifferenceLog
from app.verify.database import COLUMN_TYPES, Database
from app.verify.same import answers_table, measure_columns
from tables.model.layer import Layer


class Answers:
    """The answers of ``urls`` for one layer; their table is made anew.

    ``found`` is told of answers that have other columns than they must.
    """

    def __init__(
        self, database: Database, layer: Layer, urls: Sequence[str], found: DifferenceLog
    ) -> None:
        self._database = database
        self._layer = layer
        self._urls = urls
        self._found = found
        keys = zip(sql.keys_of(layer), layer.key, strict=True)
        measures = measure_columns(layer)
        types = ["url INTEGER", *(f"{name} {COLUMN_TYPES[field.type][1]}" for name, field in keys)]
        types += ["start BIGINT", "stop BIGINT", "version BIGINT"]
        types += [f"{name} {'DOUBLE' if floats else 'HUGEINT'}" for name, floats in measures]
        database.run(f"CREATE OR REPLACE TABLE {answers_table(layer)} ({', '.join(types)})")

    def load(self, url: int, frame: pl.DataFrame) -> None:
        """Take some rows that a worker answers with."""
        if not frame.height:
            return
        layer = self._layer
        names = [*(field.name for field in layer.key), "window_start", "window_end", "version"]
        measures = [measure.name for measure in layer.measures]
        wrong = set(frame.columns) ^ {*names, *measures} or {
            name
            for name, (_, floats) in zip(measures, measure_columns(layer), strict=True)
            if frame.schema[name].is_float() != floats and frame.schema[name] != pl.Null
        }
        if wrong:
            where = f"{layer.name} columns {', '.join(sorted(wrong))} at {self._urls[url]}"
            self._found.add("http", where, sorted(names + measures), dict(frame.schema))
            return
        columns = [pl.repeat(url, frame.height, dtype=pl.Int32, eager=True).alias("url")]
        columns += [frame[name] for name in names + measures]
        self._database.load(
            f"INSERT INTO {answers_table(layer)} FROM incoming",
            pl.DataFrame([column.alias(f"c{i}") for i, column in enumerate(columns)]),
        )
