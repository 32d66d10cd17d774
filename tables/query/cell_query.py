"""Queries over one layer: the request, and one answer of live and archived cells together.

Everything here is pure. A reader takes the live frame first and the archived one after: a cell
leaving the table in between is then in both, never in neither, and :func:`merge_answer` keeps of
each source partition the row of the larger version before it merges source partitions.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import orjson
import polars as pl

from tables.archive.protocol import CellRange
from tables.measures.registry import form_of
from tables.model.errors import QueryError
from tables.model.layer import Layer, Map, Scalar
from tables.model.limits import INT64_MAX, INT64_MIN
from tables.model.window import LENGTH_MS_MAX, START_MS_MIN, TIME_MS_MAX
from tables.query.parameters import Parameter, did_you_mean, read_parameters
from tables.query.time_range import TimeRange, range_of
from tables.state.cell import (
    archive_schema,
    cell_schema,
    first_in_order,
    latest,
    measures_of,
    merge_rows,
)
from treasure_map.answers import Cell

CURSOR_CHARACTERS_MAX = 24_576
"""A key of sixteen texts of 1,024 bytes, whatever they are, takes less."""

CURSOR_BYTES_MAX = 1 << 20
"""Bytes of a cursor that was compressed, once it is inflated."""

CURSOR_JSON_BYTES_MAX = 1_024
LIMIT_DEFAULT = 1_000

Position = tuple[int, tuple[Scalar, ...]]


class UnknownLayerError(QueryError):
    """A layer that the map does not have; maps to HTTP 404."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one query; each is the setting of the same name with ``query_`` before it."""

    rows_max: int = 1_000_000
    cells_max: int = 1_000_000
    limit_max: int = 10_000
    deadline_ms_max: int = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class CellQuery:
    """A checked request for one page of cells.

    ``cells`` already starts at the cursor's window; ``after`` is the position of the last row that
    was given before. ``asked`` is the range of all pages.
    """

    layer: Layer
    cells: CellRange
    limit: int
    after: Position | None
    asked: TimeRange


def find_layer(themap: Map, name: str) -> Layer:
    """Return the layer ``name`` of the map.

    Raises:
        UnknownLayerError: the map has no such layer; the message lists the layers it has.
    """
    for layer in themap.layers:
        if layer.name == name:
            return layer
    known = [layer.name for layer in themap.layers]
    raise UnknownLayerError(
        f"cannot read cells: no such layer; got {name!r}; want one of {', '.join(known)}"
        f"{did_you_mean(name, known)}"
    )


def cells_parameters(layer: Layer, limits: Limits) -> list[Parameter]:
    """Return the parameters of a request for cells of one layer."""
    return [
        Parameter.time("from", "Windows that end after this time; left out, from the first on."),
        Parameter.time("to", "Windows that start before this time; left out, to the last."),
        Parameter.whole("limit", "Most cells of the page.", 1, limits.limit_max),
        Parameter("cursor", "That of the page before, unchanged.", str, {"type": "string"}),
        *map(Parameter.key, layer.key),
    ]


def parse_query(
    themap: Map,
    layer_name: str,
    parameters: Iterable[tuple[str, str]],
    limits: Limits,
    now_ms: int = 0,
) -> CellQuery:
    """Check the parameters of a request for cells: ``key.<field>``, from, to, limit and cursor.

    ``now_ms`` is the wall clock, which relative times refer to.

    Raises:
        UnknownLayerError: the map has no such layer.
        QueryError: some parameters cannot be used; the message names all of them.
    """
    layer = find_layer(themap, layer_name)
    problems: list[str] = []
    given = read_parameters(cells_parameters(layer, limits), parameters, problems)
    asked = range_of(given, layer.window, now_ms, problems)
    after: Position | None = None
    if "cursor" in given:
        try:
            after, asked = decode_cursor(themap, layer, given["cursor"], asked)
        except QueryError as error:
            problems.append(f"cursor: {error}")
    if problems:
        raise QueryError(f"cannot read cells of {layer.name}: {'; '.join(problems)}")
    key = {field.name: given[name] for field in layer.key if (name := f"key.{field.name}") in given}
    limit = given.get("limit", min(LIMIT_DEFAULT, limits.limit_max))
    start_ms = asked.from_ms if after is None else max(asked.from_ms, after[0])
    cells = CellRange(start_ms, max(start_ms, asked.to_ms), key, limits.rows_max)
    return CellQuery(layer, cells, limit, after, asked)


