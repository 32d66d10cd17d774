"""A whole worker answers every kind of request at its limits while it folds events.

On any machine the worker must go on, its loop must never stand for seconds, and its memory must
stay within a bound. How long the loop was held by each kind is logged (``--log-level info``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiokafka import AIOKafkaProducer

from tests.support.common import HOUR_MS
from tests.support.loop_meter import WORK_S, work_s
from tests.support.waiting import beats, until
from tests.support.worker_process import Process, apply

log = logging.getLogger(__name__)

WORKER = """
from aiohttp import web
from app.runtime import wiring
from app.runtime.worker_process import WorkerProcess
from app.config.settings import load_settings
from app.web.access import OPEN, mount
from tests.support.loop_meter import Loop, resident, reset_peak

app = wiring.build(load_settings())
meter = Loop()

async def held(request):
    found = {"held_s": meter.held_s, "places": meter.places[:3],
             "peak_bytes": resident("VmHWM"), "resident_bytes": resident("VmRSS")}
    meter.begin_anew()
    reset_peak()
    return web.json_response(found)

async def start(_):
    meter.start()

mount(app.web.web_app, "GET", "/held", OPEN, held)
app.web.web_app.on_startup.append(start)
WorkerProcess(app, loglevel="INFO").execute_from_commandline()
"""
MAP = """
revision = 1
name = "{name}"

[sources.flights]
topic = "{name}.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["origin"]

[sources.flights.fields]
origin = "string"
carrier = "string"
delay = "int"

[layers.second]
source = "flights"
events = ["tick"]
key = ["origin", "carrier"]
window = "1s"
measures = ["count", "sum(delay)", "mean(delay)", "min(delay)", "max(delay)", "variance(delay)"]

[layers.minute]
from = "second"
key = ["origin", "carrier"]
window = "1m"

[layers.day]
from = "minute"
key = ["carrier"]
window = "1d"

[layers.wide]
source = "flights"
events = ["wide"]
key = ["origin", "carrier"]
window = "1h"
measures = ["count", "sum(delay)", "variance(delay)"]
"""
BEGIN_MS = 1_356_998_400_000  # 2013-01-01
OPEN_MS = 1_420_070_400_000  # 2015-01-01
TICKS = range(BEGIN_MS, OPEN_MS, 12 * HOUR_MS + 61_000)
KEYS = 35
ARCHIVED = 2 * KEYS * (len(TICKS) - 1)
OPEN_CELLS = 90_000
LINES = 1_000
EVENTS_PER_S = 3_000
HELD_S_MAX = 3.0
"""A longer hold is clearly a fault: one page of open cells once held a worker for ten seconds."""

GROWTH_BYTES_MAX = 1_500 << 20
"""Four requests and the news of four followers at once, each some 150 MiB for a moment."""

YEARS = "from=2013-01-01&to=2014-12-31"
HOUR = "from=2015-01-01&to=2015-01-01T01:00:00Z"
WIDE, SECOND = "/v1/layers/wide", "/v1/layers/second"
FAMILY = "/v1/families/second/cells"
CSV, LINES_OF_JSON = {"Accept": "text/csv"}, {"Accept": "application/x-ndjson"}
ARROW = {"Accept": "application/vnd.apache.arrow.stream"}
CURSOR = "&cursor=WyJzZWNvbmQiLDEsMTM4MDAwMDAwMDAwMCwiSkZLIiwiVTEiXQ"
PAGE = f"{WIDE}/cells?{HOUR}&limit=10000"

REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "livez": ("/livez", {}),
    "layers": ("/v1/layers", {}),
    "ledger": ("/v1/ledger", {}),
    "metrics": ("/metrics", {}),
    "openapi": ("/openapi.json", {}),
    "archived cells": (f"{SECOND}/cells?{YEARS}&limit=10000", {}),
    "archived cells, after a cursor": (
        f"{SECOND}/cells?{YEARS}&limit=10000{CURSOR}", CSV,
    ),
    "open cells": (PAGE, {}),
    "open cells, compressed": (PAGE, {"Accept-Encoding": "gzip"}),
    "open cells, CSV": (PAGE, CSV),
    "open cells, lines": (PAGE, LINES_OF_JSON),
    "open cells, Arrow": (PAGE, ARROW),
    "open cells, one key": (f"{PAGE}&key.origin=JFK&key.carrier=U1", {}),
    "family, open cells": (f"/v1/families/wide/cells?{HOUR}&group=carrier&limit=10000", {}),
    "family, a prefix": (f"/v1/families/wide/cells?{HOUR}&prefix.carrier=a&group=origin", {}),
    "family, days": (f"{FAMILY}?{YEARS}&step=day&group=carrier&limit=10000", ARROW),
    "family, odd steps": (f"{FAMILY}?{YEARS}&step=17h&group=-&explain=true", {}),
    "family, odd steps in a month": (
        f"{FAMILY}?from=2013-01-01T00:00:07Z&to=2013-02-01T00:00:59Z&step=61m&group=-", CSV,
    ),
    "family, a century": (f"{FAMILY}?from=1970-01-01&to=2070-01-01&step=year&group=-", {}),
    "top, open cells": (f"{WIDE}/top?by=sum_delay&n=10000&{HOUR}", {}),
    "top, equal keys": (f"{WIDE}/top?by=variance_delay&n=10000&{HOUR}", CSV),
    "top, two years": (f"/v1/layers/day/top?by=count&n=100&{YEARS}", {}),
    "live, open cells": (f"{WIDE}/live?since=open", {}),
    "live, now": (f"{SECOND}/live?since=now&interval_ms=100", {}),
}  # fmt: skip
HEADS = {
    "livez",
    "metrics",
    "open cells",
    "family, odd steps",
    "top, two years",
    "live, open cells",
}
"""Asked as HEAD too, which takes as much: one of each form of answer."""

STATUSES = {200, 400, 503, 504}
"""Slow machines answer some too late; a range that exceeds the limits is refused."""


def line(kind: str, at: int, origin: str, carrier: str) -> bytes:
    """Return an event as JSON."""
    event = {"at": at, "type": kind, "origin": origin, "carrier": carrier, "delay": at % 97 - 7}
    return orjson.dumps(event)


def records(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield records of many lines."""
    left = iter(lines)
    while some := list(itertools.islice(left, LINES)):
        yield b"\n".join(some)


