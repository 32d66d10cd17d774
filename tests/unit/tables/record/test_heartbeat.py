"""The heartbeat header says one moment, or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat, encode_heartbeat


def test_the_header_has_the_name_that_other_writers_use() -> None:
    """The name is part of the wire format and never changes."""
    assert HEARTBEAT_HEADER == "treasure-map-time"
    assert encode_heartbeat(1_388_534_400_000) == b"1388534400000"


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_time_comes_back_as_it_was_written(time_ms: int) -> None:
    """Every time of 64 bits survives."""
    assert decode_heartbeat(encode_heartbeat(time_ms)) == time_ms


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b" 1",
        b"1 ",
        b"1\n",
        b"+1",
        b"1.0",
        b"1_0",
        b"0x1",
        b"--1",
        b"9" * 19,
        b"1" * 20,
        b"\xff",
    ],
)
def test_junk_is_refused_with_what_was_got(junk: bytes) -> None:
    """Text that ``int`` would take generously is refused all the same."""
    with pytest.raises(ValueError, match="cannot read heartbeat"):
        decode_heartbeat(junk)
