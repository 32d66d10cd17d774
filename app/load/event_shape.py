"""The shape of a source's events: flat columns and values as they are made, nested as written.

The column of a declared field has the field's name. Time, type and id have the name of the field
that is declared for them, else one that no field can have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app.load.plan import GenerateError
from tables.model.layer import Source
from tables.model.path import path_text


class EventShape:
    """Names the columns of a source's events, and nests them.

    Attributes:
        time: the column of event time; ``type`` and ``id`` likewise, the last None without ids.
    """

    def __init__(self, source: Source) -> None:
        declared = {field.at: field.name for field in source.fields}
        self._names = {path: declared.get(path, f"${path_text(path)}") for path in source.paths}
        self.time, self.type = self._names[source.time_at], self._names[source.type_at]
        self.id = None if source.id_at is None else self._names[source.id_at]
        indexed = [path for path in source.paths if any(isinstance(step, int) for step in path)]
        if indexed:
            raise GenerateError(
                f"cannot generate events for {source.name}: {path_text(indexed[0])} lies in an"
                " array; want values in objects alone; write events of your own with `app.kafka`"
            )

    def frame(self, events: pl.DataFrame) -> pl.DataFrame:
        """Return the events as they are written: values at their paths, in structs."""
        return events.select(
            self._column(name, below) for name, below in self._tree(events.columns).items()
        )

    def document(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return one event as it is written; a value that it lacks is absent."""
        return _document(self._tree(event), event)

    def _tree(self, present: Any) -> dict[str, Any]:
        """Return the names of objects, down to the columns of those values that are present."""
        tree: dict[str, Any] = {}
        for path, name in self._names.items():
            if name not in present:
                continue
            inner = tree
            *outer, last = map(str, path)
            for step in outer:
                inner = inner.setdefault(step, {})
            inner[last] = name
        return tree

    def _column(self, name: str, below: Any) -> pl.Expr:
        if isinstance(below, str):
            return pl.col(below).alias(name)
        return pl.struct(self._column(*one) for one in below.items()).alias(name)


def _document(tree: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: event[below] if isinstance(below, str) else _document(below, event)
        for name, below in tree.items()
    }
