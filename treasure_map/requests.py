"""Requests to the query endpoint, and the reading of their answers, without a connection.

A *talk* is a generator that yields requests, is sent the response to each, and returns the answer.
A client has a method for each talk, which takes it to its end, whether the client blocks or not.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from treasure_map.answers import (
    Answer,
    Families,
    FamilyAbout,
    FamilyAnswer,
    FamilyPage,
    Page,
    Problem,
    QueryFailedError,
    exact,
)
from treasure_map.extras import MissingExtraError
from treasure_map.status import Cluster, Layers, LayerStatus, Ready, WorkerAbout

if TYPE_CHECKING:
    import polars as pl

Result = TypeVar("Result")
AnyPage = TypeVar("AnyPage", Page, FamilyPage)
Method = TypeVar("Method", bound=Callable[..., object])
Parameters = Sequence[tuple[str, str]]
Time = int | str | dt.datetime | dt.date
Value = str | int | bool
Values = Value | Sequence[Value]
OnPage = Callable[[dict[str, Any]], None]

PAGE_CELLS = 1_000
"""Cells that the endpoint puts in a page by default."""

_JSON = {"Accept": "application/json"}
_EXACTNESS = ("exact", "settling", "partial")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One GET: its path and query, and headers, the wanted format among them."""

    target: str
    headers: dict[str, str] = dataclasses.field(default_factory=_JSON.copy)


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
        from_time: epoch milliseconds, RFC 3339 text, a date (UTC), an aware datetime, or text that
            refers to the worker's clock, like ``"now-1h"`` or ``"today"``; None for the first
            window there is. It is rounded down to the start of a window.
        to_time: likewise, rounded up, and not in the range; None for the end of the last window.
        key: by key field, a value or several.
        prefix: by key field, the beginning of its text.
        step: one row for each of these, like ``1h``; None for the whole range.
        group: fields that rows keep; None for those of ``key`` and ``prefix``, empty for none.
        measures: the measures of the rows; None for all.
        more: further parameters, like ``deadline_ms`` or ``partial``.
    """

    from_time: Time | None = None
    to_time: Time | None = None
    key: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    prefix: Mapping[str, str] = dataclasses.field(default_factory=dict)
    step: str | None = None
    group: Sequence[str] | None = None
    measures: Sequence[str] | None = None
    more: Mapping[str, Value] = dataclasses.field(default_factory=dict)

    def parameters(self) -> list[tuple[str, str]]:
        """Return the parameters of the request."""
        found = _range(self.from_time, self.to_time)
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


def map() -> Talk[dict[str, Any]]:  # noqa: A001 - as clients have it
    """Return the map that the worker runs."""
    return _decoded((yield Request("/v1/map")), dict[str, Any])


def layers() -> Talk[list[LayerStatus]]:
    """Return the counts of each layer on the worker."""
    return _decoded((yield Request("/v1/layers")), Layers).layers


def layer_report() -> Talk[Layers]:
    """Return the counts of each layer on the worker, and the event types that no layer selects."""
    return _decoded((yield Request("/v1/layers")), Layers)


def cluster() -> Talk[list[WorkerAbout]]:
    """Return the workers of the group, with their partitions."""
    return _decoded((yield Request("/v1/cluster")), Cluster).workers


def ready() -> Talk[Ready]:
    """Return whether the worker is ready, and why not."""
    response = yield Request("/readyz")
    is_told = response.status == HTTPStatus.SERVICE_UNAVAILABLE and b'"ready"' in response.body
    return _decoded(
        dataclasses.replace(response, status=HTTPStatus.OK) if is_told else response, Ready
    )


def families() -> Talk[list[FamilyAbout]]:
    """Return the families of the map, with the possible requests to each."""
    return _decoded((yield Request("/v1/families")), Families).families


def ledger() -> Talk[dict[str, Any]]:
    """Return the account of all offsets and events of the worker."""
    return _decoded((yield Request("/v1/ledger")), dict[str, Any])


def page(
    layer: str, key: Mapping[str, Value], from_time: Time | None = None,
    to_time: Time | None = None, *, limit: int | None = None, cursor: str | None = None,
) -> Talk[Page]:  # fmt: skip
    """Return one page of the cells whose windows have a time in ``[from_time, to_time)``.

    Args:
        layer: name of the layer.
        key: values of key fields; fields not named match all.
        from_time: as of a :class:`Range`.
        to_time: likewise.
        limit: most cells of the page; None leaves it to the endpoint.
        cursor: that of the page before.
    """
    path, parameters = _cells_of(layer, key, from_time, to_time)
    return (yield from _page(Page, path, parameters, limit, cursor))


def cells(
    layer: str, key: Mapping[str, Value], from_time: Time | None = None,
    to_time: Time | None = None, *, limit: int | None = None, page_cells: int | None = None,
) -> Talk[Answer]:  # fmt: skip
    """Return the cells of all pages, at most ``limit`` of them; else as :func:`page`.

    ``page_cells`` is how many a page may have, at most the endpoint's ``query_limit_max``; None
    leaves it to the endpoint. Every page reads its range anew, so large ones are cheaper.
    """
    path, parameters = _cells_of(layer, key, from_time, to_time)
    pages, found, left = yield from _pages(Page, path, parameters, limit, page_cells)
    first, partial = pages[0], any(one.partial for one in pages)
    return Answer(
        first.layer, partial, _more(pages, left), found, first.whole_from, left, first.from_ms,
        first.to_ms,
    )  # fmt: skip


def cells_frame(
    layer: str, key: Mapping[str, Value], from_time: Time | None = None,
    to_time: Time | None = None, *, page_cells: int | None = None, limit: int | None = None,
    on_page: OnPage | None = None,
) -> Talk[pl.DataFrame]:  # fmt: skip
    """Return the cells of all pages, at most ``limit``, as a polars frame; they come as Arrow.

    ``on_page`` is called with the fields of each page but its cells, plan and cursor, so with
    ``partial`` and ``rows_after``.

    ``window_start`` and ``window_end`` are datetimes of UTC.

    Raises:
        MissingExtraError: polars is not installed.
    """
    asked = _cells_of(layer, key, from_time, to_time)
    return (yield from _frame(*asked, page_cells, limit, on_page))


def rows(
    family: str, asked: Range, *, limit: int | None = None, page_rows: int | None = None
) -> Talk[FamilyAnswer]:
    """Return the rows of all pages of a family, at most ``limit`` of them."""
    pages, found, left = yield from _pages(
        FamilyPage, _path("families", family, "cells"), asked.parameters(), limit, page_rows
    )
    first, exactness = pages[0], max((one.exactness for one in pages), key=_EXACTNESS.index)
    return FamilyAnswer(
        first.family, exactness, first.as_of, first.watermark_ms, first.data_age_ms, found,
        _more(pages, left), first.whole_from, left, first.from_ms, first.to_ms,
    )  # fmt: skip


def family_page(
    family: str, asked: Range, *, limit: int | None = None, cursor: str | None = None
) -> Talk[FamilyPage]:
    """Return one page of rows of a family, with its facts and its cost."""
    path = _path("families", family, "cells")
    return (yield from _page(FamilyPage, path, asked.parameters(), limit, cursor))


def frame(
    family: str, asked: Range, *, page_rows: int | None = None, limit: int | None = None,
    on_page: OnPage | None = None,
) -> Talk[pl.DataFrame]:  # fmt: skip
    """Return the rows of a family, at most ``limit``, as a polars frame; they come as Arrow.

    ``on_page`` is called with the fields of each page but its cells, plan and cursor, so with
    ``exactness`` and ``rows_after``.

    ``window_start`` and ``window_end`` are datetimes of UTC.

    Raises:
        MissingExtraError: polars is not installed.
    """
    path = _path("families", family, "cells")
    return (yield from _frame(path, asked.parameters(), page_rows, limit, on_page))


def top(layer: str, by: str, asked: Range, *, n: int = 10) -> Talk[FamilyPage]:
    """Return the first ``n`` keys of a layer by a measure."""
    parameters = [*asked.parameters(), ("by", by), ("n", str(n))]
    return (yield from _page(FamilyPage, _path("layers", layer, "top"), parameters, None, None))


def live(layer: str, since: str, last_id: str, parameters: Mapping[str, str]) -> Request:
    """Return the request for a stream of live cells."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
    query = urlencode({"since": since, **parameters})
    return Request(f"{_path('layers', layer, 'live')}?{query}", headers)


