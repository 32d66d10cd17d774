"""Whole: an added layer or measure tells the time it is whole from; earlier cells are not half."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import polars as pl
import pytest
from aiohttp import web
from click.testing import CliRunner

from agents.query.changes import Changes
from app.commands.query import command
from app.config.settings import Settings
from app.web.endpoint import install
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Layer, Map
from tables.query.family import KeyFilter
from tables.state.block import conform
from tables.state.cell import archive_schema
from tests.support.common import (
    DAY_MS,
    EVENTS,
    HOUR_MS,
    MemoryLog,
    dataclasses_replace,
    flight,
    small_map,
)
from tests.support.general_way import use_frames
from tests.support.live_streams import streams
from tests.support.local_worker import RAW, LocalWorker, archived
from tests.support.owned import Owned
from tests.support.waiting import until
from tests.support.web_support import METRICS, StandingView, in_thread
from treasure_map import QueryClient, QueryFailedError, Range

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
        self.house: LocalWorker | None = None

    async def revise(self, themap: Map, *, state: str = "state") -> LocalWorker:
        """End the house there is, and start one of another revision."""
        await self.close()
        await self.archive.open(themap)
        self.house = LocalWorker(self.log, self.archive, self.folder / state, themap)
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


async def work(house: LocalWorker) -> None:
    """Work until all is read and all closed cells have been acknowledged and told."""

    async def done() -> bool:
        busy = [await house.step(topic, 100) for topic in house.map.inputs()]
        waiting = [
            o.sinks.unacknowledged(one) for o in house.owners.each() for one in o.plan.layers
        ]
        known = [o.state.is_known(one) for o in house.owners.each() for one in o.plan.layers]
        return not any(busy) and not any(waiting) and all(known)

    await until(done)


@contextlib.asynccontextmanager
async def endpoint(house: LocalWorker) -> AsyncIterator[str]:
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
        # The layers that were there before have all of it, with any layer added above them.
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
    """Neither the archive nor a follower of live cells gets one."""
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
    """A coarser layer never gets the cells that it missed meanwhile."""
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


COUNTS = small_map(
    layers=tuple(
        dataclasses_replace(one, measures=HOUR.measures[:1], accumulators=(EVENTS,))
        for one in (HOUR, DAY)
    )
)
SUMS = small_map(revision=2, digest="with sums")
DAY_TOPIC = "small.layer.day"
Sums = dict[int, tuple[int, int | None]]
"""Number of events and sum of their delays, by window in days or hours."""


async def sums(house: LocalWorker, name: str, unit_ms: int) -> Sums:
    """Return the archived counts and sums of a layer."""
    rows = (await archived(house, name)).group_by("window_start").agg(
        pl.col("events").sum(),
        pl.when(pl.col("sum_delay").null_count() == 0).then(pl.col("sum_delay").sum()),
    )  # fmt: skip
    return {
        start // unit_ms: (events, total)
        for start, events, total in rows.sort("window_start").iter_rows()
    }


@pytest.mark.parametrize("small", [True, False], ids=["small", "frames"])
async def test_a_measure_is_null_in_windows_that_began_before_it(
    site: Site, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, live cells and archive have null; a step is null, not half, its count is whole."""
    if not small:
        use_frames(monkeypatch)
    site.put(HOUR_MS, 30 * HOUR_MS)
    await work(await site.revise(COUNTS))
    house = await site.revise(SUMS)
    site.put(30 * HOUR_MS + 1, 31 * HOUR_MS, 50 * HOUR_MS)
    await work(house)
    began_ms = 30 * HOUR_MS + 1
    async with endpoint(house) as url:
        with QueryClient(url) as client:
            asked = Range(0, 3 * DAY_MS, step="day", group=[])
            found = await in_thread(client.rows, "hour", asked)
            later = Range(31 * HOUR_MS, 3 * DAY_MS, step="day", group=[])
            rest = await in_thread(client.rows, "hour", later)
            hours = await in_thread(client.cells, "hour", {"origin": "JFK"}, 0, 3 * DAY_MS)
            with pytest.raises(QueryFailedError, match=f"want a range from {31 * HOUR_MS} on"):
                await in_thread(client.top, "hour", "sum_delay", Range(0, 3 * DAY_MS))
            whole = Range(31 * HOUR_MS, 3 * DAY_MS)
            top = await in_thread(client.top, "hour", "sum_delay", whole)
    measures = set(found.whole_from)
    assert measures == {"sum_delay", "mean_delay", "min_delay", "max_delay", "variance_delay"}
    assert set(found.whole_from.values()) == set(hours.whole_from.values()) == {began_ms}
    assert [row.measures["count"] for row in found.rows] == [2, 6, 2]
    for name in measures:
        assert [row.measures[name] is None for row in found.rows] == [True, True, False], name
    assert [row.measures["sum_delay"] for row in rest.rows] == [14, 14]
    assert rest.whole_from == {}
    assert [(c.measures["count"], c.measures["max_delay"]) for c in hours.cells] == [
        (1, None), (2, None), (1, 7), (1, 7),
    ]  # fmt: skip
    assert {row.measures["sum_delay"] for row in top.cells} == {14}
    site.put(4 * DAY_MS, 5 * DAY_MS)
    site.heartbeat(10 * DAY_MS)
    await house.settle()
    assert await sums(house, "hour", HOUR_MS) == {
        1: (2, None), 30: (4, None), 31: (2, 14), 50: (2, 14), 96: (2, 14), 120: (2, 14),
    }  # fmt: skip
    assert await sums(house, "day", DAY_MS) == {
        0: (2, None), 1: (6, None), 2: (2, 14), 4: (2, 14), 5: (2, 14),
    }  # fmt: skip