def merge_answer(
    themap: Map, query: CellQuery, live: pl.DataFrame, archived: pl.DataFrame, cells_max: int
) -> PageRows:
    """Merge archive frames of live cells, and of archived ones that were read after, into a page.

    Returns:
        As :func:`page_after`.

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
    keys = ["window_start", *layer.key_columns]
    cells = merge_rows(latest(layer, rows), keys, layer.accumulators)
    cells = cells.select(list(cell_schema(layer)))
    asked = query.asked
    if asked.is_open and query.after is None:
        starts = cells["window_start"].to_list()
        asked = asked.bounded(
            min(starts, default=None), layer.window.end(max(starts)) if starts else None
        )
    return page_after(themap, layer, cells, query.after, query.limit, asked=asked)


class PageRows(NamedTuple):
    """The rows of one page of a range, the cursor of the next, and the number of rows after it."""

    rows: pl.DataFrame
    cursor: str | None
    rows_after: int
    asked: TimeRange


def page_after(
    themap: Map,
    layer: Layer,
    cells: pl.DataFrame,
    after: Position | None,
    limit: int,
    *,
    asked: TimeRange,
) -> PageRows:
    """Return the first ``limit`` cells after a position, and the cursor of more if there are some.

    They are in order of window and key; ``cells``, a cell frame of ``layer``, may have any.
    """
    if after is not None:
        cells = cells.filter(_after(layer, after))
    page = first_in_order(cells, ["window_start", *layer.key_columns], limit)
    if cells.height <= limit:
        return PageRows(page, None, 0, asked)
    last = page.row(-1, named=True)
    position = (last["window_start"], tuple(last[name] for name in layer.key_columns))
    cursor = encode_cursor(themap, layer, position, asked)
    return PageRows(page, cursor, cells.height - limit, asked)


def encode_cursor(themap: Map, layer: Layer, position: Position, asked: TimeRange) -> str:
    """Return the opaque text for a position in a layer's rows under this revision of the map.

    It has the range too if the words of the request mean another one later.
    """
    window_start, key = position
    ends = [asked.from_ms, asked.to_ms] if asked.moves else []
    parts = [layer.name, themap.revision, window_start, *key, *ends]
    raw = orjson.dumps(parts)
    if len(raw) > CURSOR_JSON_BYTES_MAX:
        # MessagePack does not escape control characters; compression removes repetitions.
        packed = msgspec.msgpack.encode(parts)
        raw = min(packed, zlib.compress(packed), key=len)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def decode_cursor(
    themap: Map, layer: Layer, text: str, asked: TimeRange
) -> tuple[Position, TimeRange]:
    """Return the position and the range that :func:`encode_cursor` was given.

    ``asked`` is the range of the request's words, as they are now.

    Raises:
        QueryError: the text is not a cursor, or is one of another layer or revision of the map.
    """
    bad = QueryError("not a cursor of this layer; want the cursor of the last answer, unchanged")
    if len(text) > CURSOR_CHARACTERS_MAX:
        raise bad
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        parts = _cursor_parts(raw)
    except (ValueError, msgspec.MsgspecError, zlib.error) as error:
        raise bad from error
    types = {"string": str, "int": int, "bool": bool}
    ends = [int, int] if asked.moves else []
    wanted = [str, int, int, *(types[field.type] for field in layer.key), *ends]
    if not isinstance(parts, list) or [type(part) for part in parts] != wanted:
        raise bad
    name, revision, window_start, *key = parts
    if asked.moves:
        asked, key = asked.fixed(*key[-2:]), key[:-2]
    if name != layer.name or not START_MS_MIN <= window_start <= TIME_MS_MAX:
        raise bad
    if not _are_ends(layer, asked):
        raise bad
    if revision != themap.revision:
        raise QueryError(
            f"made under another revision of the map; got {revision}; want {themap.revision};"
            " ask again without cursor"
        )
    return (window_start, tuple(key)), asked


def _are_ends(layer: Layer, asked: TimeRange) -> bool:
    """Return whether a range begins and ends where windows do, in years that calendars know."""
    first, last = START_MS_MIN - LENGTH_MS_MAX, TIME_MS_MAX + 1 + LENGTH_MS_MAX
    return first <= asked.from_ms <= asked.to_ms <= last and all(
        layer.window.start(time_ms) == time_ms for time_ms in (asked.from_ms, asked.to_ms)
    )


def _cursor_parts(raw: bytes) -> Any:
    """Return the content of a cursor's bytes; the first byte shows their form."""
    if raw.startswith(b"["):
        return orjson.loads(raw)
    if raw.startswith(b"\x78"):
        # A list of MessagePack never begins with this byte.
        raw = zlib.decompressobj().decompress(raw, CURSOR_BYTES_MAX)
    return msgspec.msgpack.decode(raw)


