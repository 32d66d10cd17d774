"""Limits: of integers, and of the records that workers write, so that brokers accept each one.

A record that no broker accepts would end its worker again at every start. A record of many
rows is therefore cut by bytes, and a thing that cannot be cut follows from one that was accepted
before: a cell's key came with a delta, a contribution's with a cell.
"""

from __future__ import annotations

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
"""The least and the greatest integer of events and keys."""

RECORD_BYTES_MAX = 16 << 20
"""The largest record of workers' topics: their ``max.message.bytes``, and the producer's."""

RECORD_OVERHEAD_BYTES = 1 << 19
"""Bytes that Kafka, headers and the fields around cells may add to a record."""

LZ4_OVERHEAD_SHARE = 250
"""LZ4 makes bytes that it cannot compress longer by one byte for each 250 at most."""

DELTA_BYTES_MAX = 15 << 20
"""Bytes of a delta. A single row of one is the largest piece of a snapshot or a contribution."""

EVICTED_MAX = 500_000
"""Window starts that one delta evicts; the others go with the next ones."""

EVICTED_BYTES_MAX = 9 * EVICTED_MAX
"""Bytes of the evicted window starts: a number has nine bytes in MessagePack at most."""

LETTER_BYTES_MAX = 15 << 20
"""Bytes of a letter's value; the rest of the record is for its headers."""

LETTER_INDEX_BYTES_MAX = 1 << 19
"""Bytes of a letter's header ``index``: more events of a record go into further letters."""

assert DELTA_BYTES_MAX + DELTA_BYTES_MAX // LZ4_OVERHEAD_SHARE + RECORD_OVERHEAD_BYTES <= (
    RECORD_BYTES_MAX
), "a snapshot's part with one row of the largest delta is a record"
assert EVICTED_BYTES_MAX + RECORD_OVERHEAD_BYTES <= DELTA_BYTES_MAX, "evictions fit a delta"
assert LETTER_BYTES_MAX + LETTER_INDEX_BYTES_MAX + RECORD_OVERHEAD_BYTES <= RECORD_BYTES_MAX, (
    "a letter is a record"
)
