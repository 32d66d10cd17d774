"""Peers: any worker answers for all, in time, and names missing partitions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import agents.query.reader
from agents import outage
from app.config.settings import Settings
from app.peers.remote_owners import Peers
from app.peers.wire import CONTENT_TYPE, PATH, decode_reads, encode_reads
from app.trust.proof import HEADER, PeerKey
from app.web.access import peer_key
from app.web.endpoint import install
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.cost import QueryCost
from tables.model.errors import QueryError
from tables.model.layer import KeyField, Map
from tables.model.topic_partition import TopicPartition
from tables.query.family import KeyFilter
from tables.query.live import LiveJob, LiveRead, LiveRows
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, small_map
from tests.support.local_worker import RAW, LocalWorker, fill
from tests.support.servers import free_ports
from tests.support.waiting import beats, until
from tests.support.web_support import METRICS, FrameCells, StandingView, frame, get

MAP = small_map()
MERGED = small_map(
    sources=(dataclasses_replace(MAP.sources[0], keyed_by=()),),
    layers=(dataclasses_replace(MAP.layers[0], merged=True), MAP.layers[1]),
)
HOURS, DAYS = MAP.layers
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
RANGE = f"from=0&to={4 * DAY_MS}"
FAMILY = f"/v1/families/hour/cells?{RANGE}&group=origin&step=1d"
CELLS = f"/v1/layers/hour/cells?{RANGE}&limit=10000"


class Group:
    """Workers with an endpoint each, which share a log, an archive and a map of owners."""

    def __init__(self, themap: Map, archive: EmbeddedArchive, folder: Path) -> None:
        self.map = themap
        self.archive = archive
        self.folder = folder
        self.log = MemoryLog()
        self.houses: list[LocalWorker] = []
        self.urls: list[str] = []
        self.peers: list[Peers] = []
        self.owners: dict[TopicPartition, str] = {}
        self.before: Callable[[int, web.Request], Awaitable[None]] | None = None
        self._cycle = asyncio.Lock()

    async def add(self, stack: contextlib.AsyncExitStack) -> None:
        """Start a worker that owns nothing yet."""
        number = len(self.houses)
        house = LocalWorker(self.log, self.archive, self.folder / str(number), self.map)
        port = free_ports(1)[0]
        url = f"http://127.0.0.1:{port}"
        given = Settings(web_token=TOKEN, web_port=port)
        peers = Peers(
            self.map,
            house.owners.live_job,
            lambda: self.owners,
            own_url=url,
            key=peer_key(given),
        )
        view = StandingView(self.map, self.archive, FrameCells(frame([]), set()))
        view.local = house.owners.live_job  # type: ignore[method-assign]
        site = web.Application()
        cache = ArchiveCache(self.archive, 1 << 20)
        install(site, view, given, live=peers, cache=cache, metrics=lambda: METRICS)

        @web.middleware
        async def held(request: web.Request, handler: Any) -> Any:
            if self.before is not None and request.path == PATH:
                await self.before(number, request)
            return await handler(request)

        site.middlewares.append(held)
        runner = web.AppRunner(site, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        stack.push_async_callback(house.kill)
        stack.push_async_callback(runner.cleanup)
        stack.push_async_callback(peers.close)
        self.houses.append(house)
        self.urls.append(url)
        self.peers.append(peers)

    async def give(self, place: TopicPartition, number: int) -> None:
        """Move a partition to a worker, and tell all of it."""
        async with self._cycle:
            for house in self.houses:
                await house.owners.release({place})
            await self.houses[number].owners.restore(*place, 1)
            self.owners[place] = self.urls[number]

    async def fold(self) -> None:
        """Have every worker fold and send all that there is for it."""

        async def is_done() -> bool:
            # Everything sent before a step that finds nothing has been read.
            owners = [owner for house in self.houses for owner in house.owners.each()]
            waiting = sum(o.sinks.unacknowledged(layer) for o in owners for layer in o.plan.layers)
            busy = await self._step()
            return not busy and not waiting

        await until(is_done)

    async def work(self) -> None:
        """Fold the later messages of owners: idle ones announce and evict in their time."""
        async for _ in beats(lambda: 0.01):
            await self._step()

    async def _step(self) -> bool:
        async with self._cycle:
            steps = [await h.step(topic, 100) for h in self.houses for topic in self.map.inputs()]
        return any(steps)

    async def ask(self, number: int, path: str) -> Any:
        """Return a worker's answer."""
        status, body, _ = await get(self.urls[number] + path, Authorization=f"Bearer {TOKEN}")
        return body | {"status": status}


