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

from agents.classify import Classifier
from agents.decode import EventBatch, SetAside
from tables.cell import accumulator_type
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
_WORD = 2**64
_INT64_MAX = 2**63 - 1


@dataclasses.dataclass(slots=True, frozen=True)
class Before:
    """What folding must know of a partition's state: stream time and, by layer, the floor."""

    stream_time_ms: int
    floors: Mapping[str, int]


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
        self._layers = plan.layers
        self._classifier = Classifier(plan.layers)
        self._filters = [_filter(layer.where) for layer in plan.layers]

    def fold(self, batch: EventBatch, before: Mapping[int, Before]) -> list[Content]:
        """Return one content per run of ``batch``; ``before`` is by partition."""
        members = self._classify(batch)
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

    def _classify(self, batch: EventBatch) -> list[pl.DataFrame]:
        """Return each layer's rows; count classified, unclassified and malformed events."""
        types = batch.frame["type"].unique().drop_nulls().to_list()
        layers_of = {name: self._classifier.layers_of(name) for name in types}
        rows = batch.frame.with_row_index("row")
        before = self._stream_times(batch)
        if before is not None:
            rows = rows.with_columns(time_before=before)
        heartbeat = pl.col("type").is_null()
        nowhere = [name for name, found in layers_of.items() if not found]
        unclassified = rows.filter(pl.col("type").is_in(nowhere)) if nowhere else rows.clear()
        members = []
        broken: set[int] = set()
        for index, layer in enumerate(self._layers):
            chosen = [name for name, found in layers_of.items() if index in found]
            everything = len(chosen) == len(types)
            keep = ~heartbeat if everything else pl.col("type").is_in(chosen)
            member = rows.filter(keep)
            members.append(member)
            names = [field.name for field in layer.key]
            if sum(member[name].null_count() for name in names):
                nulls = member.filter(pl.any_horizontal(pl.col(names).is_null()))
                broken.update(nulls["row"])
        if broken:
            gone = list(broken)
            members = [member.filter(~pl.col("row").is_in(gone)) for member in members]
        self._count_events(batch, unclassified, sorted(broken), rows)
        return members

    def _count_events(
        self, batch: EventBatch, unclassified: pl.DataFrame, broken: list[int], rows: pl.DataFrame
    ) -> None:
        nowhere = dict(unclassified.group_by("partition").len().iter_rows())
        events = dict(
            rows.filter(pl.col("type").is_not_null()).group_by("partition").len().iter_rows()
        )
        for number, run in enumerate(batch.runs):
            first, last = batch.bounds[number]
            malformed = [row for row in broken if first <= row < last]
            counts = batch.ledgers[number]
            missed = nowhere.get(run.partition, 0)
            _count(counts, "events.unclassified", missed)
            _count(counts, "events.malformed", len(malformed))
            total = events.get(run.partition, 0)
            _count(counts, "events.classified", total - missed - len(malformed))
            for row in malformed:
                index = batch.frame["record"][row]
                batch.aside.append(SetAside("dead", number, index, "a key field is null or absent"))

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
            self._set_late_aside(batch, rows.filter(late))
            rows = rows.filter(~late)
        cells = _aggregate(layer, rows)
        folded = dict(cells.group_by("partition").agg(pl.col("events").sum()).iter_rows())
        for number, run in enumerate(batch.runs):
            counts = batch.ledgers[number]
            chosen, kept = selected.get(run.partition, 0), passed.get(run.partition, 0)
            _count(counts, f"layer.{layer.name}.selected", chosen)
            _count(counts, f"layer.{layer.name}.filtered", chosen - kept)
            _count(counts, f"layer.{layer.name}.folded", folded.get(run.partition, 0))
            _count(counts, f"layer.{layer.name}.too_late", kept - folded.get(run.partition, 0))
        parts = cells.partition_by("partition", as_dict=True, include_key=False)
        return {int(partition[0]): frame for partition, frame in parts.items()}

    @staticmethod
    def _set_late_aside(batch: EventBatch, late: pl.DataFrame) -> None:
        numbers = {run.partition: number for number, run in enumerate(batch.runs)}
        for partition, index in late.select("partition", "record").iter_rows():
            batch.aside.append(SetAside("late", numbers[partition], index, "window is sealed"))


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


def _count(counts: Ledger, name: str, count: int) -> None:
    if count:
        counts[name] = counts.get(name, 0) + count
