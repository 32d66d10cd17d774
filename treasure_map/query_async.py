"""The client of :mod:`treasure_map.query` for programs on asyncio; it needs aiohttp.

::

    async with AsyncQueryClient("http://127.0.0.1:6066") as client:
        answer = await client.rows("flights_hour", Range("2013-01-01", "2014-01-01", step="month"))
        async for cell in client.live("flights_hour"):
            ...
"""

from __future__ import annotations

import ssl
import types
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlencode

from treasure_map import requests
from treasure_map.answers import Answer, FamilyAnswer, FamilyPage, LiveCell
from treasure_map.events import EventReader
from treasure_map.extras import MissingExtraError
from treasure_map.query import endpoint, unreachable
from treasure_map.requests import Range, Request, Response, Talk, Time

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError("cannot ask from asyncio", "async", error) from error

if TYPE_CHECKING:
    import polars as pl

Result = TypeVar("Result")


class AsyncQueryClient:
    """Connections to one worker, which answers for all of its group; for any number of tasks.

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
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._base = f"{self._url}{parts.path.rstrip('/')}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_read=timeout_s)
        self._tls = ssl.create_default_context(cafile=ca_file) if ca_file else True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next request opens one again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def map(self) -> dict[str, Any]:
        """Return the map that the worker runs."""
        return await self._run(requests.plain("/v1/map", dict[str, Any]))

    async def cells(
        self,
        layer: str,
        key: Mapping[str, str | int | bool],
        from_time: Time,
        to_time: Time,
        *,
        limit: int | None = None,
        page_cells: int | None = None,
    ) -> Answer:
        """Return the cells of a layer; see :meth:`treasure_map.query.QueryClient.cells`."""
        talk = requests.cells(layer, key, from_time, to_time, limit=limit, page_cells=page_cells)
        return await self._run(talk)

    async def rows(
        self,
        family: str,
        asked: Range,
        *,
        limit: int | None = None,
        page_rows: int | None = None,
    ) -> FamilyAnswer:
        """Return the rows of a family; see :meth:`treasure_map.query.QueryClient.rows`."""
        return await self._run(requests.rows(family, asked, limit=limit, page_rows=page_rows))

    async def frame(
        self, family: str, asked: Range, *, page_rows: int | None = None
    ) -> pl.DataFrame:
        """Return all rows of a family as a polars frame; they come as Arrow."""
        path = f"/v1/families/{quote(family, safe='')}/cells"
        return await self._run(requests.frame(path, asked.parameters(), page_rows))

    async def top(self, layer: str, by: str, asked: Range, *, n: int = 10) -> FamilyPage:
        """Return the first ``n`` keys of a layer by a measure."""
        return await self._run(requests.top(layer, by, n, asked))

    async def live(
        self, layer: str, *, since: str = "now", last_id: str = "", **parameters: str
    ) -> AsyncIterator[LiveCell]:
        """Yield cells as they change and close; see :meth:`treasure_map.query.QueryClient.live`."""
        target = f"/v1/layers/{quote(layer, safe='')}/live?" + urlencode(
            {"since": since, **parameters}
        )
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        events = EventReader()
        try:
            async with self._opened().get(f"{self._base}{target}", headers=headers) as response:
                if response.status != HTTPStatus.OK:
                    raise requests.failure(await self._response(response))
                async for line in response.content:
                    for cell in events.take(line):
                        yield cell
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(self._url, error) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls)
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=self._timeout, connector=connector
            )
        return self._session

    async def _run(self, talk: Talk[Result]) -> Result:
        """Take a talk to its end."""
        try:
            request = next(talk)
            while True:
                request = talk.send(await self._answer(request))
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _answer(self, request: Request) -> Response:
        try:
            async with self._opened().get(
                f"{self._base}{request.target}", headers={"Accept": request.accept}
            ) as response:
                return await self._response(response)
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(self._url, error) from error

    async def _response(self, response: aiohttp.ClientResponse) -> Response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(self._url, response.status, headers, await response.read())
