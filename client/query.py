"""A small synchronous client of the query endpoint: standard library HTTP, msgspec for the answers.

::

    with QueryClient("http://127.0.0.1:6066") as client:
        answer = client.cells("flights_month", {"carrier": "UA"}, "2013-01-01", "2014-01-01")
"""

from __future__ import annotations

import datetime as dt
import http.client
import ssl
import types
from collections.abc import Mapping
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

Result = TypeVar("Result")
Time = int | str | dt.datetime | dt.date
# What the endpoint puts in a page when it is not told otherwise.
PAGE_CELLS = 1_000


class QueryFailedError(Exception):
    """A request that was not answered.

    Attributes:
        status: the HTTP status, None where no answer came.
        retry_after_s: in how many seconds the same request may do better, None if it will not.
    """

    def __init__(
        self, detail: str, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(detail)


class Cell(msgspec.Struct, frozen=True):
    """One aggregate: its key, its window ``[window_start, window_end)`` in ms, its measures.

    Integers in ``measures`` are exact, whatever their size.
    """

    key: dict[str, str | int | bool]
    window_start: int
    window_end: int
    measures: dict[str, int | float | str | None]
    version: int


class Page(msgspec.Struct, frozen=True):
    """One page of cells; ``cursor`` asks for the next one, None at the end.

    ``partial`` says that open cells of other workers are missing.
    """

    layer: str
    map_revision: int
    partial: bool
    cells: list[Cell]
    cursor: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """The cells of all pages that were read; ``more`` says that the limit cut some off."""

    layer: str
    partial: bool
    more: bool
    cells: list[Cell]


class _Problem(msgspec.Struct):
    detail: str


class QueryClient:
    """One connection to one worker. Not for several threads at once.

    Args:
        url: scheme, host and port of the endpoint.
        token: the endpoint's bearer token, if it has one.
        timeout_s: longest wait for a connection and for each part of an answer.
        ca_file: PEM file of the authority of the endpoint's certificate; None takes the system's.

    Raises:
        ValueError: the URL is no ``http://`` or ``https://`` address of a host.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:6066",
        token: str | None = None,
        timeout_s: float = 30.0,
        ca_file: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(
                f"cannot use the endpoint's address: got {url!r}; want http://host:port"
            )
        self._base = parts.path.rstrip("/")
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname,
                parts.port,
                timeout=timeout_s,
                context=ssl.create_default_context(cafile=ca_file),
            )
        else:
            self._connection = http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=timeout_s
            )

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._connection.close()

    def map(self) -> dict[str, Any]:
        """Return the map that the worker runs."""
        return self._get("/v1/map", {}, dict[str, Any])

    def layers(self) -> list[dict[str, Any]]:
        """Return what each layer holds on the worker."""
        return self._get("/v1/layers", {}, dict[str, list[dict[str, Any]]])["layers"]

    def ledger(self) -> dict[str, Any]:
        """Return where every offset and event went on the worker."""
        return self._get("/v1/ledger", {}, dict[str, Any])

    def page(
        self,
        layer: str,
        key: Mapping[str, str | int | bool],
        from_time: Time,
        to_time: Time,
        *,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """Return one page of the cells whose windows start in ``[from_time, to_time)``.

        Args:
            layer: name of the layer.
            key: values of key fields; fields not named match all.
            from_time: epoch milliseconds, RFC 3339 text, a date (UTC) or an aware datetime.
            to_time: likewise.
            limit: most cells of the page; None leaves it to the endpoint.
            cursor: that of the page before.

        Raises:
            QueryFailedError: the endpoint refused, failed or was not reached.
        """
        parameters = {f"key.{name}": _text(value) for name, value in key.items()}
        parameters |= {"from": _time(from_time), "to": _time(to_time)}
        if limit is not None:
            parameters["limit"] = str(limit)
        if cursor is not None:
            parameters["cursor"] = cursor
        page = self._get(f"/v1/layers/{quote(layer, safe='')}/cells", parameters, Page)
        for cell in page.cells:
            for name, value in cell.measures.items():
                # The endpoint writes integers beyond 64 bits as decimal text; no measure is text.
                if isinstance(value, str):
                    cell.measures[name] = int(value)
        return page

    def cells(
        self,
        layer: str,
        key: Mapping[str, str | int | bool],
        from_time: Time,
        to_time: Time,
        *,
        limit: int | None = None,
        page_cells: int | None = None,
    ) -> Answer:
        """Return the cells of all pages, at most ``limit`` of them; else as :meth:`page`.

        ``page_cells`` is how many a page may have, at most the endpoint's ``query_limit_max``; None
        leaves it to the endpoint. Every page reads its range anew, so large ones are cheaper.

        Raises:
            QueryFailedError: as :meth:`page`.
        """
        found: list[Cell] = []
        partial = False
        cursor = None
        while True:
            left = None if limit is None else limit - len(found)
            page_limit = page_cells
            if left is not None and left < (page_cells or PAGE_CELLS):
                page_limit = left
            page = self.page(layer, key, from_time, to_time, limit=page_limit, cursor=cursor)
            found += page.cells if left is None else page.cells[:left]
            partial = partial or page.partial
            cursor = page.cursor
            cut = left is not None and len(page.cells) > left
            if cursor is None or (limit is not None and len(found) >= limit):
                return Answer(page.layer, partial, cut or cursor is not None, found)

    def _get(self, path: str, parameters: Mapping[str, str], kind: type[Result]) -> Result:
        target = f"{self._base}{path}"
        if parameters:
            target += f"?{urlencode(parameters)}"
        try:
            response, body = self._exchange(target)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise QueryFailedError(
                f"cannot reach {self._url}: {str(error) or type(error).__name__};"
                " start a worker there, or give the address of one"
            ) from error
        if response.status != http.HTTPStatus.OK:
            raise _failure(self._url, response, body)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise QueryFailedError(
                f"cannot read the answer of {self._url}: {error}; want a Treasure Map's endpoint"
            ) from error

    def _exchange(self, target: str) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask once, and once more where a kept connection turns out to be closed."""
        kept = self._connection.sock is not None
        try:
            return self._ask(target)
        except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
            self._connection.close()
            if not kept:
                raise
            return self._ask(target)

    def _ask(self, target: str) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request("GET", target, headers=self._headers)
        response = self._connection.getresponse()
        return response, response.read()


def _failure(url: str, response: http.client.HTTPResponse, body: bytes) -> QueryFailedError:
    try:
        detail = msgspec.json.decode(body, type=_Problem).detail
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = f"cannot read the answer of {url}: HTTP {response.status} {response.reason}"
    after = response.headers.get("Retry-After", "")
    return QueryFailedError(detail, response.status, int(after) if after.isdigit() else None)


def _text(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _time(time: Time) -> str:
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
