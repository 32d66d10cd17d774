"""A load's manifest, compared with the ledgers that workers serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tables.model.ledger import EVENT_COLUMNS, RECORD_COLUMNS


def is_applied(manifest: dict[str, Any], ledgers: Sequence[dict[str, Any]]) -> bool:
    """Return whether all of the load has been applied, by whichever worker."""
    rows = _records(manifest["topic"], ledgers)
    return all(
        (rows.get(number) or {}).get("position") == told["end"]
        for number, told in manifest["partitions"].items()
    )


def positions(manifest: dict[str, Any], ledgers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how far the load's partitions are, those that some worker has."""
    return {number: row["position"] for number, row in _records(manifest["topic"], ledgers).items()}


def differences(manifest: dict[str, Any], ledgers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the differences of the manifest from the ledgers of all workers together."""
    found = [problem for ledger in ledgers for problem in ledger["problems"]]
    rows = _records(manifest["topic"], ledgers)
    told: dict[str, Any]
    for number, told in manifest["partitions"].items():
        wanted = {c: told["ledger"].get(f"records.{c}", 0) for c in RECORD_COLUMNS}
        got = {c: rows[number][c] for c in RECORD_COLUMNS} if number in rows else None
        found += _unlike(f"partition {number}", got, wanted)
    # Contributions between layers are served among the decoded and classified events.
    columns = sorted(set(EVENT_COLUMNS) - {"classified"})
    events = _summed(ledger["events"] for ledger in ledgers)
    wanted = {column: manifest["ledger"].get(f"events.{column}", 0) for column in columns}
    found += _unlike("events", {column: events[column] for column in columns}, wanted)
    for name, told in manifest["layers"].items():
        of_layer = _summed(ledger["layers"].get(name, {}) for ledger in ledgers)
        wanted = {"repeated": 0} | {k: v for k, v in told.items() if k != "late"}
        found += _unlike(f"layer {name}", {k: of_layer[k] for k in wanted}, wanted)
    return found


def _records(topic: str, ledgers: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        number: row
        for ledger in ledgers
        for number, row in ledger["records"].get(topic, {}).items()
        if row is not None
    }


def _summed(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def _unlike(what: str, got: dict[str, int] | None, wanted: dict[str, int]) -> list[str]:
    return [] if got == wanted else [f"{what}: the ledger has {got}; the manifest says {wanted}"]
