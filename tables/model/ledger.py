"""The ledger: named counts of every offset and every event by outcome, which must add up.

Names are ``records.<column>``, ``events.<column>`` and ``layer.<layer>.<column>``. Three sums are
checked against counts taken independently: records against the offsets read, events against
``events.decoded``, and each layer's columns against ``layer.<layer>.selected``. An unreadable
record or a malformed event is also counted by its reason, as ``unreadable.<reason>`` or
``malformed.<reason>``. ``nulled.<source>.<field>`` counts the wrong values of a field that became
null, of events that are not malformed by others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Ledger = dict[str, int]

RecordColumn = Literal["heartbeat", "tombstone", "empty", "oversized", "unreadable", "gap"]
EventColumn = Literal["malformed", "future", "duplicate", "unclassified", "classified"]
LayerColumn = Literal["selected", "folded", "filtered", "too_late", "repeated"]

RECORD_COLUMNS = ("with_events", *get_args(RecordColumn))
"""A tombstone has no value, an empty record nothing in it. ``gap`` counts offsets that carry no
record: transaction markers and compacted records."""

EVENT_COLUMNS = get_args(EventColumn)
LAYER_COLUMNS = ("folded", "filtered", "too_late", "repeated")
"""``repeated`` counts contributions that were already known at their version or later."""

LETTER_REASONS = frozenset([
    "tombstone", "empty", "oversized", "future", "unclassified",
    # Of unreadable records; ``agents/decode/formats.py`` adds those of each format.
    "content_type", "gzip", "heartbeat", "header", "record", "batch", "contribution",
    "too_many_cells",
    # Of malformed events. ``json`` is not a JSON object in UTF-8; in a ``missing`` one time, type
    # or key field is null or absent.
    "json", "missing", "wrong_type", "out_of_range", "not_finite", "key_too_long",
])  # fmt: skip
"""The reasons of dead letters that all formats share."""


class LedgerDelta:
    """The counts that a run of records adds to its partition's ledger.

    Attributes:
        counts: the names and counts so far; a count of nothing has no name in it.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Ledger = {}

    def add_decoded(self, records: int, events: int) -> None:
        """Count records with events, and the events in them, whether they can be used or not."""
        self._add("records.with_events", records)
        self._add("events.decoded", events)

    def add_records(self, column: RecordColumn, records: int = 1, reason: str = "") -> None:
        """Count records without events; those that are unreadable by their reason too."""
        self._add(f"records.{column}", records)
        if column == "unreadable":
            self._add(f"unreadable.{reason}", records)

    def add_events(self, column: EventColumn, events: int, reason: str = "") -> None:
        """Count events by outcome; those that are malformed by their reason too."""
        self._add(f"events.{column}", events)
        if column == "malformed":
            self._add(f"malformed.{reason}", events)

    def add_nulled(self, source: str, field: str, values: int) -> None:
        """Count wrong values of a field that became null."""
        self._add(f"nulled.{source}.{field}", values)

    def add_layer(self, layer: str, column: LayerColumn, rows: int) -> None:
        """Count events, or contributions, of a layer."""
        self._add(f"layer.{layer}.{column}", rows)

    @property
    def unclassified(self) -> int:
        """Events counted as of no layer so far."""
        return self.counts.get("events.unclassified", 0)

    def _add(self, name: str, count: int) -> None:
        if count:
            self.counts[name] = self.counts.get(name, 0) + count


def add(ledger: Ledger, delta: Mapping[str, int]) -> None:
    """Add the counts of ``delta`` to ``ledger`` in place."""
    for name, count in delta.items():
        ledger[name] = ledger.get(name, 0) + count


def total(ledgers: Iterable[Mapping[str, int]]) -> Ledger:
    """Return the sum of several ledgers."""
    result: Ledger = {}
    for ledger in ledgers:
        add(result, ledger)
    return result


def has_events(ledger: Mapping[str, int]) -> bool:
    """Return whether any event was used or could have been, as far as its type goes."""
    return any(ledger.get(f"events.{column}") for column in ("classified", "unclassified"))


def imbalances(ledger: Mapping[str, int], offsets_read: int, layers: Iterable[str]) -> list[str]:
    """Return a sentence for every sum that does not add up; empty if the ledger balances."""
    found = []
    records = sum(ledger.get(f"records.{column}", 0) for column in RECORD_COLUMNS)
    if records != offsets_read:
        found.append(f"records add up to {records}, offsets read to {offsets_read}")
    events = sum(ledger.get(f"events.{column}", 0) for column in EVENT_COLUMNS)
    if events != ledger.get("events.decoded", 0):
        found.append(f"events add up to {events}, decoded were {ledger.get('events.decoded', 0)}")
    for column, kind in (("records.unreadable", "unreadable."), ("events.malformed", "malformed.")):
        reasons = sum(count for name, count in ledger.items() if name.startswith(kind))
        if reasons != ledger.get(column, 0):
            found.append(f"{kind}* add up to {reasons}, {column} is {ledger.get(column, 0)}")
    for layer in layers:
        rows = sum(ledger.get(f"layer.{layer}.{column}", 0) for column in LAYER_COLUMNS)
        selected = ledger.get(f"layer.{layer}.selected", 0)
        if rows != selected:
            found.append(f"layer {layer} adds up to {rows}, selected were {selected}")
    return found
