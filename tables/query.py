"""Queries over one layer: what is asked, and the one answer of live and archived cells together.

Everything here is pure. A reader takes the live frame first and the archived one after: a cell
leaving the table in between is then in both, never in neither, and :func:`merge_answer` keeps of
each source partition the row of the larger version before it merges source partitions.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Protocol

import orjson
import polars as pl

from tables.archive import CellRange
from tables.cell import archive_schema, latest, measures_of, merge_partitions
from tables.errors import QueryError
from tables.layer import KeyField, Layer, Map, Scalar
from tables.window import START_MS_MIN, TIME_MS_MAX

# RFC 3339 with at most milliseconds, so that no digit is dropped in silence; a date is its midnight
# in UTC.
_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d([Tt]\d\d:\d\d:\d\d(\.\d{1,3})?([Zz]|[+-]\d\d:\d\d))?", re.ASCII
)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
CURSOR_CHARACTERS_MAX = 4_096
LIMIT_DEFAULT = 1_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Row = dict[str, object]
Position = tuple[int, tuple[Scalar, ...]]


class UnknownLayerError(QueryError):
    """A layer that the map does not have; maps to HTTP 404."""


class LiveCells(Protocol):
    """The applied cells of one worker's layer tables."""

    def cells(self, layer: Layer, cells: CellRange) -> pl.DataFrame:
        """Return the archive frame of the cells held here, open and closed, in range."""

    def partitions(self, layer: Layer) -> set[int]:
        """Return the partitions of the layer's input that are owned, restored and serving here."""

    def covers(self, layer: Layer, from_ms: int) -> bool:
        """Tell whether no other worker and no archive holds a cell of ``layer`` from there on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one query; each is the setting of the same name with ``query_`` before it."""

    rows_max: int = 1_000_000
    cells_max: int = 1_000_000
    limit_max: int = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class CellQuery:
    """A checked request for one page of cells.

    ``cells`` already starts at the cursor's window; ``after`` is the position of the last row that
    was given before.
    """

    layer: Layer
    cells: CellRange
    limit: int
    after: Position | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One page: rows in order of window and key, and the next page's cursor if there is one."""

    rows: list[Row]
    cursor: str | None


def parse_time_ms(text: str) -> int:
    """Return the epoch milliseconds of ``"1356998400000"``, ``"2013-01-01T00:00:00Z"`` or a date.

    Raises:
        ValueError: the text has another form, or lies where no window starts or ends: outside the
            years 1 to 9999, but for the windows that the first and the last event time are in.
    """
    want = (
        "want epoch milliseconds or RFC 3339 with at most milliseconds, like 2013-01-01T00:00:00Z"
    )
    if _INTEGER.fullmatch(text):
        time_ms = int(text)
    elif _RFC_3339.fullmatch(text):
        full = text if len(text) > len("2013-01-01") else f"{text}T00:00:00Z"
        try:
            time = dt.datetime.fromisoformat(full.upper())
            time_ms = (time - _EPOCH) // dt.timedelta(milliseconds=1)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{error}; got {text!r}; {want}") from error
    else:
        hint = "; write a plus in a URL as %2B" if " " in text else ""
        raise ValueError(f"not a time; got {text!r}; {want}{hint}")
    if not START_MS_MIN <= time_ms <= TIME_MS_MAX + 1:
        raise ValueError(f"outside the years 1 to 9999; got {text!r}; {want}")
    return time_ms


def find_layer(themap: Map, name: str) -> Layer:
    """Return the layer ``name`` of the map.

    Raises:
        UnknownLayerError: there is none; the message names those there are.
    """
    for layer in themap.layers:
        if layer.name == name:
            return layer
    known = [layer.name for layer in themap.layers]
    raise UnknownLayerError(
        f"cannot read cells: no such layer; got {name!r}; want one of {', '.join(known)}"
        f"{_did_you_mean(name, known)}"
    )


def parse_query(
    themap: Map, layer_name: str, parameters: Iterable[tuple[str, str]], limits: Limits
) -> CellQuery:
    """Check the parameters of a request for cells: ``key.<field>``, from, to, limit and cursor.

    Raises:
        UnknownLayerError: the map has no such layer.
        QueryError: some parameters cannot be used; the message names all of them.
    """
    layer = find_layer(themap, layer_name)
    problems: list[str] = []
    given = _by_name(layer, parameters, problems)
    from_ms = _time("from", given, problems)
    to_ms = _time("to", given, problems)
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        problems.append(f"to: an empty range; got {given['to']!r}; want a time after from")
    limit = _limit(given.get("limit"), limits, problems)
    key: dict[str, Scalar] = {}
    for field in layer.key:
        text = given.get(f"key.{field.name}")
        if text is not None:
            try:
                key[field.name] = _key_value(field, text)
            except ValueError as error:
                problems.append(f"key.{field.name}: {error}")
    after: Position | None = None
    if "cursor" in given:
        try:
            after = decode_cursor(themap, layer, given["cursor"])
        except QueryError as error:
            problems.append(f"cursor: {error}")
    if problems:
        raise QueryError(f"cannot read cells of {layer.name}: {'; '.join(problems)}")
    assert from_ms is not None
    assert to_ms is not None
    start_ms = from_ms if after is None else max(from_ms, after[0])
    cells = CellRange(start_ms, max(start_ms, to_ms), key, limits.rows_max)
    return CellQuery(layer, cells, limit, after)


