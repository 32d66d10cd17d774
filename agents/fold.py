"""Fold: an event batch into partial cells, per layer and source partition. Pure.

Late or not is decided per event in log order, never per chunk: the floor before an event follows
from the greatest time before it in its partition (docs/formats/journal.md rule 1).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import polars as pl

from agents.batch import DETAIL_CHARS_MAX, ID_COLUMN, EventBatch, tally
from agents.classify import Classifier
from agents.dedupe import Deduper
from tables.cell import accumulator_type
from tables.ids import IDS, IdTable
from tables.layer import Accumulator, Condition, Layer
from tables.ledger import Ledger
from tables.plan import InputPlan
from tables.table import NEVER_MS

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
KEY_BYTES_MAX = 1_024
"""Of a key text. Cassandra takes 64 KiB in a row's key; sorting and caching want far less."""

_ROW = ".row"
_WORD = 2**64
_INT64_MAX = 2**63 - 1


@dataclasses.dataclass(slots=True, frozen=True)
class Before:
    """What folding must know of a partition's state: stream time and, by layer, the floor.

    ``ids`` are the remembered ids where the source's events have ids.
    """

    stream_time_ms: int
    floors: Mapping[str, int]
    ids: IdTable | None = None


@dataclasses.dataclass(slots=True)
class Content:
    """What a chunk adds to one source partition: the content of a delta, before its framing."""

    start: int
    stop: int
    stream_time_ms: int
    ledger: Ledger
    blocks: dict[str, pl.DataFrame]
    announced: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)


