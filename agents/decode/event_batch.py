"""The event batch: the events of a chunk's runs of one source, and those that are set aside.

An event frame has ``partition`` (Int32), ``.event_index`` (UInt64: index of the record in its
run, times 2**32, plus that of the event in its record), ``time`` (Int64, ms), ``type`` (String),
one column per declared field and, if the source's events have ids, ``.id`` (String). Heartbeats
are rows without type: they move stream time in their order and are not folded.
"""

from __future__ import annotations

import dataclasses
import itertools

import polars as pl

from tables.model.layer import SideKind
from tables.model.ledger import EventColumn, LedgerDelta
from tables.record.chunk import Run

RECORD_SPAN = 2**32
"""Event indexes of one record."""

INDEX_COLUMN = ".event_index"
ID_COLUMN = ".id"
"""The column of event ids; no declared field can have this name, nor that of their indexes."""

NULLED_PREFIX = ".nulled_"
"""The prefix of Boolean columns: whether a wrong value of the field became null."""

SMALL_VALUES_MAX = 2_000
"""Values below which a loop in Python beats the start-up cost of a query of polars."""

SMALL_EVENTS_MAX = 1_000
"""Events of a chunk up to which it is faster to fold them one by one than as columns. With eight
partitions, from records to applied deltas: 400 events take 2.4 and 3.7 ms, 1,500 take 4.6 and 5.7,
2,500 take 6.9 and 6.3."""

DETAIL_CHARS_MAX = 200
"""Characters of a letter's detail, which is for people."""


@dataclasses.dataclass(slots=True, frozen=True)
class SetAside:
    """Events of one record, or a whole record, on the way to a side topic.

    ``record`` is the index in run ``run``; ``events`` the indexes in the record, None for a record
    that could not be read as events. ``reason`` is one of docs/formats/records.md; ``detail`` says
    more to people. ``layer`` and ``lateness_ms``, of the least and the most late event, are set for
    late events.
    """

    kind: SideKind
    run: int
    record: int
    events: tuple[int, ...] | None
    reason: str
    detail: str
    layer: str = ""
    lateness_ms: tuple[int, int] | None = None


Bounds = list[tuple[int, int]]
"""The first row of each run, and the row after its last."""


@dataclasses.dataclass(slots=True, frozen=True)
class Rows:
    """Some rows of a batch in its order, so that those of one run are neighbours."""

    frame: pl.DataFrame
    bounds: Bounds
    partitions: list[int]

    @property
    def counts(self) -> list[int]:
        """The number of rows of each run."""
        return [last - first for first, last in self.bounds]

    def filter(self, mask: pl.Series) -> Rows:
        """Return the rows for which ``mask`` is true."""
        left = (int(mask[first:last].sum() or 0) for first, last in self.bounds)
        bounds = list(itertools.pairwise(itertools.accumulate(left, initial=0)))
        return Rows(self.frame.filter(mask), bounds, self.partitions)


@dataclasses.dataclass(slots=True)
class EventBatch:
    """The events of a chunk's runs of one source.

    ``bounds`` has, per run, its first row in ``frame`` and the row after its last. ``ledgers`` has
    one ledger delta per run, to which the later steps add.
    """

    runs: list[Run]
    frame: pl.DataFrame
    bounds: Bounds
    ledgers: list[LedgerDelta]
    aside: list[SetAside]

    def keep(self, mask: pl.Series) -> None:
        """Keep only the rows for which ``mask`` is true."""
        kept = self.rows.filter(mask)
        self.frame, self.bounds = kept.frame, kept.bounds

    @property
    def rows(self) -> Rows:
        """All rows."""
        return Rows(self.frame, self.bounds, [run.partition for run in self.runs])

    def set_aside(
        self, rows: pl.DataFrame, kind: SideKind, reason: str, detail: str, layer: str = ""
    ) -> dict[int, int]:
        """Set the events of these rows aside, by record; return their number by run.

        ``rows`` has ``partition``, ``.event_index``, and for late events ``lateness`` in ms.
        """
        counts: dict[int, int] = {}
        numbers = {run.partition: number for number, run in enumerate(self.runs)}
        events = rows.select(
            "partition",
            record=pl.col(INDEX_COLUMN) // RECORD_SPAN,
            event=pl.col(INDEX_COLUMN) % RECORD_SPAN,
            lateness="lateness" if kind == "late" else pl.lit(None),
        )
        grouped = events.group_by("partition", "record", maintain_order=True).agg(
            "event", least=pl.col("lateness").min(), most=pl.col("lateness").max()
        )
        for partition, record, events, least, most in grouped.iter_rows():
            number = numbers[partition]
            counts[number] = counts.get(number, 0) + len(events)
            late = None if least is None else (least, most)
            item = SetAside(kind, number, record, tuple(events), reason, detail, layer, late)
            self.aside.append(item)
        return counts

    def refuse(
        self,
        rows: pl.DataFrame,
        column: EventColumn,
        reason: str,
        detail: str,
        *,
        dead: bool = True,
    ) -> None:
        """Count the events of these rows as malformed, future or unclassified, and set them aside.

        ``column`` is the ledger's event column. Rows that are not ``dead`` are only counted.
        """
        if dead:
            counts = self.set_aside(rows, "dead", reason, detail)
        else:
            numbers = {run.partition: number for number, run in enumerate(self.runs)}
            by_partition = rows.group_by("partition").len().iter_rows()
            counts = {numbers[partition]: count for partition, count in by_partition}
        for number, count in counts.items():
            self.ledgers[number].add_events(column, count, reason)
