"""Queries: live and archived cells are one answer, for any split of them, page after page."""

from __future__ import annotations

import base64
import random
import zlib
from typing import Any

import msgspec
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.archive.protocol import CellRange
from tables.model.errors import QueryError
from tables.model.layer import KeyField, Map
from tables.model.limits import INT64_MAX, INT64_MIN
from tables.query.cell_query import (
    CellQuery,
    Limits,
    UnknownLayerError,
    cell_rows,
    decode_cursor,
    encode_cursor,
    exact_json,
    merge_answer,
    parse_query,
)
from tables.query.time_range import TimeRange
from tables.state.cell import archive_schema
from tests.support.common import DAY_MS, HOUR_MS, dataclasses_replace, small_map
from tests.support.web_support import frame, given_cells, stored

MAP = small_map()
HOURS = MAP.layer("hour")
RANGE = [("from", "0"), ("to", str(DAY_MS))]
FIXED = TimeRange(0, DAY_MS, 0, DAY_MS)


def ask(limit: int = 1_000, cursor: str | None = None, themap: Map = MAP) -> CellQuery:
    """Return the query of a whole day of the hour layer."""
    parameters = [*RANGE, ("limit", str(limit))]
    if cursor is not None:
        parameters.append(("cursor", cursor))
    return parse_query(themap, "hour", parameters, Limits())


def pages(live: pl.DataFrame, archived: pl.DataFrame, limit: int) -> list[list[dict[str, Any]]]:
    """Return all pages of a day, as a reader that follows the cursor gets them."""
    found = []
    cursor = None
    while True:
        page, cursor, *_ = merge_answer(MAP, ask(limit, cursor), live, archived, 10_000)
        found.append(msgspec.to_builtins(cell_rows(HOURS, page)))
        if cursor is None:
            return found


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return every version of some cells, and the last one of each.

    Keys hold the characters whose order or quoting could go wrong; versions are unique in a cell.
    """
    identities = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["", "A", "a", "é", "😀", 'q"\\']),
                st.sampled_from(["UA", "B6"]),
                st.integers(0, 3),
                st.integers(0, 1),
            ),
            unique=True,
            max_size=12,
        )
    )
    every, last = [], []
    delay = st.integers(-(2**40), 2**40)
    for origin, carrier, hour, partition in identities:
        versions = sorted(draw(st.sets(st.integers(1, 50), min_size=1, max_size=3)))
        rows = [
            stored(
                origin,
                carrier,
                hour=hour,
                partition=partition,
                version=version,
                delays=draw(st.lists(delay, min_size=1, max_size=3)),
            )
            for version in versions
        ]
        every += rows
        last.append(rows[-1])
    return every, last


def expected_cells(last: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return window, key, count, sum, min, max and version of each cell, by plain Python."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in last:
        place = (row["window_start"], row["key_origin"], row["key_carrier"])
        cells.setdefault(place, []).append(row)
    # Text is in the order of its UTF-8 bytes, which is the order of code points.
    return [
        (
            *place,
            sum(row["events"] for row in rows),
            sum(row["sum_delay"] for row in rows),
            min(row["min_delay"] for row in rows),
            max(row["max_delay"] for row in rows),
            max(row["version"] for row in rows),
        )
        for place, rows in sorted(cells.items())
    ]


@pytest.mark.slow
@given(history=histories(), data=st.data(), limit=st.integers(1, 5))
def test_any_split_between_live_and_archive_gives_the_same_pages(
    history: tuple[list[dict[str, Any]], list[dict[str, Any]]], data: st.DataObject, limit: int
) -> None:
    """Stale versions anywhere, the last one in either place or both: every cell once, in order."""
    every, last = history
    live, archived = [], []
    for row in every:
        must = row in last
        place = data.draw(st.sampled_from("LAB" if must else "LABN"))
        live += [row] if place in "LB" else []
        archived += [row] if place in "AB" else []
    found = pages(
        frame(data.draw(st.permutations(live))), frame(data.draw(st.permutations(archived))), limit
    )
    assert given_cells([row for page in found for row in page]) == expected_cells(last)
    assert all(len(page) == limit for page in found[:-1])


def test_a_row_carries_key_window_measures_and_version() -> None:
    """Two source partitions merge; mean and variance are those of all their events."""
    live = frame([stored(partition=0, version=7, delays=[1, 2], hour=3)])
    archived = frame([stored(partition=1, version=4, delays=[6], hour=3)])
    page, cursor, *_ = merge_answer(MAP, ask(), live, archived, 10)
    assert cursor is None
    assert msgspec.to_builtins(cell_rows(HOURS, page)) == [
        {
            "key": {"origin": "JFK", "carrier": "UA"},
            "window_start": 3 * HOUR_MS,
            "window_end": 4 * HOUR_MS,
            "measures": {
                "count": 3,
                "sum_delay": 9,
                "mean_delay": 3.0,
                "min_delay": 1,
                "max_delay": 6,
                "variance_delay": pytest.approx(14 / 3),
            },
            "version": 7,
        }
    ]


def test_a_sum_beyond_64_bits_is_its_decimal_text() -> None:
    """No digit of a large sum is lost on its way into JSON."""
    row = stored() | {"sum_delay": 2**100 + 1}
    page, *_ = merge_answer(MAP, ask(), frame([row]), frame([]), 10)
    (cell,) = cell_rows(HOURS, page)
    assert cell.measures["sum_delay"] == str(2**100 + 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (INT64_MAX, INT64_MAX),
        (INT64_MIN, INT64_MIN),
        (INT64_MAX + 1, "9223372036854775808"),
        (INT64_MIN - 1, "-9223372036854775809"),
        (None, None),
        (2.5, 2.5),
    ],
)
def test_integers_are_numbers_up_to_64_bits(value: float | None, expected: object) -> None:
    """The rule of docs/formats/http.md, at its edges."""
    found = exact_json(value)
    assert found == expected
    assert type(found) is type(expected)


def test_more_rows_than_may_be_merged_are_refused() -> None:
    """The bound counts live and archived rows together."""
    one, other = frame([stored()]), frame([stored(hour=1)])
    assert merge_answer(MAP, ask(), one, other, 2)[0].height == 2
    with pytest.raises(QueryError, match=r"too many to merge; got 2; want at most 1"):
        merge_answer(MAP, ask(), one, other, 1)


def test_a_query_is_read_with_its_types() -> None:
    """Text becomes the key's types; the limit has a default."""
    key = (KeyField("origin", "string"), KeyField("flight", "int"), KeyField("late", "bool"))
    themap = small_map(layers=(dataclasses_replace(HOURS, key=key),))
    parameters = [*RANGE, ("key.flight", "-42"), ("key.late", "true"), ("key.origin", "1")]
    query = parse_query(themap, "hour", parameters, Limits(rows_max=9))
    assert query.cells == CellRange(0, DAY_MS, {"origin": "1", "flight": -42, "late": True}, 9)
    assert (query.limit, query.after) == (1_000, None)
    assert query.cells.key["late"] is True
    bad = [*RANGE, ("key.flight", str(2**63)), ("key.late", "yes")]
    with pytest.raises(QueryError, match=r"key.flight: not an integer.*key.late: not a bool"):
        parse_query(themap, "hour", bad, Limits())