def exact_json(value: Scalar | None) -> Scalar | None:
    """Return a measure as JSON can carry it: an integer beyond int64 becomes its decimal text."""
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        return str(value)
    return value


def cell_rows(layer: Layer, page: pl.DataFrame) -> list[Cell]:
    """Return the cells of a cell frame, as answers and feeds have them."""
    measures = measures_of(layer, page)
    return [
        Cell(
            {field.name: row[field.column] for field in layer.key},
            row["window_start"],
            layer.window.end(row["window_start"]),
            {name: exact_json(value) for name, value in measure.items()},
            row["version"],
        )
        for row, measure in zip(page.iter_rows(named=True), measures, strict=True)
    ]


def measure_columns(layer: Layer, cells: pl.DataFrame) -> list[pl.Series]:
    """Return a layer's measures of the rows of a cell frame, one column each.

    A float that is not finite is null, as in JSON; so is a sum of more digits than its type has,
    which no events can reach.
    """
    types = {measure.name: form_of(layer, measure).type for measure in layer.measures}
    # Polars takes integers beyond 64 bits into columns of 128, and these into decimals.
    wide = {name: pl.Int128() if kind.is_decimal() else kind for name, kind in types.items()}
    frame = pl.DataFrame(measures_of(layer, cells), schema=wide)
    return frame.select(_as_answered(name, kind) for name, kind in types.items()).get_columns()


def _as_answered(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    return (
        pl.when(column.is_finite()).then(column)
        if kind == pl.Float64()
        else column.cast(kind, strict=False)
    )


def arrow_bytes(rows: pl.DataFrame) -> bytes:
    """Return a frame as an Arrow stream."""
    out = io.BytesIO()
    # Older readers know no views of strings.
    rows.write_ipc_stream(out, compression="lz4", compat_level=pl.CompatLevel.oldest())
    return out.getvalue()


def _after(layer: Layer, position: Position) -> pl.Expr:
    """Rows whose (window_start, key) is above ``position`` in the order of the answer."""
    window_start, key = position
    names = ["window_start", *layer.key_columns]
    pairs = list(zip(names, (window_start, *key), strict=True))

    def later(rest: pl.Expr, pair: tuple[str, Scalar]) -> pl.Expr:
        column, value = pl.col(pair[0]), pl.lit(pair[1])
        return (column > value) | ((column == value) & rest)

    return functools.reduce(later, reversed(pairs), pl.lit(value=False))
