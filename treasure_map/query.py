"""A small synchronous client of the query endpoint: standard library HTTP, msgspec for the answers.

::

    with QueryClient("http://127.0.0.1:6066") as client:
        answer = client.cells("flights_month", {"carrier": "UA"}, "2013-01-01", "2014-01-01")
        months = client.rows("flights_hour", Range("2013-01-01", "2014-01-01", step="month"))
        frame = client.frame("flights_hour", Range("2013-01-01", "2014-01-01", group=["carrier"]))
"""

from __future__ import annotations

import http.client
import ssl
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from treasure_map import requests
from treasure_map.answers import (
    Answer,
    Cell,
    Families,
    FamilyAbout,
    FamilyAnswer,
    FamilyPage,
    LiveCell,
    Page,
    QueryFailedError,
    Row,
)
from treasure_map.events import EventReader
from treasure_map.requests import Range, Request, Response, Talk, Time
from treasure_map.status import Layers, LayerStatus

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Answer", "Cell", "FamilyAnswer", "FamilyPage", "LiveCell", "Page", "QueryClient",
    "QueryFailedError", "Range", "Row",
]  # fmt: skip

Result = TypeVar("Result")

_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes of certificates whose chain ends at no authority that is known here."""


class QueryClient:
    """One connection to one worker, which answers for all of its group. Not for several threads.

    Args:
        url: scheme, host and port of the endpoint.
        token: the endpoint's bearer token, if it has one.
        timeout_s: longest wait for a connection and for each part of an answer.
        ca_file: PEM file of the authority of the endpoint's certificate; None takes the system's.

    Raises:
        ValueError: the URL is not an ``http://`` or ``https://`` address of a host.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:6066",
        token: str | None = None,
        timeout_s: float = 30.0,
        ca_file: str | None = None,
    ) -> None:
        parts = endpoint(url)
        self._base = parts.path.rstrip("/")
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._parts = parts
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._connection = self._connect()

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
        return self._run(requests.plain("/v1/map", dict[str, Any]))

    def layers(self) -> list[LayerStatus]:
        """Return the counts of each layer on the worker."""
        return self._run(requests.plain("/v1/layers", Layers)).layers

    def families(self) -> list[FamilyAbout]:
        """Return the families of the map, with the possible requests to each."""
        return self._run(requests.plain("/v1/families", Families)).families

    def ledger(self) -> dict[str, Any]:
        """Return the account of all offsets and events of the worker."""
        return self._run(requests.plain("/v1/ledger", dict[str, Any]))

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
        talk = requests.page(layer, key, from_time, to_time, limit=limit, cursor=cursor)
        return self._run(talk)

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
        talk = requests.cells(layer, key, from_time, to_time, limit=limit, page_cells=page_cells)
        return self._run(talk)

    def cells_frame(
        self,
        layer: str,
        key: Mapping[str, str | int | bool],
        from_time: Time,
        to_time: Time,
        *,
        page_cells: int | None = None,
    ) -> pl.DataFrame:
        """Return the cells of all pages as a polars frame; they come as Arrow.

        Raises:
            QueryFailedError: as :meth:`page`.
            MissingExtraError: polars is not installed.
        """
        path, parameters = requests.cells_of(layer, key, from_time, to_time)
        return self._run(requests.frame(path, parameters, page_cells))

    def rows(
        self,
        family: str,
        asked: Range,
        *,
        limit: int | None = None,
        page_rows: int | None = None,
    ) -> FamilyAnswer:
        """Return the rows of all pages of a family, at most ``limit`` of them.

        Raises:
            QueryFailedError: the endpoint refused, failed or was not reached.
        """
        return self._run(requests.rows(family, asked, limit=limit, page_rows=page_rows))

    def family_page(
        self, family: str, asked: Range, *, limit: int | None = None, cursor: str | None = None
    ) -> FamilyPage:
        """Return one page of rows of a family, with its facts and its cost.

        Raises:
            QueryFailedError: the endpoint refused, failed or was not reached.
        """
        path = f"/v1/families/{quote(family, safe='')}/cells"
        return self._run(requests.family_page(path, asked, limit, cursor))

    def frame(self, family: str, asked: Range, *, page_rows: int | None = None) -> pl.DataFrame:
        """Return all rows of a family as a polars frame; they come as Arrow.

        Raises:
            QueryFailedError: the endpoint refused, failed or was not reached.
            MissingExtraError: polars is not installed.
        """
        path = f"/v1/families/{quote(family, safe='')}/cells"
        return self._run(requests.frame(path, asked.parameters(), page_rows))

    def top(self, layer: str, by: str, asked: Range, *, n: int = 10) -> FamilyPage:
        """Return the first ``n`` keys of a layer by a measure.

        Raises:
            QueryFailedError: the endpoint refused, failed or was not reached.
        """
        return self._run(requests.top(layer, by, n, asked))

    def live(
        self, layer: str, *, since: str = "now", last_id: str = "", **parameters: str
    ) -> Iterator[LiveCell]:
        """Yield cells as they change and close, until the worker ends the stream.

        Args:
            layer: name of the layer.
            since: ``now``, or ``open``: first all cells that live tables still have.
            last_id: the last id of an earlier stream, to resume after it.
            parameters: further parameters, like ``interval_ms``.

        Raises:
            QueryFailedError: the endpoint refused or was not reached, or the id is too old.
        """
        connection = self._connect()
        target = f"{self._base}/v1/layers/{quote(layer, safe='')}/live?" + urlencode(
            {"since": since, **parameters}
        )
        headers = self._headers | {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise requests.failure(self._response(response, response.read()))
            events = EventReader()
            while line := response.readline():
                yield from events.take(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname, self._parts.port
        assert host is not None, "it was checked"
        if self._tls is not None:
            return http.client.HTTPSConnection(
                host, port, timeout=self._timeout_s, context=self._tls
            )
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s)

    def _run(self, talk: Talk[Result]) -> Result:
        """Take a talk to its end."""
        try:
            request = next(talk)
            while True:
                request = talk.send(self._answer(request))
        except StopIteration as end:
            result: Result = end.value
            return result

    def _answer(self, request: Request) -> Response:
        """Ask once, and once more if a kept connection turns out to be closed."""
        kept = self._connection.sock is not None
        try:
            try:
                return self._ask(request)
            except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
                self._connection.close()
                if not kept:
                    raise
                return self._ask(request)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from error

    def _ask(self, request: Request) -> Response:
        headers = self._headers | {"Accept": request.accept}
        self._connection.request("GET", f"{self._base}{request.target}", headers=headers)
        response = self._connection.getresponse()
        return self._response(response, response.read())

    def _response(self, response: http.client.HTTPResponse, body: bytes) -> Response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(self._url, response.status, headers, body)

    def _unreachable(self, error: Exception) -> QueryFailedError:
        return unreachable(self._url, error)


def endpoint(url: str) -> SplitResult:
    """Return the parts of an endpoint's address.

    Raises:
        ValueError: it is not an ``http://`` or ``https://`` address of a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError(f"cannot use the endpoint's address: got {url!r}; want http://host:port")
    return parts


def unreachable(url: str, error: Exception) -> QueryFailedError:
    """Return the error of an endpoint that was not reached."""
    # aiohttp wraps the errors of TLS.
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return QueryFailedError(
        f"cannot reach {url}: {str(error) or type(error).__name__}; {_advice(url, cause)}"
    )


def _advice(url: str, cause: Exception) -> str:
    """Return how to mend that an endpoint was not reached."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _UNKNOWN_AUTHORITY:
            return (
                "want the authority that signed its certificate; give its PEM file with `ca_file`,"
                " or --ca-file of a command"
            )
        return "want a certificate that is valid now and for this name"
    if isinstance(cause, ssl.SSLError):
        return "if it speaks no TLS on this port, give http:// instead of https://"
    is_cut = isinstance(cause, (http.client.HTTPException, ConnectionResetError))
    if url.startswith("http:") and (is_cut or "Disconnected" in type(cause).__name__):
        return "if it speaks TLS on this port, give https:// instead of http://"
    return "start a worker there, or give the address of one"