def test_all_bad_parameters_are_named_at_once() -> None:
    """One refusal tells everything that must change."""
    parameters = [
        ("from", "noon"),
        ("form", "0"),
        ("key.orign", "JFK"),
        ("limit", "0"),
        ("limit", "5"),
        ("cursor", "!"),
    ]
    with pytest.raises(QueryError) as caught:
        parse_query(MAP, "hour", parameters, Limits())
    text = str(caught.value)
    for part in (
        "from: not a time; got 'noon'",
        "form: no such parameter; want from, to, limit, cursor, key.origin, key.carrier; did",
        "did you mean from?",
        "did you mean key.origin?",
        "limit: given twice",
        "cursor: not a cursor",
    ):
        assert part in text


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "ten", "1.0", ""])
def test_a_limit_out_of_range_is_refused(limit: str) -> None:
    """The refusal names the range."""
    with pytest.raises(QueryError, match="want a whole number from 1 to 10000"):
        parse_query(MAP, "hour", [*RANGE, ("limit", limit)], Limits())


@pytest.mark.parametrize("to", ["0", "-1"])
def test_an_empty_range_is_refused(to: str) -> None:
    """A range without a millisecond in it is a mistake, not an empty answer."""
    with pytest.raises(QueryError, match="want a time after from"):
        parse_query(MAP, "hour", [("from", "0"), ("to", to)], Limits())


