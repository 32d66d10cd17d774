"""The heartbeat: a record without key and value whose header has its partition's time.

A heartbeat moves stream time and folds nothing. Whoever knows that a partition has no event before
a moment writes one: replay and ingestion to every partition, empty ones too. Its header is

    treasure-map-time: b"1388534400000"      milliseconds since the epoch, UTC, in ASCII decimal
"""

from __future__ import annotations

import re

HEARTBEAT_HEADER = "treasure-map-time"
# Int64 has 19 digits; a longer number could not be a time in any frame.
_TIME = re.compile(rb"-?[0-9]{1,19}")
_INT64_MAX = 2**63 - 1


def encode_heartbeat(time_ms: int) -> bytes:
    """Return the header value for ``time_ms``, milliseconds since the epoch."""
    return b"%d" % time_ms


def decode_heartbeat(value: bytes) -> int:
    """Return the milliseconds since the epoch that a heartbeat's header value says.

    Raises:
        ValueError: the value is not a whole number in ASCII decimal, or lies outside 64 bits.
    """
    if _TIME.fullmatch(value) is not None and abs(time_ms := int(value)) <= _INT64_MAX:
        return time_ms
    raise ValueError(
        f"cannot read heartbeat: its time is unusable; got {value[:32]!r}; want milliseconds "
        f"since the epoch in ASCII decimal; write it with encode_heartbeat"
    )
