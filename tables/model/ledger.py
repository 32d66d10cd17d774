"""The ledger: named counts of every offset and every event by outcome, which must add up.

Names are ``records.<column>``, ``events.<column>`` and ``layer.<layer>.<column>``. Three sums are
checked against counts taken independently: records against the offsets read, events against
``events.decoded``, and each layer's columns against ``layer.<layer>.selected``. What is unreadable
or malformed is also counted by its reason, as ``unreadable.<reason>`` and ``malformed.<reason>``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Ledger = dict[str, int]

RECORD_COLUMNS = (
    "with_events", "heartbeat", "tombstone", "empty", "oversized", "unreadable", "gap",
)  # fmt: skip
"""A tombstone has no value, an empty record nothing in it. ``gap`` counts offsets that carry no
record: transaction markers and compacted records."""

UNREADABLE_REASONS = (
    "content_type", "arrow", "heartbeat", "header", "record", "batch", "contribution",
    "too_many_cells",
)  # fmt: skip
MALFORMED_REASONS = (
    "json", "missing", "wrong_type", "out_of_range", "not_finite", "key_too_long",
)  # fmt: skip
"""``json``: no JSON object in UTF-8. ``missing``: time, type or a key field is null or absent."""

LETTER_REASONS = frozenset(
    {*UNREADABLE_REASONS, *MALFORMED_REASONS, "tombstone", "empty", "oversized", "future"}
    | {"unclassified"}
)
"""Why records and events become dead letters."""

EVENT_COLUMNS = ("malformed", "future", "duplicate", "unclassified", "classified")
LAYER_COLUMNS = ("folded", "filtered", "too_late", "repeated")
"""``repeated`` counts contributions that were already known at their version or later."""


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
