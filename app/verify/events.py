"""The events of a source in tables, with stream time and floors before each, and its outcome.

By docs/formats/journal.md rules 1 and 17 and docs/formats/records.md. Records come in the order of
their partition's log, and a rule's "before" is a window function over that order::

    records -> batch -> outcome (future, missing, ..., classified)
                           |-> stream time before it = greatest time so far, by partition
                           `-> events table, those set aside beside it

Dead letters are claims: each must be of something that is set aside here, and everything set aside
here must have one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from app.verify.arrow import ArrowRows
from app.verify.avro import SchemaOf
from app.verify.batches import Decoder
from app.verify.checks import Faults
from app.verify.cuts import Cuts
from app.verify.database import COLUMN_TYPES, Database, text
from app.verify.letters import WHOLE, Letters
from app.verify.outcomes import LETTERED, outcome_of, possible
from app.verify.records import Record, RecordReader, form_of, has_broken_name
from app.verify.report import Difference
from app.verify.trial import readable
from app.verify.whole import Whole
from tables.model.layer import Layer, Source

TRUSTED = ("too_many_cells", "record", "batch")
"""Reasons for which letters are believed. The size of a journal record is the worker's business,
and other readers cannot see the broken part of a batch."""

SUSPECTS_MAX = 1_000
"""Broken streams of a partition that are tried; the letters of more are believed."""

_BATCH_ROWS = 200_000
_BATCH_BYTES = 64 << 20
_ADVANCES = "outcome IN ('heartbeat', 'unclassified', 'classified', 'doubtful')"
_CLASSIFIED = "outcome IN ('classified', 'doubtful')"


@dataclasses.dataclass(slots=True)
class Partition:
    """One source partition: the offset up to which it was read, and the counts of its records.

    Attributes:
        number: the partition.
        first: the log's first offset.
        position: the offset after the last record or gap that was read.
        stream_time_ms: the greatest event time so far; None before the first.
        read: counts of records and of events as they were read.
        ledger: all counts, by the names of the ledger.
        doubt: how many more, or less, each count may be: events at cuts, see ``cuts.py``.
        repeats_in_doubt: how many events may repeat an id, or not, for the same reason.
        gaps: offsets that carry no record, as spans.
        suspects: offsets and values of Arrow streams that letters call broken, to be tried.
    """

    number: int
    first: int = 0
    position: int = 0
    stream_time_ms: int | None = None
    read: Counter[str] = dataclasses.field(default_factory=Counter)
    ledger: Counter[str] = dataclasses.field(default_factory=Counter)
    doubt: Counter[str] = dataclasses.field(default_factory=Counter)
    repeats_in_doubt: int = 0
    gaps: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    suspects: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)

    def skip_to(self, offset: int) -> None:
        """Count offsets that carry no record as gap, up to ``offset``."""
        assert self.position <= offset, "records come in order"
        if offset > self.position:
            self.gaps.append((self.position, offset))
            self.read["records.gap"] += offset - self.position
            self.position = offset


class Events:
    """The results of the records of one source so far.

    Attributes:
        source: the source.
        layers: the base layers that read it.
        cuts: the cuts of layers that came into the map later.
        partitions: all of them, by number.
        differences: Arrow streams that letters wrongly call broken.
        table: the table of classified events: ``part``, ``offset``, ``index``, ``time``,
            ``before``, ``kind``, ``id``, and the fields of :meth:`column`.
    """

    def __init__(
        self,
        database: Database,
        source: Source,
        layers: tuple[Layer, ...],
        letters: Letters,
        schema_of: SchemaOf | None = None,
    ) -> None:
        self._database = database
        self._letters = letters
        self.source = source
        self.layers = layers
        self.cuts = Cuts(layers)
        self.table = f"events_{source.name}"
        self.aside = f"aside_{source.name}"
        self._gaps_table, self._trusted_table = f"gaps_{source.name}", f"trusted_{source.name}"
        self._needed = _needed(source, layers)
        arrow = ArrowRows(source)
        self._reader = RecordReader(source, arrow, schema_of)
        self._decoder = Decoder(
            database, source, layers, self._needed, self._reader, arrow=arrow,
            faulty=self._set_aside,
        )  # fmt: skip
        self._columns = self._decoder.columns
        self.partitions = [Partition(number) for number in range(source.partitions)]
        self.differences: list[Difference] = []
        self._faults: list[tuple[int, int, int, str]] = []
        self._outcomes: Counter[tuple[int, str]] = Counter()
        self._trusted: list[tuple[int, int]] = []
        fields = "".join(
            f", {column} {COLUMN_TYPES[self._needed[name]][1]}"
            for name, column in self._columns.items()
        )
        database.run(
            f'CREATE TABLE {self.table} (part INTEGER, "offset" BIGINT, index INTEGER, time BIGINT,'
            f" before BIGINT, kind SMALLINT, id VARCHAR{fields})"
        )
        database.run(
            f'CREATE TABLE {self.aside} (part INTEGER, "offset" BIGINT, index INTEGER,'
            " reasons VARCHAR[])"
        )

    def column(self, field: str) -> str:
        """Return the column of a field."""
        return self._columns[field]

    def selected_by(self, layer: Layer) -> str:
        """Return whether a layer selects an event's type."""
        kinds = self._decoder.kinds.selecting(self.layers.index(layer))
        return f"kind IN ({', '.join(map(str, kinds))})" if kinds else "false"

    def possible(self, layer: Layer) -> str:
        """Return whether the map may have had a layer at an event of the table, in SQL."""
        return possible(layer, self.cuts, self._columns)

    def know(self, whole: Whole) -> None:
        """Keep the times from which layers are whole, before the first record."""
        self.cuts.know(whole, [one.first for one in self.partitions])

    def start(self, part: int, offset: int) -> None:
        """Begin at the log's first offset."""
        self.partitions[part].first = self.partitions[part].position = offset

    def take(self, part: int, records: list[Record]) -> None:
        """Decode the next records of a partition."""
        partition = self.partitions[part]
        if not records:
            return
        if records[-1].offset == partition.position + len(records) - 1:
            partition.position += len(records)
        else:
            for record in records:
                partition.skip_to(record.offset)
                partition.position += 1
        for reason in TRUSTED:
            trusted = self._letters.about(self.source.topic, part, reason)
            found = [record for record in records if record.offset in trusted] if trusted else []
            if found:
                partition.read["records.unreadable"] += len(found)
                partition.read[f"unreadable.{reason}"] += len(found)
                self._trusted += [(part, record.offset) for record in found]
                records = [record for record in records if record.offset not in trusted]
        if self.source.compression:
            records = list(map(self._reader.unpacked, records))
        rest = self._decoder.values(part, records)
        partition.read["records.with_events"] += len(records) - len(rest)
        for record in rest:
            self._take_alone(partition, record)
        waiting = max(len(self._decoder), len(self._faults))
        if waiting >= _BATCH_ROWS or self._decoder.size >= _BATCH_BYTES:
            self.load()

    def load(self) -> None:
        """Bring all decoded events and faults into the tables."""
        if self._decoder.load():
            self._stage()
        faults, self._faults = self._faults, []
        if faults:
            columns = ["part", "offset", "index", "reasons"]
            self._database.load(
                f'INSERT INTO {self.aside} SELECT part, "offset", index,'
                " string_split(reasons, ' ') FROM incoming",
                pl.DataFrame(faults, schema=columns, orient="row"),
            )

    def settle(self) -> None:
        """Count the outcomes of all records and events, when letters and records are loaded."""
        self._load_offsets()
        for partition in self.partitions:
            partition.ledger = Counter(partition.read)
            partition.doubt = Counter()
        for (part, outcome), count in self._outcomes.items():
            if outcome in ("unclassified", "classified"):
                self.partitions[part].ledger[f"events.{outcome}"] += count
            elif outcome == "doubtful":
                self.partitions[part].ledger["events.classified"] += count
                self.partitions[part].doubt["events.classified"] -= count
                self.partitions[part].doubt["events.unclassified"] += count
        for (part, field), count in self._decoder.nulled.items():
            self.partitions[part].ledger[f"nulled.{self.source.name}.{field}"] += count
        named = (
            f'SELECT part, "offset", index, list(named) AS named FROM ({self._claims()})'
            " GROUP BY ALL"
        )
        counted = self._database.all(
            "SELECT part, coalesce(list_min(list_intersect(reasons, named)), list_min(reasons)),"
            f' count(*) FROM {self.aside} LEFT JOIN ({named}) USING (part, "offset", index)'
            f" WHERE index > {WHOLE} GROUP BY ALL"
        )
        for part, reason, count in counted:
            ledger = self.partitions[part].ledger
            if reason == "future":
                ledger["events.future"] += count
            elif reason != "unclassified":
                ledger["events.malformed"] += count
                ledger[f"malformed.{reason}"] += count

    def letters_differing(self) -> Iterator[Difference]:
        """Yield each record that must have a dead letter and lacks it, or has another one."""
        topic = self.source.topic
        claims = (
            'SELECT part, "offset", index, list_sort(list(DISTINCT named)) AS named FROM'
            f" ({self._claims()}) GROUP BY ALL"
        )
        rows = self._database.rows(
            'SELECT part, "offset", index, list_sort(reasons), named'
            f' FROM {self.aside} FULL OUTER JOIN ({claims}) USING (part, "offset", index)'
            " WHERE NOT coalesce(len(named) = 1 AND list_contains(reasons, named[1]), false)"
            " ORDER BY ALL"
        )
        for part, offset, index, want, got in rows:
            event = "" if index == WHOLE else f" event {index}"
            where = f"dead letter of {topic}[{part}] offset {offset}{event}"
            yield Difference("letters", where, " or ".join(want or ()), " and ".join(got or ()))
        for part, offset in self._database.rows(
            f'SELECT DISTINCT part, "offset" FROM ({self._letters_of("dead")} UNION ALL'
            f" {self._letters_of('late')}) WHERE gone ORDER BY ALL"
        ):
            where = f"letter of {topic}[{part}] offset {offset}"
            yield Difference("letters", where, "", "a letter of a record that is not there")

    def late_letters(self) -> str:
        """Return a query of the late letters about records that were read."""
        return f'SELECT part, "offset", index, named FROM ({self._claims("late")})'

    def times(self) -> str:
        """Return the stream times as a table of ``part`` and ``known``."""
        rows = [
            f"({one.number}, {'NULL' if time_ms is None else time_ms}::BIGINT)"
            for one in self.partitions
            for time_ms in [one.stream_time_ms]
        ]
        return f"(VALUES {', '.join(rows)}) AS times(part, known)"

    def try_suspects(self) -> None:
        """Try the Arrow streams that letters call broken: one that can be read is a difference."""
        for partition in self.partitions:
            suspects, partition.suspects = partition.suspects, []
            streams = [value for _, value in suspects]
            found = readable(streams, self.source.inflated_bytes_max)
            for (offset, _), good in zip(suspects, found, strict=True):
                if good:
                    where = (
                        f"dead letter of {self.source.topic}[{partition.number}] offset {offset}"
                    )
                    self.differences.append(
                        Difference("letters", where, "a stream that reads well", "arrow")
                    )

    def _take_alone(self, partition: Partition, record: Record) -> None:
        """Decode a record that is not plain JSON."""
        topic, part = self.source.topic, partition.number
        broken = record.offset in self._letters.about(topic, part, "arrow")
        if broken and record.value and len(partition.suspects) < SUSPECTS_MAX:
            partition.suspects.append((record.offset, record.value))
        value, bytes_max = record.value, self.source.record_bytes_max
        is_sound = value and record.size <= bytes_max and not has_broken_name(record)
        is_stream = is_sound and form_of(record, self.source) == "arrow"
        if is_stream and not broken and self._decoder.arrow(part, record):
            partition.read["records.with_events"] += 1
            return
        content = self._reader.read(
            record, broken_arrow=broken, many=lambda: self._letters.many(topic, part, record.offset)
        )
        partition.read[f"records.{content.column}"] += 1
        if content.reason:
            self._set_aside(part, record.offset, WHOLE, frozenset({content.reason}))
            if content.column == "unreadable":
                partition.read[f"unreadable.{content.reason}"] += 1
        self._decoder.content(part, record, content)

    def _set_aside(self, part: int, offset: int, index: int, faults: Faults) -> None:
        self._faults.append((part, offset, index, " ".join(sorted(faults))))
        if index != WHOLE:
            self.partitions[part].read["events.decoded"] += 1

    def _stage(self) -> None:
        """Add decoded events: count their outcomes, and keep the classified ones."""
        database, taken = self._database, self._decoder.table
        if self.cuts:
            database.run(
                f"CREATE OR REPLACE TEMP TABLE lettered AS SELECT taken.*, named FROM {taken} AS"
                f' taken LEFT JOIN ({self._lettered()}) USING (part, "offset", index)'
            )
            taken = "lettered"
            self.cuts.find(self._passing)
        database.run(
            f"CREATE OR REPLACE TEMP TABLE staged AS SELECT *, {self._outcome()} AS outcome"
            f" FROM {taken}"
        )
        fields = "".join(f", {column}" for column in self._columns.values())
        database.run(
            f'INSERT INTO {self.table} SELECT part, "offset", index, time, greatest(here, known),'
            f" kind, nullif(id, ''){fields} FROM (SELECT *, max(time) FILTER (WHERE {_ADVANCES})"
            ' OVER (PARTITION BY part ORDER BY "offset", index ROWS BETWEEN UNBOUNDED PRECEDING'
            f" AND 1 PRECEDING) AS here FROM staged) JOIN {self.times()} USING (part)"
            f" WHERE {_CLASSIFIED}"
        )
        counted = database.all(
            f"SELECT part, outcome, count(*), max(time) FILTER (WHERE {_ADVANCES}) FROM staged"
            " GROUP BY ALL"
        )
        for part, outcome, count, time_ms in counted:
            partition = self.partitions[part]
            self._outcomes[part, outcome] += count
            if outcome != "heartbeat":
                partition.read["events.decoded"] += count
            known = partition.stream_time_ms
            if time_ms is not None and (known is None or time_ms > known):
                partition.stream_time_ms = time_ms
        lettered = ["future", "missing", "key_too_long"]
        lettered += ["unclassified"] if self.source.unclassified == "dead" else []
        if {outcome for _, outcome, _, _ in counted} & set(lettered):
            names = ", ".join(map(text, lettered))
            database.run(
                f'INSERT INTO {self.aside} SELECT part, "offset", index, [outcome] FROM staged'
                f" WHERE outcome IN ({names})"
            )

    def _lettered(self) -> str:
        """Return a query of the events whose letters name reasons that depend on layers."""
        self._letters.load()
        return (
            'SELECT part, "offset", index, min(named) AS named FROM dead_letters WHERE topic ='
            f" {text(self.source.topic)} AND named IN ({', '.join(map(text, LETTERED))})"
            " GROUP BY ALL"
        )

    def _passing(self, whole_ms: int) -> list[tuple[int, int | None, int | None]]:
        """Return, by partition, the last events before stream time reached a time, and at it."""
        return self._database.all(
            f'SELECT part, min("offset") FILTER (WHERE time = {whole_ms - 1}), min("offset")'
            f" FILTER (WHERE time >= {whole_ms}) FROM (SELECT *, {self._outcome()} AS outcome FROM"
            f" lettered) WHERE {_ADVANCES} GROUP BY part"
        )

    def _outcome(self) -> str:
        return outcome_of(self.source, self.layers, self.cuts, self.selected_by, self._columns)

    def _claims(self, kind: str = "dead") -> str:
        """Return a query of letters about records that were read and are there."""
        return (
            f'SELECT * FROM ({self._letters_of(kind)}) WHERE NOT gone AND (part, "offset") NOT IN'
            f" (FROM {self._trusted_table})"
        )

    def _letters_of(self, kind: str) -> str:
        """Return a query of letters about offsets that were read; ``gone`` if of no record."""
        spans = ", ".join(f"({one.number}, {one.first}, {one.position})" for one in self.partitions)
        return (
            'SELECT letters.part, letters."offset", index, named, "offset" < first OR'
            f' coalesce("offset" < stop, false) AS gone FROM {kind}_letters AS letters'
            f" JOIN (VALUES {spans}) AS read(part, first, position) USING (part)"
            f" ASOF LEFT JOIN {self._gaps_table} AS gaps"
            ' ON letters.part = gaps.part AND letters."offset" >= gaps.begin'
            f' WHERE topic = {text(self.source.topic)} AND "offset" < position'
        )

    def _load_offsets(self) -> None:
        """Make tables of the offsets without a record, and of those whose letters were trusted."""
        gaps = ((one.number, *gap) for one in self.partitions for gap in one.gaps)
        for table, columns, rows in (
            (self._gaps_table, "begin BIGINT, stop BIGINT", gaps),
            (self._trusted_table, '"offset" BIGINT', self._trusted),
        ):
            self._database.run(f"CREATE OR REPLACE TABLE {table} (part INTEGER, {columns})")
            self._database.insert(table, rows)


def _needed(source: Source, layers: Iterable[Layer]) -> dict[str, str]:
    """Return the fields that base layers need, with their types."""
    names: dict[str, None] = {}
    for layer in layers:
        names |= dict.fromkeys(field.name for field in layer.key)
        names |= dict.fromkeys(condition.field for condition in layer.where)
        names |= dict.fromkeys(acc.field for acc in layer.accumulators if acc.field is not None)
    types: dict[str, Any] = {field.name: field.type for field in source.fields}
    return {name: "int" if name == source.time_field else types[name] for name in names}
