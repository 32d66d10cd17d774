"""The truth about a load: the ledger that a worker must reach, from the written records.

It is computed without any code of the worker, by the rules of docs/formats/records.md and rule 1 of
docs/formats/journal.md: an event is too late for a layer if its window ends at or below the floor
before it, which is the greatest time before it in its partition, minus the layer's lateness. An
event that was sent before is a duplicate unless its windows are sealed in every layer.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from app.load.vocabulary import Words
from tables.model.layer import Condition, Layer
from tables.model.ledger import Ledger, add

# So far back that no window ends at or below a floor made of it, and no sum with it wraps.
_NEVER_MS = -(2**62)

_OPERATORS: dict[str, Callable[[Any, Any], pl.Expr]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge, "in": lambda column, values: column.is_in(list(values)),
}  # fmt: skip


@dataclasses.dataclass(slots=True)
class PartitionTruth:
    """The events written to one partition and the counts that must follow.

    ``late`` counts, by layer, folded events whose window was closed before them. ``dead`` counts,
    by reason, the events and whole records that become dead letters.
    """

    stream_time_ms: int = _NEVER_MS
    records: int = 0
    ledger: Ledger = dataclasses.field(default_factory=dict)
    late: Ledger = dataclasses.field(default_factory=dict)
    dead: Ledger = dataclasses.field(default_factory=dict)

    def count(self, column: str, count: int = 1) -> None:
        """Add to a column of the ledger."""
        add(self.ledger, {column: count})

    def heartbeat(self, time_ms: int) -> None:
        """Note a heartbeat."""
        self.records += 1
        self.count("records.heartbeat")
        self.stream_time_ms = max(self.stream_time_ms, time_ms)


class Truth:
    """Keeps the truth of each partition of one process."""

    def __init__(self, words: Words, partitions: tuple[int, ...]) -> None:
        self.partitions = {number: PartitionTruth() for number in partitions}
        self._words = words
        self._members = [pl.Series(member, dtype=pl.Boolean) for member in words.members]
        self._filters = [_filter(layer.where) for layer in words.layers]

    def note_heartbeat(self, time_ms: int) -> None:
        """Note a heartbeat to every partition."""
        for partition in self.partitions.values():
            partition.heartbeat(time_ms)

    def note_events(self, facts: pl.DataFrame, events: pl.DataFrame, outcome: pl.Series) -> None:
        """Note rows of ``facts`` and ``events`` that were written, in order.

        Args:
            facts: see ``app.load.events``.
            events: the same rows, as they were before anything bad was put into them.
            outcome: ``classified``, ``unclassified``, or anything else for rows that are not events
                and do not move the time.
        """
        classified = outcome == "classified"
        decoded = classified | (outcome == "unclassified")
        before = self._times_before(facts, decoded)
        duplicate = self._duplicates(facts, before, classified)
        classified &= ~duplicate
        rows = facts.select("partition", "time", "type_id").with_columns(
            before=before, classified=classified,
        )  # fmt: skip
        columns = {"classified": classified, "duplicate": duplicate}
        for index, layer in enumerate(self._words.layers):
            columns |= self._layer(index, layer, rows, events)
        marks = pl.DataFrame({"partition": rows["partition"], **columns})
        for row in marks.group_by("partition").agg(pl.all().sum()).iter_rows(named=True):
            self._add(row)

    def _times_before(self, facts: pl.DataFrame, decoded: pl.Series) -> pl.Series:
        """Return the stream time before each row, and advance that of the partitions."""
        frame = facts.select(
            "partition", moving=pl.when(decoded).then(pl.col("time")).otherwise(_NEVER_MS)
        )
        starts = {number: one.stream_time_ms for number, one in self.partitions.items()}
        start = pl.col("partition").replace_strict(starts, return_dtype=pl.Int64)
        earlier = pl.col("moving").shift(1, fill_value=_NEVER_MS).cum_max().over("partition")
        before = frame.select(pl.max_horizontal(earlier, start)).to_series()
        newest = frame.group_by("partition").agg(pl.col("moving").max())
        for number, time_ms in newest.iter_rows():
            one = self.partitions[number]
            one.stream_time_ms = max(one.stream_time_ms, time_ms)
        return before

    def _duplicates(
        self, facts: pl.DataFrame, before: pl.Series, classified: pl.Series
    ) -> pl.Series:
        """Return which rows repeat an event that is remembered.

        All repeats of an event are in its step, so the limit of remembered ids is not reached.
        """
        frame = facts.select("time", "origin").with_columns(before=before, used=classified)
        windows = [
            layer.window.ends(layer.window.starts(pl.col("time")))
            + (layer.max_out_of_orderness_ms + layer.allowed_lateness_ms)
            for layer in self._words.layers
        ]
        again = pl.col("used").cast(pl.UInt32).cum_sum().over("origin") > 1
        sealed = pl.max_horizontal(windows) <= pl.col("before")
        return frame.select(pl.col("used") & again & ~sealed).to_series()

    def _layer(
        self, index: int, layer: Layer, rows: pl.DataFrame, events: pl.DataFrame
    ) -> dict[str, pl.Series]:
        """Return, of one layer, which rows are selected, passed, too late, and late."""
        selected = self._members[index].gather(rows["type_id"]) & rows["classified"]
        condition = self._filters[index]
        passed = selected
        if condition is not None:
            passed = selected & events.select(condition).to_series()
        end = layer.window.ends(layer.window.starts(pl.col("time")))
        watermark = pl.col("before") - layer.max_out_of_orderness_ms
        sealed = end <= watermark - layer.allowed_lateness_ms
        closed, gone = rows.select(closed=end <= watermark, gone=sealed).get_columns()
        return {
            f"{layer.name}.selected": selected,
            f"{layer.name}.passed": passed,
            f"{layer.name}.too_late": passed & gone,
            f"{layer.name}.late": passed & closed & ~gone,
        }

    def _add(self, row: Mapping[str, Any]) -> None:
        """Add one partition's sums to its ledger."""
        one = self.partitions[row["partition"]]
        counts = Counter({"events.classified": row["classified"]})
        counts["events.duplicate"] = row["duplicate"]
        counts["events.decoded"] = row["classified"] + row["duplicate"]
        for layer in self._words.layers:
            name = layer.name
            selected, passed = row[f"{name}.selected"], row[f"{name}.passed"]
            too_late = row[f"{name}.too_late"]
            counts[f"layer.{name}.selected"] = selected
            counts[f"layer.{name}.filtered"] = selected - passed
            counts[f"layer.{name}.too_late"] = too_late
            counts[f"layer.{name}.folded"] = passed - too_late
            add(one.late, {name: row[f"{name}.late"]})
        add(one.ledger, counts)


def _filter(conditions: tuple[Condition, ...]) -> pl.Expr | None:
    """Return whether all conditions hold; one over a null does not."""
    if not conditions:
        return None
    exprs = [_OPERATORS[one.op](pl.col(one.field), one.value) for one in conditions]
    return pl.all_horizontal(*(expr.fill_null(value=False) for expr in exprs))