class Folder:
    """Folds the event batches of one source into its base layers."""

    def __init__(self, plan: InputPlan) -> None:
        self._source = plan.source
        self._layers = plan.layers
        self._classifier = Classifier(plan.layers)
        self._filters = [_filter(layer.where) for layer in plan.layers]
        has_ids = plan.source is not None and plan.source.id_field is not None
        self._deduper = Deduper(plan.layers) if has_ids and plan.layers else None

    def fold(self, batch: EventBatch, before: Mapping[int, Before]) -> list[Content]:
        """Return one content per run of ``batch``; ``before`` is by partition."""
        layers_of = self._layers_of(batch)
        self._refuse_keys(batch, layers_of)
        rows, remembered = self._distinct(batch, layers_of, before)
        members = self._classify(batch, rows, layers_of)
        partial = [self._fold_layer(i, rows, batch, before) for i, rows in enumerate(members)]
        contents = []
        for number, run in enumerate(batch.runs):
            first, last = batch.bounds[number]
            newest = batch.frame["time"][first:last].max()
            time = before[run.partition].stream_time_ms
            blocks = {
                layer.name: cells[run.partition]
                for layer, cells in zip(self._layers, partial, strict=True)
                if run.partition in cells
            }
            if run.partition in remembered:
                blocks[IDS] = remembered[run.partition]
            contents.append(
                Content(
                    start=run.first_offset,
                    stop=run.next_offset,
                    stream_time_ms=time if newest is None else max(time, cast("int", newest)),
                    ledger=batch.ledgers[number],
                    blocks=blocks,
                )
            )
        return contents

    def _layers_of(self, batch: EventBatch) -> dict[str, tuple[int, ...]]:
        types = batch.frame["type"].unique().drop_nulls().to_list()
        return {name: self._classifier.layers_of(name) for name in types}

    def _refuse_keys(self, batch: EventBatch, layers_of: Mapping[str, tuple[int, ...]]) -> None:
        """Take out events that lack a key field of a layer that selects them, or have it too long.

        They are malformed, so they move no time.
        """
        frame = batch.frame
        heartbeats = frame["type"].null_count()
        suspects = [
            name
            for name in dict.fromkeys(f.name for layer in self._layers for f in layer.key)
            if frame[name].null_count() > heartbeats or _longest(frame[name]) > KEY_BYTES_MAX
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
        layers_of: Mapping[str, tuple[int, ...]],
        before: Mapping[int, Before],
    ) -> tuple[pl.DataFrame, dict[int, pl.DataFrame]]:
        """Return the rows that are no duplicates, with the time before each; count duplicates.

        They stay in the batch, because they move stream time like every event. The second is, by
        partition, the ids to remember.
        """
        rows = batch.frame
        times = self._stream_times(batch)
        if times is None:
            return rows, {}
        rows = rows.with_columns(time_before=times)
        if self._deduper is None:
            return rows, {}
        chosen = [name for name, found in layers_of.items() if found]
        has_id = pl.col("type").is_in(chosen) & (pl.col(ID_COLUMN) != "")
        rows = rows.with_row_index(_ROW)
        remembered = {}
        gone: list[pl.Series] = []
        for number, run in enumerate(batch.runs):
            first, last = batch.bounds[number]
            events = rows[first:last].filter(has_id)
            if not events.height:
                continue
            state = before[run.partition]
            assert state.ids is not None, "events with ids need the ids remembered before them"
            repeats, fresh = self._deduper.find(events, state.stream_time_ms, state.ids)
            if repeats:
                tally(batch.ledgers[number], "events.duplicate", len(repeats))
                gone.append(events[_ROW][repeats])
            if fresh.height:
                remembered[run.partition] = fresh
        if gone:
            rows = rows.filter(~pl.col(_ROW).is_in(pl.concat(gone).implode()))
        return rows, remembered

    def _classify(
        self, batch: EventBatch, rows: pl.DataFrame, layers_of: Mapping[str, tuple[int, ...]]
    ) -> list[pl.DataFrame]:
        """Return each layer's rows; count classified and unclassified events."""
        events = dict(
            rows.filter(pl.col("type").is_not_null()).group_by("partition").len().iter_rows()
        )
        nowhere = [name for name, found in layers_of.items() if not found]
        if nowhere:
            assert self._source is not None, "layer topics are gathered"
            detail = f"no layer selects its type; got {', '.join(sorted(nowhere)[:9])}"
            batch.refuse(
                rows.filter(pl.col("type").is_in(nowhere)),
                "unclassified",
                "unclassified",
                detail[:DETAIL_CHARS_MAX],
                dead=self._source.unclassified == "dead",
            )
        for number, run in enumerate(batch.runs):
            counts = batch.ledgers[number]
            missed = counts.get("events.unclassified", 0)
            tally(counts, "events.classified", events.get(run.partition, 0) - missed)
        members = []
        for index in range(len(self._layers)):
            chosen = [name for name, found in layers_of.items() if index in found]
            everything = len(chosen) == len(layers_of)
            keep = pl.col("type").is_not_null() if everything else pl.col("type").is_in(chosen)
            members.append(rows.filter(keep))
        return members

    @staticmethod
    def _stream_times(batch: EventBatch) -> pl.Series | None:
        """Return, for each row, the greatest time before it in its run; None for an empty batch."""
        if not batch.frame.height:
            return None
        times = batch.frame["time"]
        running = [
            pl.concat([pl.Series([NEVER_MS], dtype=pl.Int64), times[first:last].cum_max()[:-1]])
            for first, last in batch.bounds
            if last > first
        ]
        return pl.concat(running)

    def _fold_layer(
        self, index: int, rows: pl.DataFrame, batch: EventBatch, before: Mapping[int, Before]
    ) -> dict[int, pl.DataFrame]:
        layer = self._layers[index]
        if not rows.height:
            return {}
        selected = dict(rows.group_by("partition").len().iter_rows())
        condition = self._filters[index]
        if condition is not None:
            rows = rows.filter(condition)
        passed = (
            selected if condition is None else dict(rows.group_by("partition").len().iter_rows())
        )
        rows = rows.with_columns(window_start=layer.window.start_expr(pl.col("time")))
        late = _late(layer, rows, before)
        if late is not None:
            detail = f"its window of {layer.declared_name} is sealed"
            gone = rows.filter(late)
            gone = gone.with_columns(lateness=_lateness_ms(layer, gone, before))
            batch.set_aside(gone, "late", "late", detail, layer.declared_name)
            rows = rows.filter(~late)
        cells = _aggregate(layer, rows)
        folded = dict(cells.group_by("partition").agg(pl.col("events").sum()).iter_rows())
        for number, run in enumerate(batch.runs):
            counts = batch.ledgers[number]
            chosen, kept = selected.get(run.partition, 0), passed.get(run.partition, 0)
            tally(counts, f"layer.{layer.name}.selected", chosen)
            tally(counts, f"layer.{layer.name}.filtered", chosen - kept)
            tally(counts, f"layer.{layer.name}.folded", folded.get(run.partition, 0))
            tally(counts, f"layer.{layer.name}.too_late", kept - folded.get(run.partition, 0))
        parts = cells.partition_by("partition", as_dict=True, include_key=False)
        return {int(partition[0]): frame for partition, frame in parts.items()}