async def test_the_query_command_and_live_cells_say_from_when_on_a_measure_is_whole(
    site: Site,
) -> None:
    """The command says it on standard error; followers are told with every step."""
    site.put(HOUR_MS)
    await work(await site.revise(COUNTS))
    house = await site.revise(SUMS)
    site.put(HOUR_MS + 1)
    await work(house)
    async with endpoint(house) as url:
        words = ["--from", "1970-01-01", "--to", "1970-01-02", "--url", url]
        for more in ([], ["--group", "-"], ["--csv"], ["--json"]):
            result = await in_thread(CliRunner().invoke, command, ["hour", *words, *more])
            assert result.stderr == (
                "sum_delay, mean_delay, min_delay, max_delay, variance_delay: the layer has them"
                " since 1970-01-01T01:00:00.001000Z; before, they are empty\n"
            )
        async for stream in streams(f"{url}/v1/layers/hour/live?since=open&interval_ms=100"):
            told = [await stream.event() for _ in range(4)]
    assert [kind for kind, _ in told] == ["told", "cell", "cell", "told"]
    assert [cell["measures"]["max_delay"] for _, cell in told[1:3]] == [None, None]
    last = told[-1][1]["whole_from"]
    assert last["sum_delay"] == HOUR_MS + 1
    assert "count" not in last


class OlderWorkers:
    """An archive as workers of an older map write to it: in measures they do not know, null."""

    def __init__(self, archive: EmbeddedArchive) -> None:
        self._archive = archive

    def __getattr__(self, name: str) -> Any:
        """Do all else as the archive does."""
        return getattr(self._archive, name)

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Write rows that lack columns."""
        newer = SUMS.layer(layer.name)
        await self._archive.write(newer, conform(rows, archive_schema(newer)), write_times_us)


@pytest.mark.parametrize("older", [RAW, DAY_TOPIC], ids=["senders", "receivers"])
async def test_while_workers_of_both_revisions_run_a_coarser_layer_has_null_and_never_half(
    tmp_path: Path, older: str
) -> None:
    """Either worker may be restarted last; windows after that have the measure."""
    log = MemoryLog()
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(SUMS)
    given: list[Any] = [OlderWorkers(archive), archive]
    houses = [
        LocalWorker(log, one, tmp_path / f"state {themap.revision}", themap)
        for one, themap in zip(given, (COUNTS, SUMS), strict=True)
    ]
    old, new = houses
    newer = DAY_TOPIC if older == RAW else RAW
    site = Site(tmp_path)
    site.log = log
    for partition in (0, 1):
        await old.owners.restore(older, partition, 1)
        await new.owners.restore(newer, partition, 1)

    async def settled() -> bool:
        busy = [await h.step(topic, 100) for h in houses for topic in (RAW, DAY_TOPIC)]
        owners = [owner for house in houses for owner in house.owners.each()]
        waiting = [o.sinks.unacknowledged(one) for o in owners for one in o.plan.layers]
        closed = [o.state.closed_ms(one) for o in owners for one in o.plan.layers]
        return not any(busy) and not any(waiting) and min(closed) >= 29 * HOUR_MS

    site.put(HOUR_MS, 25 * HOUR_MS, 30 * HOUR_MS)
    await until(settled)
    await old.kill()
    for partition in (0, 1):
        await new.owners.restore(older, partition, 1)
    site.put(31 * HOUR_MS, 75 * HOUR_MS, 100 * HOUR_MS)
    site.heartbeat(10 * DAY_MS)
    await new.settle()
    days = await sums(new, "day", DAY_MS)
    assert days == {0: (2, None), 1: (6, None), 3: (2, 14), 4: (2, 14)}
    whole = max(
        owner.state.whole(DAY)["sum_delay"]
        for owner in new.owners.each()
        if owner.plan.topic == DAY_TOPIC
    )
    assert 30 * HOUR_MS < whole <= 2 * DAY_MS
    await new.kill()
    await archive.close()


async def test_a_measure_that_comes_back_is_null_until_then(site: Site) -> None:
    """Its old values do not come back: no worker could go on with them."""
    site.put(HOUR_MS)
    await work(await site.revise(small_map()))
    site.put(2 * HOUR_MS)
    await work(await site.revise(dataclasses_replace(COUNTS, revision=2, digest="less")))
    house = await site.revise(small_map(revision=3, digest="again"))
    site.put(2 * HOUR_MS + 1, 30 * HOUR_MS)
    site.heartbeat(10 * DAY_MS)
    await house.settle()
    async with endpoint(house) as url:
        with QueryClient(url) as client:
            hours = await in_thread(client.cells, "hour", {"origin": "JFK"}, 0, 3 * DAY_MS)
            days = await in_thread(client.rows, "hour", Range(0, 2 * DAY_MS, step="day", group=[]))
    assert [(c.measures["count"], c.measures["sum_delay"]) for c in hours.cells] == [
        (1, None), (2, None), (1, 7),
    ]  # fmt: skip
    assert [(r.measures["count"], r.measures["sum_delay"]) for r in days.rows] == [
        (6, None), (2, 14),
    ]  # fmt: skip