@pytest.fixture(params=[MAP, MERGED], ids=["keyed", "merged"])
async def group(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Group]:
    """Return three workers, of which the first two own the partitions; some events are folded."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(request.param)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(archive.close)
        made = Group(request.param, archive, tmp_path)
        for _ in range(3):
            await made.add(stack)
        fill(made.log, 5, keyed=request.param is MAP)
        for topic, partitions in made.map.inputs().items():
            # The heartbeats that close everything stay away.
            if topic == RAW:
                for partition in range(partitions):
                    made.log.records[RAW, partition].pop()
            for partition in range(partitions):
                await made.give((topic, partition), partition % 2)
        await made.fold()
        working = asyncio.create_task(made.work())
        yield made
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled(), working.exception()


async def test_every_worker_gives_the_whole_answer(group: Group) -> None:
    """The one that owns nothing does too; the cells are those of all."""
    answers = [await group.ask(number, FAMILY) for number in range(3)]
    for answer in answers:
        assert (answer["status"], answer["exactness"]) == (200, "exact")
        assert answer["as_of"] == {RAW: {"0": answers[0]["as_of"][RAW]["0"],
                                         "1": answers[0]["as_of"][RAW]["1"]}}  # fmt: skip
        assert answer["cells"] == answers[0]["cells"]
    assert sum(cell["measures"]["count"] for cell in answers[0]["cells"]) == 600
    assert answers[0]["cost"]["workers_asked"] < answers[2]["cost"]["workers_asked"]

    async def is_merged() -> bool:
        # Senders give a combiner their open windows in their own time.
        cells = (await group.ask(0, CELLS))["cells"]
        return bool(sum(cell["measures"]["count"] for cell in cells) == 600)

    await until(is_merged)
    cells = [await group.ask(number, CELLS) for number in range(3)]
    assert [answer["partial"] for answer in cells] == [False] * 3
    assert cells[0]["cells"] == cells[1]["cells"] == cells[2]["cells"]


async def test_a_question_is_passed_on_once(group: Group) -> None:
    """A worker that is asked by another answers from its own partitions, for any group map."""
    group.owners = dict.fromkeys(group.owners, group.urls[2])
    answer = await group.ask(0, FAMILY)
    assert answer["exactness"] == "partial"
    assert group.peers[2].asked_total == 0


async def test_an_answer_without_an_owner_says_partial(group: Group) -> None:
    """It is refused if the reader wants that; the cells that are there are right."""
    await group.houses[1].owners.release({(RAW, 1)})
    answer = await group.ask(2, FAMILY)
    assert answer["exactness"] == "partial"
    assert list(answer["as_of"][RAW]) == ["0"]
    refused = await group.ask(2, f"{FAMILY}&partial=refuse")
    assert (refused["status"], refused["title"]) == (503, "Service Unavailable")
    assert "some owners do not answer" in refused["detail"]


async def test_a_partition_on_its_way_is_waited_for(group: Group) -> None:
    """It is asked for again until its next owner has it."""
    whole = await group.ask(2, FAMILY)
    await group.houses[1].owners.release({(RAW, 1)})
    asking = asyncio.create_task(group.ask(2, FAMILY))
    asked = asyncio.Event()

    async def note(number: int, request: web.Request) -> None:
        del number, request
        asked.set()

    group.before = note
    await asked.wait()
    await group.give((RAW, 1), 2)
    answer = await asking
    assert answer["exactness"] == "exact"
    assert answer["cells"] == whole["cells"]


async def test_who_does_not_answer_soon_is_asked_a_second_time(group: Group) -> None:
    """Its second answer counts; the first may never come."""
    stuck: list[int] = []

    async def first_hangs(number: int, request: web.Request) -> None:
        del request
        if number == 1 and not stuck:
            stuck.append(number)
            await asyncio.Event().wait()

    group.before = first_hangs
    answer = await group.ask(2, FAMILY)
    assert (answer["exactness"], stuck) == ("exact", [1])
    assert group.peers[2].hedged_total >= 1  # A stalled machine may have others asked twice too.


async def test_a_worker_that_is_gone_is_missing(group: Group) -> None:
    """A refused connection is not an error of the reader's."""
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    group.owners = {
        place: gone if url == group.urls[1] else url for place, url in group.owners.items()
    }
    answer = await group.ask(0, FAMILY)
    assert (answer["status"], answer["exactness"]) == (200, "partial")
    assert group.peers[0].failed_total > 0
    page = await group.ask(0, CELLS)
    assert (page["partial"], page["partitions"] - page["partitions_served"]) == (True, 1)


async def test_an_answer_that_cannot_be_read_counts_as_none(group: Group) -> None:
    """A worker of another version does not make the readers of this one fail."""

    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(body=b"\xc1")

    site = web.Application()
    site.router.add_post(PATH, nonsense)
    runner = web.AppRunner(site)
    await runner.setup()
    port = free_ports(1)[0]
    await web.TCPSite(runner, "127.0.0.1", port).start()
    other = f"http://127.0.0.1:{port}"
    group.owners = {
        place: other if url == group.urls[1] else url for place, url in group.owners.items()
    }
    answer = await group.ask(0, FAMILY)
    await runner.cleanup()
    assert (answer["status"], answer["exactness"]) == (200, "partial")
    assert group.peers[0].failed_total > 0


