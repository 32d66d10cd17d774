"""The client of :mod:`treasure_map.query` for programs on asyncio; it needs aiohttp.

::

    async with AsyncQueryClient("http://127.0.0.1:6066") as client:
        answer = await client.rows("flights_hour", Range("2013-01-01", "2014-01-01", step="month"))
        async for cell in client.live("flights_hour"):
            ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from http import HTTPStatus
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from treasure_map import requests
from treasure_map.answers import LiveCell
from treasure_map.endpoint import Endpoint
from treasure_map.events import EventReader
from treasure_map.extras import MissingExtraError
from treasure_map.requests import Request, Response, Talk

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError("cannot ask from asyncio", "async", error) from error

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _asks(
    talk: Callable[Given, Talk[Result]],
) -> Callable[Concatenate[AsyncQueryClient, Given], Coroutine[Any, Any, Result]]:
    """Return the method that takes a talk to its end."""

    async def ask(self: AsyncQueryClient, /, *args: Given.args, **named: Given.kwargs) -> Result:
        questions = talk(*args, **named)
        try:
            request = next(questions)
            while True:
                request = questions.send(await self._answer(request))
        except StopIteration as end:
            result: Result = end.value
            return result

    return requests.told_as(talk, ask)


class AsyncQueryClient(Endpoint):
    """Connections to one worker, which answers for all of its group; for any number of tasks.

    Its methods are those of :class:`treasure_map.query.QueryClient`, to be awaited.
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

    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next request opens one again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def live(
        self, layer: str, *, since: str = "now", last_id: str = "", **parameters: str
    ) -> AsyncIterator[LiveCell]:
        """Yield cells as they change and close; see :meth:`treasure_map.query.QueryClient.live`."""
        events = EventReader()
        try:
            async with self._get(requests.live(layer, since, last_id, parameters)) as response:
                if response.status != HTTPStatus.OK:
                    raise requests.failure(await self._read(response))
                async for line in response.content:
                    for cell in events.take(line):
                        yield cell
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    def _get(self, request: Request) -> Any:
        if self._session is None:
            timeout_s = self._timeout_s
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(None, connect=timeout_s, sock_read=timeout_s),
                connector=aiohttp.TCPConnector(ssl=self._tls or True),
            )
        return self._session.get(
            f"{self._url}{self._path}{request.target}", headers=request.headers
        )

    async def _answer(self, request: Request) -> Response:
        try:
            async with self._get(request) as response:
                return await self._read(response)
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    async def _read(self, response: aiohttp.ClientResponse) -> Response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(self._url, response.status, headers, await response.read())
