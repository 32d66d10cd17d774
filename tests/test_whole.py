"""Whole: what a revision adds is told from when on it is whole; what came before is never half."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from house import RAW, House, archived
from support import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, flight, small_map, until
from test_reader import Owned
from web_support import METRICS, StandingView, in_thread

from agents.changes import Changes
from app.settings import Settings
from app.web import install
from client import QueryClient, QueryFailedError, Range
from tables.archive_cache import ArchiveCache
from tables.archive_embedded import EmbeddedArchive
from tables.family import KeyFilter
from tables.layer import Layer, Map

HOUR, DAY = small_map().layers
OTHER = dataclasses_replace(HOUR, name="other")
MERGED = dataclasses_replace(HOUR, name="merged", key=HOUR.key[1:], merged=True)
MERGED_DAY = dataclasses_replace(DAY, name="merged_day", finer="merged")
FEWER = small_map(layers=(HOUR,))
MORE = small_map(
    layers=(HOUR, DAY, OTHER, MERGED, MERGED_DAY), revision=2, digest="with more layers"
)
NEW = [OTHER, MERGED, DAY, MERGED_DAY]
FORMATS = ["application/json", "application/x-ndjson", "text/csv",
           "application/vnd.apache.arrow.stream"]  # fmt: skip


class Site:
    """One archive and one log, on which houses of one revision follow those of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = MemoryLog()
        self.archive = EmbeddedArchive(folder / "archive")
        self.house: House | None = None

    async def revise(self, themap: Map, *, state: str = "state") -> House:
        """End the house there is, and start one of another revision."""
        await self.close()
        await self.archive.open(themap)
        self.house = House(self.log, self.archive, self.folder / state, themap)
        await self.house.restore()
        return self.house

    async def close(self) -> None:
        """End the house and the archive."""
        if self.house is not None:
            await self.house.kill()
            await self.archive.close()
            self.house = None

    def put(self, *times: int, delay: int = 7) -> None:
        """Write an event of each time to both partitions."""
        for at in times:
            for partition, origin in enumerate(("LGA", "JFK")):
                self.log.put(RAW, partition, flight(at, origin, "UA", delay))

    def heartbeat(self, time_ms: int) -> None:
        """Move the time of both partitions."""
        for partition in (0, 1):
            self.log.put(RAW, partition, time_ms)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Return an empty site that is closed at the end."""
    made = Site(tmp_path)
    yield made
    await made.close()


async def work(house: House) -> None:
    """Work until all is read and what is closed has been acknowledged and told."""

    async def done() -> bool:
        busy = [await house.step(topic, 100) for topic in house.map.inputs()]
        waiting = [o.unacknowledged(one) for o in house.owners.each() for one in o.plan.layers]
        known = [o.state.is_known(one) for o in house.owners.each() for one in o.plan.layers]
        return not any(busy) and not any(waiting) and all(known)

    await until(done)


@contextlib.asynccontextmanager
async def endpoint(house: House) -> AsyncIterator[str]:
    """Serve a house over HTTP."""
    live: Any = Owned(house)
    app = web.Application()
    cache = ArchiveCache(house.archive, 0)
    view = StandingView(house.map, house.archive, live)
    install(app, view, Settings(), live=live, cache=cache, metrics=lambda: METRICS)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(url: str, kind: str = FORMATS[0]) -> tuple[int, str]:
    """Return status and text of an answer."""
    async with aiohttp.ClientSession() as session:
        response = await session.get(url, headers={"Accept": kind})
        return response.status, (await response.read()).decode(errors="replace")


def paths(layer: Layer, from_ms: int, to_ms: int) -> list[str]:
    """Return the ways of asking for a layer's cells of a range."""
    span = f"from={from_ms}&to={to_ms}"
    found = [f"/v1/layers/{layer.name}/cells?{span}"]
    if layer.finer is None:
        found.append(f"/v1/families/{layer.name}/cells?{span}&group=-")
        found.append(f"/v1/layers/{layer.name}/top?{span}&by=count")
    return found


