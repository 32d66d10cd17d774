"""Records of topics, with the append time, headers and size that the rules ask for."""

from __future__ import annotations

from typing import Any

from app.kafka.record_batches import NO_TIME_MS
from app.kafka.record_batches import Record as Unplain
from app.verify.records import Record


def record_of(one: Any) -> Record:
    """Return a record that a scan has read."""
    time_ms = NO_TIME_MS if one.timestamp is None else one.timestamp
    if not one.headers and type(one) is not Unplain:
        return Record(one.offset, time_ms, one.value)
    headers = tuple((name, data or b"") for name, data in one.headers)
    fault = one.fault if type(one) is Unplain else None
    cut = fault.size if fault is not None and fault.reason == "cut" else 0
    return Record(one.offset, time_ms, one.value, headers, cut)
