"""Conversions: one value at a time and a column at once take the same values, by the same rules."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.decode.conversions import (
    NULLED,
    Converted,
    NotConvertibleError,
    convert_column,
    parse_texts,
    value_converter,
)
from agents.decode.times import TimeReader
from tables.model.layer import Field, FieldType, Source
from tests.support.common import dataclasses_replace, small_map

NUMBERS = st.from_regex(
    r"[+-]?0{0,3}[0-9]{0,25}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
TEXTS = st.one_of(
    NUMBERS,
    st.text("0123456789+-.eE tTrRuUfalsFLASE_\n\u0665\u017f", max_size=8),
    st.sampled_from(["", "true", "False", "TRUE", "nan", "inf", "-0", "12.0", "1" * 5_000]),
)
FLOATS = st.one_of(st.floats(), st.integers(-(2**70), 2**70).map(float))


def one_by_one(field: Field, values: list[Any]) -> tuple[list[Any], list[str | None]]:
    """Return each value as its field takes it, None for a wrong one, and the reasons for which."""
    convert = value_converter(field)
    found: list[Any] = []
    reasons: list[str | None] = []
    for value in values:
        try:
            found.append(convert(value))
            reasons.append(None)
        except NotConvertibleError as error:
            found.append(None)
            reasons.append("out_of_range" if "out of range" in str(error) else "wrong_type")
    return found, reasons


def at_once(found: Converted) -> tuple[list[Any], list[str | None]]:
    """Return the values of a column, and the reason of each wrong one."""
    reasons: list[str | None] = [None] * found.values.len()
    for reason, mask in found.faults:
        for row in mask.arg_true():
            assert reasons[row] is None, "a value has one reason"
            reasons[row] = reason
    return found.values.to_list(), reasons


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["int", "float", "bool"])
@given(st.lists(TEXTS, min_size=1, max_size=8))
@example(["9223372036854775807", "9223372036854775808", "-9223372036854775808.0", "1e18", "1e19"])
@example(["1e999", "-1.0e999", "007", "+5", ".5", "5.", "1_0", " 1", "1\n"])
@example(["0" * 5_000 + "7", "-" + "0" * 5_000, "+" + "0" * 20, "-" + "0" * 30 + "9" * 30])
def test_texts_are_the_same_values_alone_and_in_a_column(
    kind: FieldType, whole: bool, texts: list[str]
) -> None:
    """Numbers of many digits, signs, exponents, and all that looks like a number."""
    field = Field("x", kind, text=True, whole=whole and kind == "int")
    column = pl.Series(texts, dtype=pl.String)
    got = at_once(convert_column(column, field))
    assert got == one_by_one(field, texts)
    assert got == at_once(parse_texts(column, kind, whole=field.whole))


@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_floats_are_integers_if_they_are_whole(numbers: list[float]) -> None:
    """Beyond 64 bits they are out of range, with a fraction of another type."""
    field = Field("x", "int", whole=True)
    values, reasons = at_once(convert_column(pl.Series(numbers, dtype=pl.Float64), field))
    for number, value, reason in zip(numbers, values, reasons, strict=True):
        is_whole = math.isfinite(number) and number == int(number)
        fits = is_whole and -(2**63) <= int(number) < 2**63
        assert value == (int(number) if fits else None)
        assert reason == (None if fits else "out_of_range" if is_whole else "wrong_type")
    finite = [number for number in numbers if math.isfinite(number)]
    if finite:
        column = pl.Series(finite, dtype=pl.Float64)
        assert at_once(convert_column(column, field)) == one_by_one(field, finite)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_integers_are_texts_of_their_digits(numbers: list[int]) -> None:
    """Exact to the last digit; beyond 64 bits with sign they are out of range."""
    field = Field("x", "string", digits=True)
    column = pl.Series(numbers, dtype=pl.UInt64)
    got = at_once(convert_column(column, field))
    assert got == one_by_one(field, numbers)
    assert got[0] == [str(number) if number < 2**63 else None for number in numbers]


@pytest.mark.parametrize("kind", ["string", "int", "bool", "float"])
def test_a_field_without_options_takes_its_own_type_alone(kind: FieldType) -> None:
    """Every conversion has to be declared."""
    own = {"string": "7", "int": 7, "bool": True, "float": 7.5}
    for value in (*own.values(), "true", [7], {"x": 7}):
        (found,), (reason,) = one_by_one(Field("x", kind), [value])
        is_own = value == own[kind] and type(value) is type(own[kind])
        is_own |= (kind == "float" and type(value) is int) or (kind == "string" and value == "true")
        assert (found, reason) == ((value, None) if is_own else (None, "wrong_type"))


def test_a_wrong_value_may_stand_for_null() -> None:
    """Then there is no reason, and a mark that is counted."""
    field = Field("x", "int", text=True, null_on_error=True)
    values = ["7", 7, "x", 1.5, [], {}, 2**63, True]
    assert one_by_one(field, values) == ([7, 7, *[NULLED] * 6], [None] * 8)


def source(**changes: Any) -> Source:
    """Return a source with options of its time."""
    return dataclasses_replace(small_map().sources[0], **changes)


TIMES = st.one_of(
    st.floats(),
    st.floats(-1e11, 1e13),
    st.integers(-(10**16), 10**16).map(lambda micros: micros / 1e6),
)


@pytest.mark.parametrize("unit", [1, 1_000])
@given(st.lists(TIMES, min_size=1, max_size=8))
def test_times_with_a_fraction_are_the_same_alone_and_in_a_column(
    unit: int, numbers: list[float]
) -> None:
    """As numbers and as texts; microseconds are not lost to the binary form of a decimal."""
    reader = TimeReader(source(time_fraction=True, time_text=True, time_unit_ms=unit))

    def alone(value: Any) -> int | None:
        try:
            found = reader.value(value)
        except NotConvertibleError:
            return None
        return None if isinstance(found, str) else found

    finite = [number for number in numbers if math.isfinite(number)]
    column = pl.Series(numbers, dtype=pl.Float64)
    assert reader.floats(column).to_list() == list(map(alone, numbers))
    texts = list(map(repr, finite))
    assert reader.texts(pl.Series(texts, dtype=pl.String)).to_list() == list(map(alone, texts))
    assert list(map(alone, texts)) == list(map(alone, finite))


def test_a_time_is_cut_towards_the_past_after_the_nearest_microsecond() -> None:
    """0.29 s is less than 290 ms in binary; a time before 1970 is cut to the earlier one."""
    reader = TimeReader(source(time_fraction=True, time_unit_ms=1_000))
    for number, time_ms in (
        (1_700_000_000.29, 1_700_000_000_290), (0.001999, 1), (-0.0001, -1), (-1.5, -1_500),
        (0.0000005, 0), (0.0010000004, 1),
    ):  # fmt: skip
        assert reader.value(number) == time_ms
        assert reader.floats(pl.Series([number])).to_list() == [time_ms]


@pytest.mark.parametrize(("offset", "time_ms"), [("Z", 5_001), ("+01:00", -3_594_999)])
def test_texts_without_an_offset_have_the_declared_one(offset: str, time_ms: int) -> None:
    """Texts that have an offset keep it, and other texts are no times."""
    texts = ["1970-01-01T00:00:05.0019", "1970-01-01 00:00:05Z", "1970-01-01", "5", "", None]
    column = pl.Series(texts, dtype=pl.String)
    reader = TimeReader(source(time_offset=offset))
    assert reader.texts(column).to_list() == [time_ms, 5_000, None, None, None, None]
    nothing = TimeReader(source()).texts(column).to_list()
    assert nothing == [None, 5_000, None, None, None, None]