@pytest.mark.parametrize("more", [[], [30 * HOUR_MS + 1, 31 * HOUR_MS]], ids=["at once", "later"])
async def test_what_came_before_the_map_had_a_layer_is_refused_however_it_is_asked(
    site: Site, more: list[int]
) -> None:
    """Right after the restart, when nothing was sent yet, and when events have come since."""
    site.put(HOUR_MS, 30 * HOUR_MS)
    await work(await site.revise(FEWER))
    house = await site.revise(MORE)
    site.put(*more)
    await work(house)
    async with endpoint(house) as url:
        for layer in NEW:
            for path in paths(layer, 0, 2 * DAY_MS):
                for kind in FORMATS:
                    status, text = await ask(url + path, kind)
                    assert (status, "only since" in text) == (400, True), (path, kind, text)
            with QueryClient(url) as client, pytest.raises(QueryFailedError, match="only since"):
                await in_thread(client.cells, layer.name, {}, 0, 2 * DAY_MS)
        # The layers that were there before have all of it, whatever was added above them.
        with QueryClient(url) as client:
            asked = Range(0, 2 * DAY_MS, step="day", group=[])
            found = await in_thread(client.rows, "hour", asked)
        assert found.exactness == "exact"
        assert [row.measures["count"] for row in found.rows] == [2, 2 + 2 * len(more)]


async def test_from_when_on_a_layer_is_whole_it_is_answered(site: Site) -> None:
    """The refusal names the time, and from there on the answer is exact."""
    site.put(HOUR_MS, 30 * HOUR_MS)
    await work(await site.revise(FEWER))
    house = await site.revise(MORE)
    site.put(30 * HOUR_MS + 1, 31 * HOUR_MS, 49 * HOUR_MS, 50 * HOUR_MS)
    site.heartbeat(60 * HOUR_MS)
    await work(house)
    async with endpoint(house) as url:
        for layer in NEW:
            start = 31 * HOUR_MS if layer.finer is None else 2 * DAY_MS
            for path in paths(layer, start, 4 * DAY_MS):
                status, text = await ask(url + path)
                assert status == 200, text
                assert "events" not in text
            _, refused = await ask(url + paths(layer, 0, 4 * DAY_MS)[0])
            assert f"want a range from {start} on" in refused
            with QueryClient(url) as client:
                answer = await in_thread(client.cells, layer.name, {}, start, 4 * DAY_MS)
            assert not answer.partial
            wanted = 6 if layer.finer is None else 4
            assert sum(cell.measures["count"] for cell in answer.cells) == wanted  # type: ignore[misc]


async def test_half_a_window_goes_nowhere(site: Site) -> None:
    """Neither into the archive nor to those who follow live cells."""
    site.put(HOUR_MS, 30 * HOUR_MS)
    await work(await site.revise(FEWER))
    house = await site.revise(MORE)
    site.put(30 * HOUR_MS + 1, 31 * HOUR_MS)
    await work(house)
    for layer in NEW:
        changes = Changes(layer, KeyFilter(), Owned(house), ArchiveCache(site.archive, 0), 10**6)
        told = (await changes.since({})).rows["window_start"].to_list()
        assert set(told) == ({31 * HOUR_MS} if layer.finer is None else set()), layer.name
    site.heartbeat(10 * DAY_MS)
    await house.settle()
    for layer in NEW:
        starts = (await archived(house, layer.name))["window_start"].to_list()
        assert set(starts) == ({31 * HOUR_MS} if layer.finer is None else set()), layer.name
    hours = await archived(house, "hour")
    assert hours["events"].sum() == 8


async def test_a_layer_that_comes_back_is_whole_from_then_on(site: Site) -> None:
    """What a coarser layer did not get meanwhile it never will."""
    with_day = small_map(layers=(HOUR, DAY), revision=3, digest="again")
    site.put(HOUR_MS)
    await work(await site.revise(small_map()))
    site.put(26 * HOUR_MS, 28 * HOUR_MS)
    await work(await site.revise(dataclasses_replace(FEWER, revision=2, digest="without")))
    house = await site.revise(with_day)
    site.put(50 * HOUR_MS, 80 * HOUR_MS)
    site.heartbeat(90 * HOUR_MS)
    await work(house)
    async with endpoint(house) as url:
        status, text = await ask(f"{url}/v1/layers/day/cells?from=0&to={4 * DAY_MS}")
        assert (status, f"want a range from {2 * DAY_MS} on" in text) == (400, True), text
        with QueryClient(url) as client:
            answer = await in_thread(client.cells, "day", {}, 2 * DAY_MS, 4 * DAY_MS)
            asked = Range(0, 4 * DAY_MS, step="day", group=[])
            found = await in_thread(client.rows, "hour", asked)
    assert [cell.measures["count"] for cell in answer.cells] == [2, 2]
    assert [row.measures["count"] for row in found.rows] == [2, 4, 2, 2]