def test_an_unknown_layer_names_those_there_are() -> None:
    """The refusal suggests the nearest one, if there is one."""
    with pytest.raises(UnknownLayerError, match=r"want one of hour, day; did you mean hour\?"):
        parse_query(MAP, "hours", RANGE, Limits())


def test_a_cursor_narrows_what_is_read() -> None:
    """The next page reads from the window of the last row, not from the start again."""
    cursor = encode_cursor(MAP, HOURS, (3 * HOUR_MS, ("JFK", "UA")), FIXED)
    query = ask(cursor=cursor)
    assert query.after == (3 * HOUR_MS, ("JFK", "UA"))
    assert (query.cells.from_ms, query.cells.to_ms) == (3 * HOUR_MS, DAY_MS)


def test_a_cursor_past_the_range_gives_nothing() -> None:
    """A reader that shortens its range meets the end, not an error."""
    query = ask(cursor=encode_cursor(MAP, HOURS, (5 * DAY_MS, ("JFK", "UA")), FIXED))
    assert merge_answer(MAP, query, frame([stored()]), frame([]), 10)[0].is_empty()


def encoded(*parts: object) -> str:
    """Return cursor text that no layer has given."""
    return base64.urlsafe_b64encode(orjson.dumps(parts)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "%%%",
        "a",
        "é",
        "x" * 5_000,
        base64.urlsafe_b64encode(b"not json").decode(),
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"[" * 3_000).decode(),
        encoded("day", 1, 0, "JFK", "UA"),
        encoded("hour", 1, 0, "JFK"),
        encoded("hour", 1, 0, "JFK", 7),
        encoded("hour", 1, True, "JFK", "UA"),
        encoded("hour", 1, 2**62, "JFK", "UA"),
        encoded("hour", 1, 0.0, "JFK", "UA"),
    ],
)
def test_a_foreign_cursor_is_refused(text: str) -> None:
    """Any text is a refusal and never a fault."""
    with pytest.raises(QueryError, match="not a cursor of this layer"):
        decode_cursor(MAP, HOURS, text, FIXED)


def test_a_cursor_of_another_revision_is_refused() -> None:
    """A changed map may have changed the meaning of the position."""
    cursor = encode_cursor(MAP, HOURS, (0, ("JFK", "UA")), FIXED)
    with pytest.raises(QueryError, match="got 1; want 2; ask again without cursor"):
        ask(cursor=cursor, themap=small_map(revision=2))


def test_keys_of_every_type_are_paged() -> None:
    """Integers and booleans order as themselves, in cursor and answer."""
    key = (KeyField("late", "bool"), KeyField("flight", "int"))
    layer = dataclasses_replace(HOURS, key=key)
    themap = small_map(layers=(layer,))
    rows = []
    for late in (True, False):
        for flight in (10, -3, 9):
            row = stored() | {"key_late": late, "key_flight": flight}
            rows.append({name: row[name] for name in archive_schema(layer)})
    found: list[Any] = []
    cursor = None
    for _ in rows:
        query = ask(1, cursor, themap)
        page, cursor, *_ = merge_answer(themap, query, frame(rows, layer), frame([], layer), 100)
        found += [cell.key for cell in cell_rows(layer, page)]
    assert cursor is None
    assert [(row["late"], row["flight"]) for row in found] == [
        (False, -3), (False, 9), (False, 10), (True, -3), (True, 9), (True, 10),
    ]  # fmt: skip


@pytest.mark.parametrize("letters", ["a", "\x01", "é", "random"])
def test_every_cursor_that_is_given_is_taken_back(letters: str) -> None:
    """Keys may be of any length, with any letters that JSON escapes."""
    rng = random.Random(1)
    layer = dataclasses_replace(HOURS, key=tuple(KeyField(f"k{i}", "string") for i in range(12)))
    for length in (1, 100, 1_000):
        pool = letters if letters != "random" else [chr(c) for c in range(128)]
        key = tuple("".join(rng.choices(pool, k=length)) for _ in range(12))
        cursor = encode_cursor(MAP, layer, (3 * HOUR_MS, key), FIXED)
        assert decode_cursor(MAP, layer, cursor, FIXED) == ((3 * HOUR_MS, key), FIXED)
    with pytest.raises(QueryError, match="not a cursor"):
        decode_cursor(MAP, layer, base64.urlsafe_b64encode(zlib.compress(b"\xc0")).decode(), FIXED)