async def test_the_patience_is_for_all_tries_together(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that never answers costs a reader its patience, not its deadline."""
    monkeypatch.setattr(agents.query.reader, "PATIENCE_S", 0.4)

    async def hangs(number: int, request: web.Request) -> None:
        del request
        if number == 1:
            await asyncio.Event().wait()

    group.before = hangs
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await group.ask(0, f"{FAMILY}&deadline_ms=9000")
    assert answer["exactness"] == "partial"
    assert loop.time() - started < 5


async def test_requests_that_are_none_are_refused(group: Group) -> None:
    """Signed with another secret, too long, of another map, or no MessagePack at all."""
    other = dataclasses_replace(group.map, digest="other")
    read = LiveRead(group.map.layer("hour"))
    for body, secret, status in (
        (encode_reads(group.map, [read]), TOKEN, 200),
        (encode_reads(group.map, [read]), "wrong-horse-battery", 401),
        (encode_reads(other, [read]), TOKEN, 400),
        (b"\xc1", TOKEN, 400),
        (bytes((1 << 20) + 1), TOKEN, 413),
    ):
        proof = PeerKey(secret, "").sign("POST", group.urls[0], PATH, body)
        headers = {HEADER: proof.header, "Content-Type": CONTENT_TYPE}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(group.urls[0] + PATH, data=body) as response,
        ):
            assert response.status == status, await response.text()


def test_reads_keep_everything_on_their_way() -> None:
    """Types of values too: an integer, a bool and a text differ."""
    fields = (*HOURS.key, KeyField("number", "int"), KeyField("flag", "bool"))
    typed = dataclasses_replace(MAP, layers=(dataclasses_replace(HOURS, key=fields), DAYS))
    keys = KeyFilter({"origin": ("1",), "number": (1,), "flag": (True,)}, {"carrier": "U"})
    reads = [
        LiveRead(typed.layer("hour"), 0, HOUR_MS, keys, partitions=frozenset({1})),
        LiveRead(MERGED.layer("hour"), -5, 5, parts=True),
    ]
    found = decode_reads(MERGED, encode_reads(MERGED, [reads[1]]))
    assert found == [reads[1]]
    (one,) = decode_reads(typed, encode_reads(typed, [reads[0]]))
    assert one == reads[0]
    assert [type(values[0]) for values in one.keys.values.values()] == [str, int, bool]
    for wrong in (
        LiveRead(HOURS, 0, 1, KeyFilter({"nothing": ("JFK",)})),
        LiveRead(HOURS, 0, 1, KeyFilter({"origin": (1,)})),
        LiveRead(HOURS, 0, 1, KeyFilter({}, {"nothing": "J"})),
        LiveRead(HOURS, 0, 2**63),
        LiveRead(HOURS, 0, 1, parts=True),
    ):
        with pytest.raises(QueryError, match="no worker asks for hour like this"):
            decode_reads(MAP, encode_reads(MAP, [wrong]))
    with pytest.raises(QueryError, match="no such layer; got hour"):
        decode_reads(
            MAP,
            encode_reads(MAP, [LiveRead(dataclasses_replace(HOURS, name="hour.partial"))]),
        )


async def test_two_answers_for_one_partition_are_one() -> None:
    """Both owners may answer while a partition moves: the first counts."""
    rows = frame([{"key_origin": "JFK", "key_carrier": "UA", "window_start": 0, "events": 1,
                   "n_delay": 0, "sum_delay": 0, "min_delay": None, "max_delay": None,
                   "sqlo_delay": 0, "sqhi_delay": 0, "version": 1, "source_partition": p}
                  for p in (0, 1)])  # fmt: skip
    cells = FrameCells(rows, {0, 1})
    (one,) = await cells.read([LiveRead(HOURS, 0, HOUR_MS)], QueryCost(), 0)
    both = LiveRows()
    half = FrameCells(rows.head(1), {0})
    both.add(half.local(LiveRead(HOURS, 0, HOUR_MS)))
    both.add(one)
    assert sorted(both.facts) == [0, 1]
    assert sum(found.height for found in both.rows) == 2


async def test_a_worker_that_does_not_answer_is_told_once_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be asked any number of times meanwhile."""
    monkeypatch.setattr(outage, "GRACE_S", 0.0)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    peers = Peers(
        small_map(), lambda _: LiveJob({}, list), lambda: {("t", 0): url}, own_url="http://me"
    )
    for _ in range(5):
        assert await peers._post(url, b"", QueryCost()) is None
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith(f"worker {url} does not answer; answers lack its live cells: ")
    site = web.Application()

    async def answered(_: web.Request) -> web.Response:
        return web.Response(body=b"rows")

    site.router.add_post(PATH, answered)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    assert await peers._post(url, b"", QueryCost()) == b"rows"
    await peers.close()
    await runner.cleanup()
    lines = [record.getMessage() for record in caplog.records if record.name == "agents.outage"]
    assert lines[1:] == [f"worker {url} answers again after 0 s; 5 attempts failed"]
    assert peers.failed_total == 5
