"""The hash of keys is part of stored data: these numbers must never change."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.model.keyhash import key_bytes, key_hash, key_hashes
from tables.model.layer import Scalar

FIELDS = st.one_of(
    st.tuples(st.just("string"), st.text()),
    st.tuples(st.just("int"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("bool"), st.booleans()),
)


@pytest.mark.parametrize(
    ("key", "data", "number"),
    [
        ((), b"", 0x00000000),
        (("JFK",), b"\x00\x00\x00\x03JFK", 0xB5F9081D),
        (("ß", ""), b"\x00\x00\x00\x02\xc3\x9f\x00\x00\x00\x00", 0xB03FA584),
        ((-1, True), b"\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0xB125C78B),
        (("EWR", 7, False), b"\x00\x00\x00\x03EWR" + bytes(7) + b"\x07\x00", 0x5A94EF6E),
    ],
    ids=str,
)
def test_a_key_has_the_hash_it_always_had(
    key: tuple[Scalar, ...], data: bytes, number: int
) -> None:
    """Canonical bytes and CRC-32 of known keys stand here as written in stored data."""
    assert key_bytes(key) == data
    assert key_hash(key) == number


def read_back(data: bytes, kinds: Sequence[str]) -> tuple[Scalar, ...]:
    """Return the values whose canonical bytes these are; ``kinds`` are the fields' types."""
    values: list[Scalar] = []
    value: Scalar
    for kind in kinds:
        if kind == "bool":
            value, size = data[0] == 1, 1
        elif kind == "int":
            value, size = int.from_bytes(data[:8], signed=True), 8
        else:
            size = 4 + int.from_bytes(data[:4])
            value = data[4:size].decode()
        values.append(value)
        data = data[size:]
    assert not data
    return tuple(values)


@pytest.mark.slow
@given(st.lists(FIELDS, max_size=4))
def test_canonical_bytes_give_the_key_back(fields: list[tuple[str, Scalar]]) -> None:
    """Different keys have different bytes, because the bytes can be read."""
    values = tuple(value for _, value in fields)
    back = read_back(key_bytes(values), [kind for kind, _ in fields])
    assert back == values
    assert [type(value) for value in back] == [type(value) for value in values]


@pytest.mark.slow
@given(st.lists(st.tuples(st.text(max_size=3), st.integers(-5, 5), st.booleans())))
def test_hashes_of_a_frame_are_those_of_its_rows(rows: list[tuple[str, int, bool]]) -> None:
    """One hash a row, in the frame's order, repeated keys included."""
    schema = {"key_a": pl.String(), "key_b": pl.Int64(), "key_c": pl.Boolean()}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    hashes = key_hashes(frame, list(schema))
    assert hashes.dtype == pl.Int64()
    assert hashes.to_list() == [key_hash(row) for row in rows]


def test_a_frame_without_key_columns_has_one_hash() -> None:
    """A layer without key has one key: the empty one."""
    frame = pl.DataFrame({"window_start": [1, 2, 3]})
    assert key_hashes(frame, []).to_list() == [zlib.crc32(b"")] * 3


def test_hashes_spread_keys_over_slots() -> None:
    """Eight slots get between 10 and 15 % each of 10,000 numbered entities."""
    frame = pl.DataFrame({"key_entity": [f"entity-{i}" for i in range(10_000)]})
    counts = (key_hashes(frame, ["key_entity"]) % 8).value_counts()["count"]
    assert counts.len() == 8
    assert 1_000 < counts.min() <= counts.max() < 1_500  # type: ignore[operator]
