"""Server-sent events of live cells, read as a client reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson


class Stream:
    """One reader of events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""

    async def event(self) -> tuple[str, Any]:
        """Return kind and data of the next event that is not a comment."""
        kind, data = "", None
        while True:
            line = (await self.response.content.readline()).decode().rstrip("\n")
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                data = orjson.loads(value)
            elif name == "id":
                self.last_id = value
            elif not line and kind:
                return kind, data

    async def until_told(self) -> list[dict[str, Any]]:
        """Return the cells up to the event that has an id."""
        cells: list[dict[str, Any]] = []
        while True:
            kind, data = await asyncio.wait_for(self.event(), 10)
            if kind != "cell":
                assert kind == "told", data
                return cells
            cells.append(data)


async def streams(url: str, **headers: str) -> AsyncIterator[Stream]:
    """Give a reader of a stream."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream"
        yield Stream(response)