def _late(layer: Layer, rows: pl.DataFrame, before: Mapping[int, Before]) -> pl.Series | None:
    """Return which rows are too late, or None where none can be."""
    ends = rows.select(layer.window.end_expr(pl.col("window_start"))).to_series()
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    floor = (rows["time_before"] - slack).alias("floor")
    starting = {p: b.floors.get(layer.name, NEVER_MS) for p, b in before.items()}
    # Stream time before the chunk belongs to the floor too: a higher revision may have less slack.
    starting = {p: max(f, before[p].stream_time_ms - slack) for p, f in starting.items()}
    if not rows.height or cast("int", ends.min()) > max(
        *starting.values(), cast("int", floor.max())
    ):
        return None
    first = rows["partition"].replace_strict(starting, return_dtype=pl.Int64)
    late: pl.Series = (ends <= floor) | (ends <= first)
    return late if late.any() else None


def _lateness_ms(layer: Layer, rows: pl.DataFrame, before: Mapping[int, Before]) -> pl.Expr:
    """Return how far the events of rows that are too late were behind the layer's watermark.

    It is above zero, because the floor counts as watermark where a higher revision of the map has
    put the watermark below it.
    """
    slack = layer.max_out_of_orderness_ms
    starting = {
        partition: max(known.stream_time_ms - slack, known.floors.get(layer.name, NEVER_MS))
        for partition, known in before.items()
    }
    first = pl.lit(rows["partition"].replace_strict(starting, return_dtype=pl.Int64))
    return pl.max_horizontal(pl.col("time_before") - slack, first) - pl.col("time")


def _aggregate(layer: Layer, rows: pl.DataFrame) -> pl.DataFrame:
    rows = rows.rename({field.name: field.column for field in layer.key})
    exprs = [_accumulate(acc, rows) for acc in layer.accumulators]
    keys = ["partition", *layer.key_columns, "window_start"]
    return rows.group_by(keys).agg(*exprs).select(*keys, *(a.column for a in layer.accumulators))


def _accumulate(acc: Accumulator, rows: pl.DataFrame) -> pl.Expr:
    """Return the aggregation of one accumulator over raw events."""
    if acc.kind == "events":
        return pl.len().cast(pl.Int64).alias("events")
    assert acc.field is not None
    column = pl.col(acc.field)
    if acc.kind == "n":
        return column.count().cast(pl.Int64).alias(acc.column)
    if acc.kind in ("min", "max"):
        extreme = column.min() if acc.kind == "min" else column.max()
        return extreme.cast(accumulator_type(acc)).alias(acc.column)
    if acc.kind == "m2":
        value = column.cast(pl.Float64)
        return ((value - value.mean()) ** 2).sum().alias(acc.column)
    if acc.type == "float":
        return column.cast(pl.Float64).sum().alias(acc.column)
    return _accumulate_int(acc, column, _largest(rows[acc.field]), rows.height)


def _accumulate_int(acc: Accumulator, column: pl.Expr, largest: int, rows: int) -> pl.Expr:
    """Return an integer sum that cannot wrap; in 64 bits where the chunk's values allow it."""
    wide = column.cast(pl.Int128)
    if acc.kind == "sum":
        total = column.sum() if largest * rows <= _INT64_MAX else wide.sum()
        return total.cast(pl.Int128).alias(acc.column)
    if largest * largest * rows <= _INT64_MAX:
        low = (column * column).sum().cast(pl.Int128)
        high = pl.lit(0, pl.Int128)
    else:
        square = wide * wide
        high = (square // _WORD).sum()
        low = (square - square // _WORD * _WORD).sum()
    return (low if acc.kind == "sqlo" else high).alias(acc.column)


def _largest(values: pl.Series) -> int:
    low, high = values.min(), values.max()
    return 0 if low is None else max(abs(cast("int", low)), abs(cast("int", high)))


def _filter(conditions: tuple[Condition, ...]) -> pl.Expr | None:
    if not conditions:
        return None
    exprs = []
    for condition in conditions:
        column = pl.col(condition.field)
        if condition.op == "in":
            expr = column.is_in(list(condition.value))  # type: ignore[arg-type]
        else:
            expr = _OPERATORS[condition.op](column, condition.value)
        exprs.append(expr.fill_null(value=False))
    return pl.all_horizontal(exprs)


def _longest(column: pl.Series) -> int:
    """Return the bytes of the longest text of a column, 0 for one of no texts."""
    if column.dtype != pl.String:
        return 0
    return cast("int", column.str.len_bytes().max() or 0)
