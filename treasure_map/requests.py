"""Requests to the query endpoint, and the reading of their answers, without a connection.

A *talk* is a generator that yields requests, is sent the response to each, and returns the answer.
So pages are followed in one place, whether a client blocks or not.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
from collections.abc import Generator, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from treasure_map.answers import (
    Answer,
    Cell,
    FamilyAnswer,
    FamilyPage,
    Page,
    Problem,
    QueryFailedError,
    exact,
)
from treasure_map.extras import MissingExtraError

if TYPE_CHECKING:
    import polars as pl

Result = TypeVar("Result")
Time = int | str | dt.datetime | dt.date
Value = str | int | bool
Values = Value | Sequence[Value]

PAGE_CELLS = 1_000
"""Cells that the endpoint puts in a page by default."""

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
_EXACTNESS = ("exact", "settling", "partial")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One GET: its path and query, and the format that is wanted."""

    target: str
    accept: str = JSON


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """A response, with the URL that sent it. Names of headers are in lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


Talk = Generator[Request, Response, Result]


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """The range and shape of a request to a family, or to the top of a layer.

    Attributes:
        from_time: epoch milliseconds, RFC 3339 text, a date (UTC) or an aware datetime.
        to_time: likewise; not in the range.
        key: by key field, a value or several.
        prefix: by key field, the beginning of its text.
        step: one row for each of these, like ``1h``; None for the whole range.
        group: fields that rows keep; None for those of ``key`` and ``prefix``, empty for none.
        measures: the measures of the rows; None for all.
        more: further parameters, like ``deadline_ms`` or ``partial``.
    """

    from_time: Time
    to_time: Time
    key: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    prefix: Mapping[str, str] = dataclasses.field(default_factory=dict)
    step: str | None = None
    group: Sequence[str] | None = None
    measures: Sequence[str] | None = None
    more: Mapping[str, Value] = dataclasses.field(default_factory=dict)

    def parameters(self) -> list[tuple[str, str]]:
        """Return the parameters of the request."""
        found = [("from", time_text(self.from_time)), ("to", time_text(self.to_time))]
        for name, values in self.key.items():
            several = [values] if isinstance(values, str | int) else values
            found += [(f"key.{name}", value_text(value)) for value in several]
        found += [(f"prefix.{name}", text) for name, text in self.prefix.items()]
        if self.step is not None:
            found.append(("step", self.step))
        if self.group is not None:
            found += [("group", name) for name in self.group] or [("group", "-")]
        found += [("measures", name) for name in self.measures or ()]
        return found + [(name, value_text(value)) for name, value in self.more.items()]


def plain(path: str, kind: type[Result]) -> Talk[Result]:
    """Ask for a document."""
    response = yield Request(path)
    return _decoded(response, kind)


def cells_of(
    layer: str, key: Mapping[str, Value], from_time: Time, to_time: Time
) -> tuple[str, list[tuple[str, str]]]:
    """Return path and parameters of a request for cells of a layer."""
    parameters = [(f"key.{name}", value_text(value)) for name, value in key.items()]
    parameters += [("from", time_text(from_time)), ("to", time_text(to_time))]
    return f"/v1/layers/{quote(layer, safe='')}/cells", parameters


def page(
    layer: str, key: Mapping[str, Value], from_time: Time, to_time: Time, *,
    limit: int | None, cursor: str | None,
) -> Talk[Page]:  # fmt: skip
    """Ask for one page of cells of a layer."""
    path, parameters = cells_of(layer, key, from_time, to_time)
    response = yield Request(_target(path, parameters, limit, cursor))
    found = _decoded(response, Page)
    for cell in found.cells:
        exact(cell.measures)
    return found


def cells(
    layer: str, key: Mapping[str, Value], from_time: Time, to_time: Time, *,
    limit: int | None, page_cells: int | None,
) -> Talk[Answer]:  # fmt: skip
    """Ask for the cells of all pages of a layer, at most ``limit`` of them."""
    found: list[Cell] = []
    partial = False
    whole_from: dict[str, int | None] | None = None
    cursor = None
    while True:
        left = None if limit is None else limit - len(found)
        one = yield from page(
            layer, key, from_time, to_time, limit=_page_limit(left, page_cells), cursor=cursor
        )
        found += one.cells if left is None else one.cells[:left]
        partial = partial or one.partial
        whole_from = one.whole_from if whole_from is None else whole_from
        cursor = one.cursor
        cut = left is not None and len(one.cells) > left
        if cursor is None or (limit is not None and len(found) >= limit):
            return Answer(one.layer, partial, cut or cursor is not None, found, whole_from)


def rows(
    family: str, asked: Range, *, limit: int | None, page_rows: int | None
) -> Talk[FamilyAnswer]:
    """Ask for the rows of all pages of a family, at most ``limit`` of them."""
    path = f"/v1/families/{quote(family, safe='')}/cells"
    found: list[Any] = []
    first: FamilyPage | None = None
    cursor = None
    exactness = "exact"
    while True:
        left = None if limit is None else limit - len(found)
        one = yield from family_page(path, asked, _page_limit(left, page_rows), cursor)
        first = first or one
        found += one.cells if left is None else one.cells[:left]
        exactness = max(exactness, one.exactness, key=_EXACTNESS.index)
        cursor = one.cursor
        cut = left is not None and len(one.cells) > left
        if cursor is None or (limit is not None and len(found) >= limit):
            return FamilyAnswer(
                first.family, exactness, first.as_of, first.watermark_ms, first.data_age_ms, found,
                cut or cursor is not None, first.whole_from,
            )  # fmt: skip


def family_page(path: str, asked: Range, limit: int | None, cursor: str | None) -> Talk[FamilyPage]:
    """Ask for one page of rows."""
    response = yield Request(_target(path, asked.parameters(), limit, cursor))
    found = _decoded(response, FamilyPage)
    for row in found.cells:
        exact(row.measures)
    return found


def top(layer: str, by: str, n: int, asked: Range) -> Talk[FamilyPage]:
    """Ask for the first keys of a layer by a measure."""
    path = f"/v1/layers/{quote(layer, safe='')}/top"
    more = {**asked.more, "by": by, "n": n}
    return (yield from family_page(path, dataclasses.replace(asked, more=more), None, None))


def frame(
    path: str, parameters: Sequence[tuple[str, str]], page_rows: int | None
) -> Talk[pl.DataFrame]:
    """Ask for all pages as Arrow; return one polars frame."""
    try:
        import polars as pl  # noqa: PLC0415 - only who wants frames has it
    except ImportError as error:
        raise MissingExtraError("cannot make a frame", "frame", error) from error
    frames = []
    cursor = None
    while True:
        response = yield Request(_target(path, parameters, page_rows, cursor), ARROW)
        _check(response)
        frames.append(pl.read_ipc_stream(io.BytesIO(response.body)))
        cursor = response.headers.get("treasure-map-cursor")
        if cursor is None:
            return pl.concat(frames)


def value_text(value: Value) -> str:
    """Return a key's value as the endpoint reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def time_text(time: Time) -> str:
    """Return a time as the endpoint reads it, cut to milliseconds.

    Raises:
        ValueError: a datetime without a time zone, which could mean two moments.
    """
    if isinstance(time, dt.datetime):
        if time.tzinfo is None:
            raise ValueError(f"cannot use time: no time zone; got {time!r}; want an aware datetime")
        return time.isoformat(timespec="milliseconds")
    if isinstance(time, dt.date):
        return time.isoformat()
    return str(time)


def _page_limit(left: int | None, page_size: int | None) -> int | None:
    """Return how many to ask for; None leaves it to the endpoint."""
    return left if left is not None and left < (page_size or PAGE_CELLS) else page_size


def _target(
    path: str, parameters: Sequence[tuple[str, str]], limit: int | None, cursor: str | None
) -> str:
    given = list(parameters)
    if limit is not None:
        given.append(("limit", str(limit)))
    if cursor is not None:
        given.append(("cursor", cursor))
    return f"{path}?{urlencode(given)}" if given else path


def _decoded(response: Response, kind: type[Result]) -> Result:
    _check(response)
    try:
        return msgspec.json.decode(response.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QueryFailedError(
            f"cannot read the answer of {response.url}: {error}; want a Treasure Map's endpoint"
        ) from error


def _check(response: Response) -> None:
    if response.status != HTTPStatus.OK:
        raise failure(response)


def failure(response: Response) -> QueryFailedError:
    """Return why a request was refused."""
    try:
        detail = msgspec.json.decode(response.body, type=Problem).detail
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = f"cannot read the answer of {response.url}: HTTP {response.status}"
    after = response.headers.get("retry-after", "")
    return QueryFailedError(detail, response.status, int(after) if after.isdigit() else None)