async def fill(worker: Process) -> None:
    """Send two years of seconds, and an hour with all the open cells; wait until they are there."""
    topic = f"{worker.map_name}.raw"
    async with AIOKafkaProducer(bootstrap_servers=worker.settings["brokers"]) as producer:
        sent = []
        for partition, origin in enumerate(("JFK", "LGA")):
            past = (line("tick", at, origin, f"U{n}") for at in TICKS for n in range(KEYS))
            names = (f"a carrier of a long name {n}" for n in range(OPEN_CELLS // 2))
            wide = (line("wide", OPEN_MS, origin, name) for name in names)
            sent += [
                await producer.send(topic, record, partition=partition)
                for record in records(itertools.chain(past, wide))
            ]
        await asyncio.gather(*sent)

    async def filled() -> bool:
        _, found = await worker.get("/v1/layers")
        rows = {row["name"]: row for row in found["layers"]}
        is_archived = rows["second"]["archived_cells"] >= ARCHIVED
        return bool(is_archived and rows["wide"]["open_cells"] >= OPEN_CELLS)

    await until(filled, 400)


@contextlib.asynccontextmanager
async def ingesting(worker: Process) -> AsyncIterator[None]:
    """Send events at a steady rate meanwhile; their time goes as the clock's does."""
    topic = f"{worker.map_name}.raw"

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=worker.settings["brokers"]) as producer:
            async for beat in beats(0.05):
                at = OPEN_MS + 1_000 + beat * 50
                for partition, origin in enumerate(("JFK", "LGA")):
                    some = (
                        line("tick", at, origin, f"U{n % 50}") for n in range(EVENTS_PER_S // 40)
                    )
                    for record in records(some):
                        await producer.send(topic, record, partition=partition)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        assert not sending.done(), "it sends until it is stopped"
        sending.cancel()
        await asyncio.wait([sending])


class Asker:
    """Asks one worker, and remembers how long each kind of request held its loop."""

    def __init__(self, session: aiohttp.ClientSession, worker: Process) -> None:
        self._session = session
        self._worker = worker
        self._url = f"http://127.0.0.1:{worker.port}"
        self.before_bytes = 0
        self.peak_bytes = 0
        self.held: dict[str, float] = {}
        self._lines: list[str] = []

    async def measured(self, name: str, what: str = "") -> None:
        """Take down how long the loop was held since the last time, and by whom."""
        async with self._session.get(f"{self._url}/held") as response:
            found: dict[str, Any] = await response.json()
        if self.before_bytes:
            self.peak_bytes = max(self.peak_bytes, found["peak_bytes"])
        else:
            self.before_bytes = found["resident_bytes"]
        self.held[name] = found["held_s"]
        memory = f"{found['peak_bytes'] >> 20:5} MiB at most"
        log.info("%-32s held %6.0f ms, %s; %s", name, found["held_s"] * 1_000, memory, what)
        if found["held_s"] > HELD_S_MAX:
            log.warning("%s", "\n".join(found["places"]))

    async def ask(self, name: str, method: str = "GET") -> int:
        """Send a request, read the answer, of a stream a part, and return the status."""
        path, headers = REQUESTS[name]
        async with self._session.request(method, self._url + path, headers=headers) as response:
            if name.startswith("live,") and method == "GET" and response.status == 200:
                await response.content.readline()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await response.content.readexactly(2_000_000)
            else:
                await response.read()
            return response.status

    async def raw(self, path: str) -> socket.socket:
        """Send a request over a connection that holds little; nobody reads from it."""
        loop = asyncio.get_running_loop()
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        end.setblocking(False)
        await loop.sock_connect(end, ("127.0.0.1", self._worker.port))
        if path:
            await loop.sock_sendall(end, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return end


async def crowds(asker: Asker) -> None:
    """Ask as many do at once who are slow, who leave, or who say nothing."""
    found = Counter(await asyncio.gather(*(asker.ask("open cells") for _ in range(20))))
    assert found.keys() <= STATUSES
    await asker.measured("many at once", f"statuses {dict(found)}")
    for name, path, count in (
        ("who leave", PAGE, 40),
        ("who take nothing", PAGE, 20),
        ("followers who take nothing", f"{WIDE}/live?since=open", 24),
        ("who say nothing", "", 700),
    ):
        ends = [await asker.raw(path) for _ in range(count)]
        if name != "who leave":
            # Others are answered beside them, a byte at a time for those who are slow.
            async for number in beats(1):
                assert await asker.ask("livez") == 200
                for end in ends if path else ():
                    with contextlib.suppress(BlockingIOError):
                        end.recv(1)
                if number == 4:
                    break
        for end in ends:
            end.close()
        await asker.measured(name, f"{count} connections")


async def position(worker: Process) -> int:
    """Return how many events are decoded, of a ledger that adds up."""
    _, ledger = await worker.get("/v1/ledger")
    assert ledger["balanced"], ledger["problems"]
    decoded: int = ledger["events"]["decoded"]
    return decoded


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_requests_at_their_limits_hold_neither_loop_nor_memory(
    processes: Callable[..., Process],
) -> None:
    """Each kind, then many at once, while thousands of events a second come."""
    worker = processes()
    worker.map_file.write_text(MAP.format(name=worker.map_name))
    await apply(worker)
    worker.start((sys.executable, "-c", WORKER))
    await worker.ready()
    await fill(worker)
    held_max_s = HELD_S_MAX * max(1.0, work_s() / WORK_S)
    timeout = aiohttp.ClientTimeout(60)
    async with (
        ingesting(worker),
        aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session,
    ):
        asker = Asker(session, worker)
        await asker.measured("filling")
        begun = await position(worker)
        for name in REQUESTS:
            statuses = [await asker.ask(name)]
            if name in HEADS:
                statuses.append(await asker.ask(name, "HEAD"))
            assert set(statuses) <= STATUSES, name
            await asker.measured(name, f"statuses {statuses}")
        await crowds(asker)
        after = await position(worker)
    assert after > begun
    held = {name: s for name, s in asker.held.items() if s > held_max_s and name != "filling"}
    assert held == {}
    assert asker.peak_bytes - asker.before_bytes <= GROWTH_BYTES_MAX
    assert await worker.stop() == 0