def told_as(talk: Callable[..., object], method: Method) -> Method:
    """Give a client's method the name, parameters, answer and text of its talk."""
    method.__name__, method.__doc__ = talk.__name__, talk.__doc__
    answer = talk.__annotations__["return"].removeprefix("Talk[").removesuffix("]")
    method.__annotations__ = {**talk.__annotations__, "return": answer}
    signature = inspect.signature(talk)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()], return_annotation=answer
    )
    return method


def _path(kind: str, name: str, part: str) -> str:
    return f"/v1/{kind}/{quote(name, safe='')}/{part}"


def _cells_of(
    layer: str, key: Mapping[str, Value], from_time: Time | None, to_time: Time | None
) -> tuple[str, list[tuple[str, str]]]:
    """Return path and parameters of a request for cells of a layer."""
    parameters = [(f"key.{name}", value_text(value)) for name, value in key.items()]
    parameters += _range(from_time, to_time)
    return _path("layers", layer, "cells"), parameters


def _range(from_time: Time | None, to_time: Time | None) -> list[tuple[str, str]]:
    """Return the parameters of a range; an open end has none."""
    ends = (("from", from_time), ("to", to_time))
    return [(name, time_text(time)) for name, time in ends if time is not None]


def _page(
    kind: type[AnyPage], path: str, parameters: Parameters, limit: int | None, cursor: str | None
) -> Talk[AnyPage]:
    found = _decoded((yield Request(_target(path, parameters, limit, cursor))), kind)
    for one in found.cells:
        exact(one.measures)
    return found


