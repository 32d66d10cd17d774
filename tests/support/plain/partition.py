"""A source partition by plain rules: ledger and cells of its records, one at a time in log order.

By docs/formats/journal.md rule 1 and docs/formats/records.md. Dead and late letters are claims:
each must be of an event or record that is set aside here, and each of these must have one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from app.verify.batches import pattern_of
from app.verify.checks import Faults
from app.verify.layers import Key, folded_as
from app.verify.records import APPEND_TIME_MS_MIN, Event, Record, RecordReader
from app.verify.report import Difference
from app.verify.windows import window_end, window_start
from tables.model.layer import Condition, Layer, Scalar, Source
from tests.support.plain.cells import PlainCell, empty_cell
from tests.support.plain.letters import PartitionLetters

KEY_BYTES_MAX = 1_024
Place = tuple[Key, int]
"""Place of a cell in its layer: key and window start."""

_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
}


class Partition:
    """The results of the records of one source partition so far.

    Args:
        source: the source.
        layers: the base layers that read it.
        number: the partition.
        letters: the letters of the side topics; grows as they are read.
        reader: reads its records.

    Attributes:
        first: the log's first offset.
        position: the offset after the last record or gap that was taken.
        stream_time_ms: the greatest event time so far; None before the first.
        ledger: counts, by the names of the ledger.
        cells: by layer and place, of this partition's events only.
        differences: letters that do not agree.
    """

    def __init__(
        self,
        source: Source,
        layers: tuple[Layer, ...],
        number: int,
        letters: PartitionLetters,
        reader: RecordReader,
    ) -> None:
        self._source = source
        self._layers = layers
        self._letters = letters
        self._reader = reader
        self._patterns = {layer.name: pattern_of(layer) for layer in layers}
        self._known: dict[str, tuple[Layer, ...]] = {}
        # By id, the oldest first: until when it is remembered, and its number among all that were.
        self._ids: dict[str, tuple[int, int]] = {}
        self._remembered = 0
        self.number = number
        self.first = 0
        self.position = 0
        self.stream_time_ms: int | None = None
        self.ledger: Counter[str] = Counter()
        self.cells: dict[str, dict[Place, PlainCell]] = {layer.name: {} for layer in layers}
        self.differences: list[Difference] = []

    def start(self, offset: int) -> None:
        """Begin at the log's first offset."""
        self.first = self.position = offset

    def take(self, record: Record) -> None:
        """Take the next record."""
        self.skip_to(record.offset)
        self.position = record.offset + 1
        claims = self._letters.dead.pop(record.offset, {})
        late = self._letters.late.pop(record.offset, frozenset())
        if "too_many_cells" in claims.get(None, ()):
            # The limit of a journal record is the worker's business: its word is taken.
            self.ledger.update({"records.unreadable": 1, "unreadable.too_many_cells": 1})
            return
        broken_arrow = "arrow" in claims.get(None, ())
        content = self._reader.read(
            record,
            broken_arrow=broken_arrow,
            many=lambda: any(place for place in claims),
        )
        self.ledger[f"records.{content.column}"] += 1
        dead: dict[int | None, Faults] = {}
        gone: set[tuple[str, int]] = set()
        if content.reason:
            dead[None] = frozenset({content.reason})
            if content.column == "unreadable":
                self.ledger[f"unreadable.{content.reason}"] += 1
        if content.column == "heartbeat":
            self._advance(content.time_ms)
        self.ledger["events.decoded"] += len(content.events)
        for place, event in enumerate(content.events):
            if isinstance(event, Event):
                self.ledger.update(f"nulled.{self._source.name}.{name}" for name in event.nulled)
            faults = event if isinstance(event, frozenset) else self._outcome(record, event)
            if not faults:
                assert isinstance(event, Event)
                self._fold(event, place, gone)
                continue
            if faults != {"unclassified"} or self._source.unclassified == "dead":
                dead[place] = faults
            self._count(self._reason(faults, claims.get(place, frozenset())))
        self._compare(record.offset, dead, claims)
        if gone != late:
            where = f"late letters of {self._source.topic}[{self.number}] offset {record.offset}"
            self.differences.append(
                Difference("letters", where, str(sorted(gone)), str(sorted(late)))
            )

    def skip_to(self, offset: int) -> None:
        """Count offsets that carry no record as gap, up to ``offset``."""
        assert self.position <= offset, "records come in order"
        self.ledger["records.gap"] += offset - self.position
        self.position = offset

    def _advance(self, time_ms: int) -> None:
        if self.stream_time_ms is None or time_ms > self.stream_time_ms:
            self.stream_time_ms = time_ms

    def _outcome(self, record: Record, event: Event) -> Faults:
        """Return why an event is not folded, empty if it is, and advance stream time past it."""
        if APPEND_TIME_MS_MIN <= record.time_ms < event.time_ms - self._source.future_skew_ms:
            return frozenset({"future"})
        layers = self._selected(event.type)
        fields = event.fields
        keys = [fields.get(field.name) for layer in layers for field in layer.key]
        if None in keys:
            return frozenset({"missing"})
        if any(isinstance(key, str) and _too_long(key) for key in keys):
            return frozenset({"key_too_long"})
        if not layers:
            self._advance(event.time_ms)
            return frozenset({"unclassified"})
        return frozenset()

    def _repeats(self, event: Event) -> bool:
        """Return whether an event's id is remembered, and remember it else (rule 17)."""
        now_ms = self.stream_time_ms
        known = self._ids.get(event.id)
        if (
            known is not None
            and (now_ms is None or now_ms < known[0])
            and self._remembered - known[1] < self._source.ids_max
        ):
            return True
        until_ms = max(
            window_end(layer, window_start(layer, event.time_ms))
            + layer.max_out_of_orderness_ms
            + layer.allowed_lateness_ms
            for layer in self._layers
        )
        if now_ms is None or now_ms < until_ms:
            self._remembered += 1
            self._ids.pop(event.id, None)
            self._ids[event.id] = (until_ms, self._remembered)
            if len(self._ids) > self._source.ids_max:
                del self._ids[next(iter(self._ids))]
        return False

    def _fold(self, event: Event, place: int, gone: set[tuple[str, int]]) -> None:
        if event.id and self._repeats(event):
            self.ledger["events.duplicate"] += 1
            self._advance(event.time_ms)
            return
        self.ledger["events.classified"] += 1
        time_ms, fields, before = event.time_ms, event.fields, self.stream_time_ms
        for layer in self._selected(event.type):
            name = folded_as(layer)
            self.ledger[f"layer.{name}.selected"] += 1
            if not all(_holds(condition, fields) for condition in layer.where):
                self.ledger[f"layer.{name}.filtered"] += 1
                continue
            start = window_start(layer, time_ms)
            if before is not None and window_end(layer, start) <= floor_ms(layer, before):
                self.ledger[f"layer.{name}.too_late"] += 1
                gone.add((layer.name, place))
                continue
            self.ledger[f"layer.{name}.folded"] += 1
            where = (tuple(fields[field.name] for field in layer.key), start)
            cell = self.cells[layer.name].get(where)
            if cell is None:
                cell = self.cells[layer.name][where] = empty_cell(layer)
            cell.events += 1
            for field, sums in cell.fields.items():
                value = fields.get(field)
                if value is not None:
                    sums.add(value)
        self._advance(time_ms)

    def _selected(self, kind: str) -> tuple[Layer, ...]:
        found = self._known.get(kind)
        if found is None:
            found = tuple(
                layer for layer in self._layers if self._patterns[layer.name].fullmatch(kind)
            )
            if len(self._known) < 100_000:  # a stream of ever new types
                self._known[kind] = found
        return found

    @staticmethod
    def _reason(faults: Faults, claimed: frozenset[str]) -> str:
        """Return which of an event's faults is counted: the one that its letter tells."""
        return min(faults & claimed or faults)

    def _count(self, reason: str) -> None:
        if reason in ("future", "unclassified"):
            self.ledger[f"events.{reason}"] += 1
        else:
            self.ledger["events.malformed"] += 1
            self.ledger[f"malformed.{reason}"] += 1

    def _compare(
        self,
        offset: int,
        dead: Mapping[int | None, Faults],
        claims: Mapping[int | None, frozenset[str]],
    ) -> None:
        """Compare the dead letters that a record must have with those that exist."""
        for place in dead.keys() | claims.keys():
            want, got = dead.get(place, frozenset()), claims.get(place, frozenset())
            if len(got) != 1 or not got <= want:
                event = "" if place is None else f" event {place}"
                where = f"dead letter of {self._source.topic}[{self.number}] offset {offset}{event}"
                self.differences.append(
                    Difference(
                        "letters", where, " or ".join(sorted(want)), " and ".join(sorted(got))
                    )
                )


def floor_ms(layer: Layer, stream_time_ms: int) -> int:
    """Return the floor of a base layer: a window that ends at or below it is sealed."""
    return stream_time_ms - layer.max_out_of_orderness_ms - layer.allowed_lateness_ms


def _holds(condition: Condition, fields: Mapping[str, Scalar]) -> bool:
    value = fields.get(condition.field)
    return value is not None and _HOLDS[condition.op](value, condition.value)


def _too_long(key: str) -> bool:
    return len(key) > KEY_BYTES_MAX // 4 and len(key.encode()) > KEY_BYTES_MAX
