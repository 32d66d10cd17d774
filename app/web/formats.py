"""Formats: one answer as JSON, lines of JSON, CSV or an Arrow stream, whichever a reader accepts.

JSON has everything in one document. The others are the cells alone, as a table; headers then hold
the rest of the document, and the cursor of the next page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus

import msgspec
import orjson
import polars as pl
from aiohttp import web
from msgspec import UNSET, UnsetType
from multidict import MultiMapping

from app.web.guard import HEADERS, JSON, NotAcceptableError, encoded
from tables.model.layer import Layer
from tables.query.cell_query import arrow_bytes, measure_columns
from tables.query.time_range import seconds_hint
from treasure_map import answers

ABOUT_HEADER = "Treasure-Map-Answer"
CURSOR_HEADER = "Treasure-Map-Cursor"
ABOUT_BYTES_MAX = 7_000
"""Most clients refuse a header of 8 KiB."""

_NOT_IN_HEADER = ("plan", "cells", "cursor")

COMPRESS_BYTES_MIN = 14_000
"""A smaller answer arrives at once, compressed or not: TCP begins with ten packets (RFC 6928)."""

COMPRESS_AT_ONCE_BYTES_MAX = 1 << 17
"""Bytes that are compressed in some 3 ms; more are compressed in a thread."""


@dataclasses.dataclass(frozen=True, slots=True)
class CellPage:
    """An answer before it has a format.

    Attributes:
        about: the fields of the answer, as yet without cells.
        rows: a cell frame of ``layer``, the page's rows in order.
        ends: the end of each row's window, in ms.
        cells: returns the rows as types of the client.
    """

    about: answers.Page | answers.FamilyPage
    layer: Layer
    rows: pl.DataFrame
    ends: list[int]
    cells: Callable[[], Sequence[answers.Cell | answers.Row]]


def hint_of(rows: pl.DataFrame, *times: int) -> str | UnsetType:
    """Return why an answer has no cells if its range was probably not meant."""
    hint = "" if rows.height else seconds_hint(*times)
    return f"the range has no cells: {hint}" if hint else UNSET


def table_of(answered: CellPage) -> pl.DataFrame:
    """Return the rows as readers get them: key, window, measures, and version if they have one.

    Key fields have their own names; times are epoch milliseconds.
    """
    layer, rows = answered.layer, answered.rows
    columns = [rows[field.column].alias(field.name) for field in layer.key]
    columns += [rows["window_start"], pl.Series("window_end", answered.ends, dtype=pl.Int64)]
    columns += measure_columns(layer, rows)
    if isinstance(answered.about, answers.Page):
        columns.append(rows["version"])
    return pl.DataFrame(columns)


def _arrow(answered: CellPage) -> bytes:
    """Return the rows as an Arrow IPC stream; times are timestamps of UTC in milliseconds."""
    time = pl.Datetime("ms", "UTC")
    return arrow_bytes(table_of(answered).cast({"window_start": time, "window_end": time}))


ARROW = "application/vnd.apache.arrow.stream"
FORMATS: dict[str, Callable[[CellPage], bytes]] = {
    JSON: lambda page: encoded(msgspec.structs.replace(page.about, cells=page.cells())),
    "application/x-ndjson": lambda page: b"".join(encoded(one) + b"\n" for one in page.cells()),
    "text/csv": lambda page: table_of(page).write_csv().encode(),
    ARROW: _arrow,
}


def accepted(headers: MultiMapping[str]) -> str:
    """Return the format that an Accept header prefers; of equal ones, the first named.

    Raises:
        NotAcceptableError: it does not accept any of them.
    """
    best: tuple[float, str] = (0.0, "")
    ranges = [part for value in headers.getall("Accept", ["*/*"]) for part in value.split(",")]
    for part in ranges:
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        for name in FORMATS:
            matches = kind in (name, "*/*", f"{name.partition('/')[0]}/*")
            quality = _quality(parameters)
            if matches and quality > best[0]:
                best = quality, name
    if not best[1]:
        raise NotAcceptableError(
            f"cannot answer in any of {', '.join(part.strip() for part in ranges)}; want"
            f" one of {', '.join(FORMATS)} in Accept"
        )
    return best[1]


def respond(answered: CellPage, kind: str, etag: str = "") -> web.Response:
    """Return an answer in a format; with an ETag if it will always be the same."""
    headers = dict(HEADERS)
    if etag:
        headers |= {"ETag": etag, "Cache-Control": "private, no-cache"}
    headers["Vary"] = "Accept, Accept-Encoding, Authorization"
    if kind != JSON:
        headers[ABOUT_HEADER] = _about(answered.about)
        if answered.about.cursor is not None:
            headers[CURSOR_HEADER] = answered.about.cursor
    headers["Content-Type"] = kind + ("; charset=utf-8" if kind == "text/csv" else "")
    body = FORMATS[kind](answered)
    response = web.Response(
        body=body, headers=headers, zlib_executor_size=COMPRESS_AT_ONCE_BYTES_MAX
    )
    if len(body) >= COMPRESS_BYTES_MIN and kind != ARROW:
        response.enable_compression()
    return response


def _about(about: answers.Page | answers.FamilyPage) -> str:
    """Return the fields of an answer as a header that every client accepts."""
    fields = msgspec.to_builtins(about)
    fields = {name: value for name, value in fields.items() if name not in _NOT_IN_HEADER}
    text = orjson.dumps(fields)
    if len(text) > ABOUT_BYTES_MAX:
        # It grows with the partitions of the source, beyond the header size that clients accept.
        text = orjson.dumps({**fields, "as_of": None})
    return text.decode()


def not_modified(etag: str) -> web.Response:
    """Return the answer that says that the reader's copy is still right."""
    return web.Response(
        status=HTTPStatus.NOT_MODIFIED,
        headers={**HEADERS, "ETag": etag, "Cache-Control": "private, no-cache"},
    )


def has_etag(headers: MultiMapping[str], etag: str) -> bool:
    """Return whether an If-None-Match header names an ETag."""
    given = ",".join(headers.getall("If-None-Match", []))
    return etag in (part.strip() for part in given.split(","))


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