def _pages(
    kind: type[AnyPage], path: str, parameters: Parameters, limit: int | None, size: int | None
) -> Talk[tuple[list[AnyPage], list[Any], int]]:
    """Ask for all pages; return them, at most ``limit`` of their cells, and how many it cut."""
    pages: list[AnyPage] = []
    found: list[Any] = []
    while True:
        left = None if limit is None else limit - len(found)
        wanted = _page_limit(size, left, len(pages[-1].cells) if pages else PAGE_CELLS)
        one = yield from _page(kind, path, parameters, wanted, pages[-1].cursor if pages else None)
        pages.append(one)
        found += one.cells[:left]
        if one.cursor is None or (limit is not None and len(found) >= limit):
            cut = 0 if left is None else max(0, len(one.cells) - left)
            return pages, found, cut + one.rows_after


def _more(pages: Sequence[Page | FamilyPage], left: int) -> bool:
    """Return whether rows follow those that were read; a worker of 0.2.0 does not count them."""
    return left > 0 or pages[-1].cursor is not None


def _page_limit(size: int | None, left: int | None, before: int) -> int | None:
    """Return the limit of the next page; None leaves it to the endpoint.

    ``size`` is that of all pages, ``left`` the rows still wanted, ``before`` the size of the page
    before, which the endpoint chose.
    """
    return left if left is not None and left < (size or before) else size


def _frame(
    path: str, parameters: Parameters, page_rows: int | None, limit: int | None,
    on_page: OnPage | None,
) -> Talk[pl.DataFrame]:  # fmt: skip
    try:
        import polars as pl  # noqa: PLC0415 - only who wants frames has it
    except ImportError as error:
        raise MissingExtraError("cannot make a frame", "frame", error) from error
    frames: list[pl.DataFrame] = []
    cursor = None
    while True:
        left = None if limit is None else limit - sum(frame.height for frame in frames)
        size = _page_limit(page_rows, left, frames[-1].height if frames else PAGE_CELLS)
        target = _target(path, parameters, size, cursor)
        response = yield Request(target, {"Accept": "application/vnd.apache.arrow.stream"})
        _check(response)
        frames.append(pl.read_ipc_stream(io.BytesIO(response.body)))
        if on_page is not None:
            on_page(msgspec.json.decode(response.headers["treasure-map-answer"]))
        cursor = response.headers.get("treasure-map-cursor")
        if cursor is None or (left is not None and frames[-1].height >= left):
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


def _target(path: str, parameters: Parameters, limit: int | None, cursor: str | None) -> str:
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
