"""Fold: an event batch into partial cells, per layer and source partition. Pure.

Lateness is decided per event in log order, never per chunk: the floor before an event follows
from the greatest time before it in its partition (docs/formats/journal.md rule 1).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import polars as pl

from agents.decode.event_batch import (
    DETAIL_CHARS_MAX,
    ID_COLUMN,
    SMALL_VALUES_MAX,
    EventBatch,
    Rows,
)
from agents.fold.aggregate import Aggregation
from agents.fold.classify import Classifier
from agents.fold.content import Before, Content
from agents.fold.dedupe import Deduper
from tables.model.layer import Condition, Layer
from tables.model.ledger import LayerColumn
from tables.model.window import NEVER_MS, SECONDS_IN_MS_MAX
from tables.state.id_table import IDS
from tables.state.input_plan import InputPlan

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
KEY_BYTES_MAX = 1_024
"""Bytes of a key text. Cassandra takes 64 KiB in a row's key; sorting and caching need far less."""

_ROW = ".row"


class Folder:
    """Folds the event batches of one source into its base layers."""

    def __init__(self, plan: InputPlan) -> None:
        self._source = plan.source
        self._layers = plan.layers
        self.classifier = Classifier(plan.layers)
        self._filters = [_filter(layer.where) for layer in plan.layers]
        self._aggregations = [Aggregation(layer) for layer in plan.layers]
        has_ids = plan.source is not None and plan.source.id_field is not None
        self._deduper = Deduper(plan.layers) if has_ids and plan.layers else None

    def fold(self, batch: EventBatch, before: Mapping[int, Before]) -> list[Content]:
        """Return one content per run of ``batch``; ``before`` is by partition."""
        names = _names(batch.frame["type"])
        layers_of = {name: self.classifier.layers_of(name) for name in names}
        self._refuse_keys(batch, layers_of)
        newest = [_max(batch.frame["time"][first:last]) for first, last in batch.bounds]
        contents = [
            Content(
                start=run.first_offset,
                stop=run.next_offset,
                stream_time_ms=max(before[run.partition].stream_time_ms, time),
                ledger=delta.counts,
                blocks={},
            )
            for run, time, delta in zip(batch.runs, newest, batch.ledgers, strict=True)
        ]
        late = [_may_be_late(layer, batch, before) for layer in self._layers]
        rows = batch.rows
        if rows.frame.height and (self._deduper is not None or any(late)):
            frame = rows.frame.with_columns(time_before=_times_before(batch))
            rows = Rows(frame, rows.bounds, rows.partitions)
        rows = self._distinct(batch, rows, layers_of, before, contents)
        members = self._classify(batch, rows, layers_of)
        for index, chosen in enumerate(members):
            self._fold_layer(index, chosen, batch, before if late[index] else None, contents)
        return contents

    def _refuse_keys(self, batch: EventBatch, layers_of: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse events whose key field is absent or too long, for any layer that selects them.

        They are malformed, so they do not move stream time.
        """
        frame = batch.frame
        heartbeats = frame["type"].null_count()
        suspects = [
            name
            for name in dict.fromkeys(f.name for layer in self._layers for f in layer.key)
            if frame[name].null_count() > heartbeats or _has_long(frame[name])
        ]
        if not suspects:
            return
        absent = pl.repeat(value=False, n=frame.height, eager=True)
        long = absent
        for index, layer in enumerate(self._layers):
            chosen = [name for name, found in layers_of.items() if index in found]
            selected = frame["type"].is_in(chosen).fill_null(value=False)
            for field in layer.key:
                if field.name in suspects:
                    column = frame[field.name]
                    absent |= selected & column.is_null()
                    if column.dtype == pl.String:
                        over = column.str.len_bytes() > KEY_BYTES_MAX
                        long |= selected & over.fill_null(value=False)
        long &= ~absent
        detail = "a key field is null or absent"
        batch.refuse(frame.filter(absent), "malformed", "missing", detail)
        detail = f"a key text of more than {KEY_BYTES_MAX} bytes"
        batch.refuse(frame.filter(long), "malformed", "key_too_long", detail)
        batch.keep(~(absent | long))

    def _distinct(
        self,
        batch: EventBatch,
        rows: Rows,
        layers_of: Mapping[str, tuple[int, ...]],
        before: Mapping[int, Before],
        contents: list[Content],
    ) -> Rows:
        """Return the rows that are not duplicates; count duplicates; add new ids to ``contents``.

        Duplicates stay in the batch, because they move stream time like every event.
        """
        if self._deduper is None or not rows.frame.height:
            return rows
        classified = [name for name, found in layers_of.items() if found]
        has_id = pl.col("type").is_in(classified) & (pl.col(ID_COLUMN) != "")
        numbered = rows.frame.with_row_index(_ROW)
        gone: list[pl.Series] = []
        for number, run in enumerate(batch.runs):
            first, last = rows.bounds[number]
            events = numbered[first:last].filter(has_id)
            if not events.height:
                continue
            state = before[run.partition]
            assert state.ids is not None, "events with ids need the ids remembered before them"
            repeats, fresh = self._deduper.find(events, state.stream_time_ms, state.ids)
            if repeats:
                batch.ledgers[number].add_events("duplicate", len(repeats))
                gone.append(events[_ROW][repeats])
            if fresh.height:
                contents[number].blocks[IDS] = fresh
        if not gone:
            return rows
        return rows.filter(~numbered[_ROW].is_in(pl.concat(gone).implode()))

    def _classify(
        self, batch: EventBatch, rows: Rows, layers_of: Mapping[str, tuple[int, ...]]
    ) -> list[Rows]:
        """Return each layer's rows; count classified and unclassified events."""
        if rows.frame["type"].null_count():
            rows = rows.filter(rows.frame["type"].is_not_null())
        nowhere = [name for name, found in layers_of.items() if not found]
        if nowhere:
            assert self._source is not None, "layer topics are gathered"
            detail = f"no layer selects its type; got {', '.join(sorted(nowhere)[:9])}"
            gone = rows.frame.filter(rows.frame["type"].is_in(nowhere))
            self.classifier.count_unselected(gone["type"].value_counts().iter_rows())
            batch.refuse(
                gone,
                "unclassified",
                "unclassified",
                detail[:DETAIL_CHARS_MAX],
                dead=self._source.unclassified == "dead",
            )
        for delta, events in zip(batch.ledgers, rows.counts, strict=True):
            delta.add_events("classified", events - delta.unclassified)
        # Layers that select the same types share their rows.
        found = {tuple(layers_of): rows}
        members = []
        for index in range(len(self._layers)):
            chosen = tuple(name for name, layers in layers_of.items() if index in layers)
            if chosen not in found:
                found[chosen] = rows.filter(rows.frame["type"].is_in(list(chosen)))
            members.append(found[chosen])
        return members

    def _fold_layer(
        self,
        index: int,
        rows: Rows,
        batch: EventBatch,
        before: Mapping[int, Before] | None,
        contents: list[Content],
    ) -> None:
        """Add a layer's cells to ``contents``; ``before`` is None if no event can be late."""
        layer, condition = self._layers[index], self._filters[index]
        counted: dict[LayerColumn, list[int]] = {"selected": rows.counts}
        if condition is not None:
            rows = rows.filter(rows.frame.select(condition).to_series())
        passed = rows.counts
        counted["filtered"] = _difference(counted["selected"], passed)
        starts = layer.window.starts(rows.frame["time"])
        late = None if before is None else _late(layer, rows, starts, before)
        if late is not None:
            assert before is not None, "without it no event is late"
            gone = rows.frame.filter(late)
            gone = gone.with_columns(lateness=_lateness_ms(layer, gone, before))
            _set_aside_late(batch, layer, gone)
            rows, starts = rows.filter(~late), starts.filter(~late)
        counted["too_late"] = _difference(passed, rows.counts)
        cells = self._aggregations[index].cells(rows, starts)
        # Counted from the cells, so that the ledger does not balance if they lack an event.
        counted["folded"] = [int(block["events"].sum()) for block in cells]
        for number, content in enumerate(contents):
            for column, counts in counted.items():
                batch.ledgers[number].add_layer(layer.name, column, counts[number])
            if cells[number].height:
                content.blocks[layer.name] = cells[number]


def _names(types: pl.Series) -> list[str]:
    """Return the different types."""
    found = types if len(types) <= SMALL_VALUES_MAX else types.unique()
    return [name for name in dict.fromkeys(found.to_list()) if name is not None]


def _times_before(batch: EventBatch) -> pl.Series:
    """Return, for each row, the greatest time before it in its run."""
    never = pl.Series([NEVER_MS], dtype=pl.Int64)
    times = batch.frame["time"]
    running = [
        pl.concat([never, times[first : last - 1].cum_max()])
        for first, last in batch.bounds
        if last > first
    ]
    return pl.concat(running)


def _may_be_late(layer: Layer, batch: EventBatch, before: Mapping[int, Before]) -> bool:
    """Return whether an event of the batch may be too late: never False if one is."""
    times = batch.frame["time"]
    oldest = times.min()
    if oldest is None:
        return False
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    floor = max(floor_before(layer, before[run.partition]) for run in batch.runs)
    floor = max(floor, _max(times) - slack)
    return layer.window.end(layer.window.start(cast("int", oldest))) <= floor


def floor_before(layer: Layer, known: Before) -> int:
    """Return the floor of a layer before a chunk.

    Stream time before the chunk counts too, because a higher revision may have less slack.
    """
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    return max(known.floors.get(layer.name, NEVER_MS), known.stream_time_ms - slack)


def _late(
    layer: Layer, rows: Rows, starts: pl.Series, before: Mapping[int, Before]
) -> pl.Series | None:
    """Return a mask of the rows that are too late, None if all are in time."""
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    ends = layer.window.ends(starts)
    late = ends <= rows.frame["time_before"] - slack
    first = [
        ends[start:stop] <= floor_before(layer, before[partition])
        for partition, (start, stop) in zip(rows.partitions, rows.bounds, strict=True)
    ]
    late |= pl.concat(first)
    return late if late.any() else None


def _lateness_ms(layer: Layer, rows: pl.DataFrame, before: Mapping[int, Before]) -> pl.Expr:
    """Return how far the events of rows that are too late were behind the layer's watermark.

    It is above zero, because the floor counts as watermark if a higher revision of the map has
    put the watermark below it.
    """
    slack = layer.max_out_of_orderness_ms
    starting = {
        partition: max(known.stream_time_ms - slack, known.floors.get(layer.name, NEVER_MS))
        for partition, known in before.items()
    }
    first = pl.lit(rows["partition"].replace_strict(starting, return_dtype=pl.Int64))
    return pl.max_horizontal(pl.col("time_before") - slack, first) - pl.col("time")


def _set_aside_late(batch: EventBatch, layer: Layer, gone: pl.DataFrame) -> None:
    """Set events aside that are too late; times in the first months of the epoch get a hint."""
    detail = f"its window of {layer.declared_name} is sealed"
    small = gone["time"].is_between(0, SECONDS_IN_MS_MAX)
    hint = f"{detail}; are these seconds instead of milliseconds?"
    for rows, reason in ((gone.filter(~small), detail), (gone.filter(small), hint)):
        if rows.height:
            batch.set_aside(rows, "late", "late", reason, layer.declared_name)


def _difference(more: list[int], less: list[int]) -> list[int]:
    return [a - b for a, b in zip(more, less, strict=True)]


def _max(times: pl.Series) -> int:
    newest = times.max()
    return NEVER_MS if newest is None else cast("int", newest)


def _filter(conditions: tuple[Condition, ...]) -> pl.Expr | None:
    if not conditions:
        return None
    exprs = []
    for condition in conditions:
        column = pl.col(condition.field)
        if isinstance(condition.value, tuple):
            expr = column.is_in(list(condition.value))
        else:
            expr = OPERATORS[condition.op](column, condition.value)
        exprs.append(expr.fill_null(value=False))
    return pl.all_horizontal(exprs)


def _has_long(column: pl.Series) -> bool:
    """Return whether a column has a text of more than KEY_BYTES_MAX bytes."""
    if column.dtype != pl.String:
        return False
    if len(column) <= SMALL_VALUES_MAX:
        # No character takes more than four bytes.
        most = max(map(len, filter(None, column.to_list())), default=0)
        if most * 4 <= KEY_BYTES_MAX:
            return False
    return cast("int", column.str.len_bytes().max() or 0) > KEY_BYTES_MAX