def merge_answer(
    themap: Map, query: CellQuery, live: pl.DataFrame, archived: pl.DataFrame, cells_max: int
) -> Answer:
    """Merge archive frames of live and archived cells into the page that ``query`` asks for.

    Args:
        themap: the map, whose revision the cursor carries.
        query: what was asked; the frames hold its range.
        live: what the worker holds; read before ``archived``.
        archived: what the archive holds.
        cells_max: most rows of both frames together.

    Raises:
        QueryError: the frames have more rows than ``cells_max``.
    """
    layer = query.layer
    count = live.height + archived.height
    if count > cells_max:
        raise QueryError(
            f"cannot read cells of {layer.name}: too many to merge; got {count};"
            f" want at most {cells_max}; ask for a shorter range or fewer keys"
        )
    columns = list(archive_schema(layer))
    rows = pl.concat([archived.select(columns), live.select(columns)])
    if query.after is not None:
        rows = rows.filter(_after(layer, query.after))
    page = merge_partitions(layer, latest(layer, rows)).head(query.limit + 1)
    more = page.height > query.limit
    page = page.head(query.limit)
    cursor = None
    if more:
        last = page.row(-1, named=True)
        key = tuple(last[name] for name in layer.key_columns)
        cursor = encode_cursor(themap, layer, (last["window_start"], key))
    return Answer(cell_rows(layer, page), cursor)


def encode_cursor(themap: Map, layer: Layer, position: Position) -> str:
    """Return the opaque text for a position in a layer's rows under this revision of the map."""
    window_start, key = position
    raw = orjson.dumps([layer.name, themap.revision, window_start, *key])
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def decode_cursor(themap: Map, layer: Layer, text: str) -> Position:
    """Return the position that :func:`encode_cursor` was given.

    Raises:
        QueryError: the text is no cursor, or one of another layer or revision of the map.
    """
    bad = QueryError("not a cursor of this layer; want the cursor of the last answer, unchanged")
    if len(text) > CURSOR_CHARACTERS_MAX:
        raise bad
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        parts = orjson.loads(raw)
    except (binascii.Error, ValueError) as error:
        raise bad from error
    types = {"string": str, "int": int, "bool": bool}
    wanted = [str, int, int, *(types[field.type] for field in layer.key)]
    if not isinstance(parts, list) or [type(part) for part in parts] != wanted:
        raise bad
    name, revision, window_start, *key = parts
    if name != layer.name or not START_MS_MIN <= window_start <= TIME_MS_MAX:
        raise bad
    if revision != themap.revision:
        raise QueryError(
            f"made under another revision of the map; got {revision}; want {themap.revision};"
            " ask again without cursor"
        )
    return window_start, tuple(key)


def exact_json(value: Scalar | None) -> Scalar | None:
    """Return a measure as JSON can carry it: an integer beyond int64 becomes its decimal text."""
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        return str(value)
    return value


def cell_rows(layer: Layer, page: pl.DataFrame) -> list[Row]:
    """Return the cells of a cell frame as JSON has them, in answers and in feeds."""
    measures = measures_of(layer, page)
    return [
        {
            "key": {field.name: row[field.column] for field in layer.key},
            "window_start": row["window_start"],
            "window_end": layer.window.end(row["window_start"]),
            "measures": {name: exact_json(value) for name, value in measure.items()},
            "version": row["version"],
        }
        for row, measure in zip(page.iter_rows(named=True), measures, strict=True)
    ]


def _after(layer: Layer, position: Position) -> pl.Expr:
    """Rows whose (window_start, key) is above ``position`` in the order of the answer."""
    window_start, key = position
    names = ["window_start", *layer.key_columns]
    pairs = list(zip(names, (window_start, *key), strict=True))

    def later(rest: pl.Expr, pair: tuple[str, Scalar]) -> pl.Expr:
        column, value = pl.col(pair[0]), pl.lit(pair[1])
        return (column > value) | ((column == value) & rest)

    return functools.reduce(later, reversed(pairs), pl.lit(value=False))


def _by_name(
    layer: Layer, parameters: Iterable[tuple[str, str]], problems: list[str]
) -> dict[str, str]:
    known = ["from", "to", "limit", "cursor", *(f"key.{field.name}" for field in layer.key)]
    given: dict[str, str] = {}
    for name, value in parameters:
        if name not in known:
            problems.append(
                f"{name}: no such parameter; want {', '.join(known)}{_did_you_mean(name, known)}"
            )
        elif name in given:
            problems.append(f"{name}: given twice; want it once")
        given[name] = value
    return given


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _time(name: str, given: Mapping[str, str], problems: list[str]) -> int | None:
    if name not in given:
        problems.append(f"{name}: missing; want epoch milliseconds or RFC 3339")
        return None
    try:
        return parse_time_ms(given[name])
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return None


def _limit(text: str | None, limits: Limits, problems: list[str]) -> int:
    if text is None:
        return min(LIMIT_DEFAULT, limits.limit_max)
    if _INTEGER.fullmatch(text) and 1 <= int(text) <= limits.limit_max:
        return int(text)
    problems.append(f"limit: got {text!r}; want a whole number from 1 to {limits.limit_max}")
    return 1


def _key_value(field: KeyField, text: str) -> Scalar:
    if field.type == "string":
        return text
    if field.type == "bool":
        if text not in ("true", "false"):
            raise ValueError(f"not a bool; got {text!r}; want true or false")
        return text == "true"
    if not _INTEGER.fullmatch(text) or not INT64_MIN <= int(text) <= INT64_MAX:
        raise ValueError(f"not an integer of 64 bits; got {text!r}; want one like 42")
    return int(text)
