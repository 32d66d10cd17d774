"""A small synchronous client of the query endpoint: standard library HTTP, msgspec for the answers.

::

    with QueryClient("http://127.0.0.1:6066") as client:
        answer = client.cells("flights_month", {"carrier": "UA"}, "2013-01-01", "2014-01-01")
        months = client.rows("flights_hour", Range("2013-01-01", "2014-01-01", step="month"))
        frame = client.frame("flights_hour", Range("2013-01-01", "2014-01-01", group=["carrier"]))
"""

from __future__ import annotations

import functools
import http.client
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Self, TypeVar

from treasure_map import requests
from treasure_map.answers import (
    Answer,
    Cell,
    FamilyAnswer,
    FamilyPage,
    LiveCell,
    Page,
    QueryFailedError,
    Row,
)
from treasure_map.endpoint import Endpoint
from treasure_map.events import EventReader
from treasure_map.requests import Range, Request, Response, Talk

__all__ = [
    "Answer", "Cell", "FamilyAnswer", "FamilyPage", "LiveCell", "Page", "QueryClient",
    "QueryFailedError", "Range", "Row",
]  # fmt: skip

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _asks(
    talk: Callable[Given, Talk[Result]],
) -> Callable[Concatenate[QueryClient, Given], Result]:
    """Return the method that takes a talk to its end."""

    def ask(self: QueryClient, /, *args: Given.args, **named: Given.kwargs) -> Result:
        questions = talk(*args, **named)
        try:
            request = next(questions)
            while True:
                request = questions.send(self._answer(request))
        except StopIteration as end:
            result: Result = end.value
            return result

    return requests.told_as(talk, ask)


class QueryClient(Endpoint):
    """One connection to one worker, which answers for all of its group. Not for several threads.

    It is made as an :class:`Endpoint`. Every method raises QueryFailedError if the endpoint refuses
    or is not reached; those that are not here are described in :mod:`treasure_map.requests`.
    """

    map = _asks(requests.map)
    layers = _asks(requests.layers)
    layer_report = _asks(requests.layer_report)
    cluster = _asks(requests.cluster)
    ready = _asks(requests.ready)
    families = _asks(requests.families)
    ledger = _asks(requests.ledger)
    page = _asks(requests.page)
    cells = _asks(requests.cells)
    cells_frame = _asks(requests.cells_frame)
    rows = _asks(requests.rows)
    family_page = _asks(requests.family_page)
    frame = _asks(requests.frame)
    top = _asks(requests.top)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._connection.close()

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
        try:
            response = self._sent(connection, requests.live(layer, since, last_id, parameters))
            if response.status != http.HTTPStatus.OK:
                raise requests.failure(self._read(response))
            events = EventReader()
            while line := response.readline():
                yield from events.take(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    @functools.cached_property
    def _connection(self) -> http.client.HTTPConnection:
        return self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        address = self._host, self._port
        if self._tls is None:
            return http.client.HTTPConnection(*address, timeout=self._timeout_s)
        return http.client.HTTPSConnection(*address, timeout=self._timeout_s, context=self._tls)

    def _answer(self, request: Request) -> Response:
        """Ask once, and once more if a kept connection turns out to be closed."""
        kept = self._connection.sock is not None
        try:
            try:
                return self._read(self._sent(self._connection, request))
            except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
                self._connection.close()
                if not kept:
                    raise
                return self._read(self._sent(self._connection, request))
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from error

    def _sent(
        self, connection: http.client.HTTPConnection, request: Request
    ) -> http.client.HTTPResponse:
        target = f"{self._path}{request.target}"
        connection.request("GET", target, headers=self._headers | request.headers)
        return connection.getresponse()

    def _read(self, response: http.client.HTTPResponse) -> Response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(self._url, response.status, headers, response.read())
