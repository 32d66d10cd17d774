"""Accepted connections: bounds in all and by address, times of handshakes and heads, files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest

import app.web.handlers
import app.web.listener
import app.web.server
from app.web.listener import network_of
from app.web.server import connections_max
from tests.support.common import flight, small_map
from tests.support.pki import Authority
from tests.support.waiting import beats, stays, until
from tests.support.web_support import StandingView, served, stored
from tests.support.worker_process import Process, apply

MAP = small_map()
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE = 1_100


class Ends:
    """One client's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def read(self, count: int = 65_536) -> bytes:
        """Return some bytes; empty if the other side has ended or reset the connection."""
        try:
            async with asyncio.timeout(20):
                return await asyncio.get_running_loop().sock_recv(self.sock, count)
        except ConnectionError:
            return b""

    async def ended(self) -> bytes:
        """Return everything until the end."""
        found = b""
        while some := await self.read():
            found += some
        return found

    async def send(self, content: bytes) -> None:
        """Send bytes."""
        await asyncio.get_running_loop().sock_sendall(self.sock, content)

    async def is_answered(self) -> bool:
        """Return whether a request is answered, after which the connection goes on."""
        with contextlib.suppress(ConnectionError):
            await self.send(LIVEZ)
        return b'{"live":true}' in await self.read()


class Clients:
    """Sockets to one endpoint, which are closed in the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    async def open(self, url: str, address: str = "127.0.0.1") -> Ends:
        """Connect from an address of this machine."""
        sock = self._stack.enter_context(socket.socket())
        sock.setblocking(False)
        sock.bind((address, 0))
        place = urlsplit(url)
        await asyncio.get_running_loop().sock_connect(sock, (place.hostname, place.port))
        return Ends(sock)

    def close(self) -> None:
        """Close all."""
        self._stack.close()


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    """Yield a maker of connections; close them after the test."""
    made = Clients()
    yield made
    made.close()


def open_files() -> list[int]:
    """Return the file descriptors of this process."""
    return [int(one.name) for one in Path("/proc/self/fd").iterdir()]


async def counted(view: StandingView, reason: str, count: int) -> None:
    """Wait until so many connections were refused or ended for a reason."""
    await until(lambda: view.counts.refused[reason] >= count, 10)


async def closed(view: StandingView, count: int = 0) -> None:
    """Wait until no more than so many connections are left."""
    await until(lambda: view.counts.open <= count, 10)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_handshake_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients, sent: bytes
) -> None:
    """Silent from the start, or in the middle of the client's hello; its file is free then."""
    monkeypatch.setattr(app.web.listener, "HANDSHAKE_S_MAX", 0.3)
    made = Authority(tmp_path).issue("a")
    settings: dict[str, Any] = {
        "web_cert_file": str(made.cert_file),
        "web_key_file": str(made.key_file),
    }
    async with served(MAP, tmp_path / "a", **settings) as (view, url):
        gc.collect()  # Files that earlier tests left open are closed.
        before = len(open_files())
        many = [await clients.open(url) for _ in range(50)]
        for one in many:
            await one.send(sent)
        for one in many:
            await one.ended()
        await closed(view)
        assert view.counts.refused["handshake"] == 50
        assert len(open_files()) == before + 50


async def test_handshakes_that_wait_go_before_anybody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    """A reader whose connection is silent keeps it, and a new one is answered."""
    monkeypatch.setattr(app.web.server, "CONNECTIONS_MAX", 5)
    authority = Authority(tmp_path)
    made = authority.issue("a")
    tls = ssl.create_default_context(cafile=authority.ca_file)
    settings: dict[str, Any] = {
        "web_cert_file": str(made.cert_file), "web_key_file": str(made.key_file),
        "query_live_max": 1,
    }  # fmt: skip
    async with (
        served(MAP, tmp_path / "a", **settings) as (view, url),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session,
    ):

        async def ask() -> tuple[int, object]:
            async with session.get(f"{url}/livez") as response:
                await response.read()
                return response.status, response.connection

        assert (await ask())[0] == 200
        for number in range(40):
            await clients.open(url, f"127.0.1.{number + 1}")
        await counted(view, "full", 35)
        assert (await ask())[0] == 200
        assert view.counts.open == 6
        assert view.counts.refused["full"] == 35


@pytest.mark.parametrize("sent", [b"GET /livez", b"GET /livez HTTP/1.1\r\nHost: x\r\nA: "])
async def test_a_head_by_drops_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients, sent: bytes
) -> None:
    """Its time is for all of it, not for each byte; a request after it has its own."""
    monkeypatch.setattr(app.web.server, "HEAD_S_MAX", 0.6)
    async with served(MAP, tmp_path) as (view, url):
        ends = await clients.open(url)
        assert await ends.is_answered()
        begun = asyncio.get_running_loop().time()
        await ends.send(sent)
        answer = asyncio.create_task(ends.ended())
        async for _ in beats(0.05):
            if answer.done():
                break
            with contextlib.suppress(ConnectionError):
                await ends.send(b"a")
        assert asyncio.get_running_loop().time() - begun < 5
        head, _, body = answer.result().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert "did not come whole within 0.6 s" in orjson.loads(body)["detail"]
        assert view.counts.refused["head"] == 1
        await closed(view)


async def test_a_head_in_two_pieces_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    """A stream may go on for longer than a head may take."""
    monkeypatch.setattr(app.web.server, "HEAD_S_MAX", 0.5)
    async with served(MAP, tmp_path, [stored()]) as (view, url):
        ends = await clients.open(url)
        await ends.send(LIVEZ[:20])
        await stays(lambda: view.counts.open == 1, 0.1)
        await ends.send(LIVEZ[20:])
        assert b'{"live":true}' in await ends.read()
        await ends.send(b"GET /v1/layers/hour/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /li")
        assert b"text/event-stream" in await ends.read()
        await stays(lambda: view.counts.open == 1 and not view.counts.refused["head"], 1)


async def test_a_body_by_drops_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    """A request between workers gets a 408; a request that needs no body is ended too."""
    monkeypatch.setattr(app.web.handlers, "BODY_S_MAX", 0.4)
    monkeypatch.setattr(app.web.server, "LINGER_S_MAX", 0.4)
    async with served(MAP, tmp_path) as (view, url):
        for line, status in ((b"POST /v1/worker/live", b"408"), (b"GET /livez", b"200")):
            ends = await clients.open(url)
            head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
            begun = asyncio.get_running_loop().time()
            await ends.send(line + head)
            answer = asyncio.create_task(ends.ended())
            async for _ in beats(0.05):
                if answer.done():
                    break
                with contextlib.suppress(ConnectionError):
                    await ends.send(b"a")
            assert answer.result().split()[1] == status
            assert asyncio.get_running_loop().time() - begun < 3
        await closed(view)


async def test_connections_of_one_address_push_out_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    """A client from elsewhere keeps a silent connection, however many they are."""
    monkeypatch.setattr(app.web.server, "CONNECTIONS_MAX", 9)
    async with served(MAP, tmp_path, query_live_max=1) as (view, url):
        quiet = await clients.open(url, "127.0.0.2")
        many = [await clients.open(url, "127.0.0.3") for _ in range(30)]
        await counted(view, "address", 25)
        assert view.counts.open == 6
        assert view.counts.refused["full"] == 0
        assert await quiet.is_answered()
        assert await many[-1].is_answered()
        assert await many[0].ended() == b""


async def test_a_refused_connection_of_a_busy_address_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    """Followers are not pushed out; those of other addresses find room."""
    monkeypatch.setattr(app.web.server, "CONNECTIONS_MAX", 2)
    async with served(MAP, tmp_path, [stored()], query_live_max=2) as (view, url):
        for _ in range(2):
            ends = await clients.open(url)
            await ends.send(b"GET /v1/layers/hour/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"text/event-stream" in await ends.read()
        third = await clients.open(url)
        assert (await third.ended()).startswith(b"HTTP/1.1 503")
        assert view.counts.refused["address"] == 1
        assert await (await clients.open(url, "127.0.0.2")).is_answered()


async def test_without_a_file_left_the_endpoint_waits_and_goes_on(
    tmp_path: Path, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    """A silent connection goes for each try; accepting neither ends nor spins."""
    async with served(MAP, tmp_path) as (view, url):
        kept = await clients.open(url)
        assert await kept.is_answered()
        place = urlsplit(url)
        loop = asyncio.get_running_loop()
        waiting = [socket.socket() for _ in range(5)]
        for sock in waiting:
            sock.setblocking(False)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(open_files())
        with contextlib.ExitStack() as stack:
            for sock in waiting:
                stack.enter_context(sock)
            holes = [stack.enter_context(socket.socket()) for _ in range(used)]
            highest = max(one.fileno() for one in holes)
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
            try:
                for sock in waiting:
                    await loop.sock_connect(sock, (place.hostname, place.port))
                begun = loop.time()
                await counted(view, "files", 3)
                took_s = loop.time() - begun
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert took_s > 0.15
            assert await Ends(waiting[-1]).is_answered()
    assert caplog.text.count("cannot accept connections: Too many open files") == 1


@pytest.mark.parametrize(
    ("files_max", "wanted"), [(256, 64), (600, 150), (1_024, 512), (1_088, 576), (2**31, 576)]
)
def test_connections_leave_files_to_the_rest(files_max: int, wanted: int) -> None:
    """They do, however few files the system gives."""
    assert connections_max(64, files_max) == wanted


def test_addresses_of_one_network_count_together() -> None:
    """The owner of an IPv6 network has billions of addresses."""
    assert network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"


async def test_a_worker_with_few_files_outlives_idle_connections(
    processes: Callable[..., Process], clients: Clients
) -> None:
    """They are more than its files: it answers, and a stream has news as soon as before."""
    worker = processes()
    await apply(worker)
    worker.start(("bash", "-c", f"ulimit -n 1024; exec {sys.executable} -m app worker"))
    await worker.ready()
    url = f"http://127.0.0.1:{worker.port}"
    follower = await clients.open(url)
    await follower.send(
        b"GET /v1/layers/hour/live?interval_ms=100 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert b"text/event-stream" in await follower.read()
    many = [await clients.open(url, "127.0.0.2") for _ in range(IDLE)]
    for number, one in enumerate(many):
        if number % 2:
            with contextlib.suppress(ConnectionError):
                await one.send(b"GET /livez HTTP/1.1\r\nA: ")
    assert (await worker.get("/livez"))[0] == 200
    begun = asyncio.get_running_loop().time()
    await worker.send(f"{worker.map_name}.raw", (0, flight(1, "JFK", "UA")))
    text = b""
    while b"event: cell" not in text:
        some = await follower.read()
        assert some, text
        text += some
    assert asyncio.get_running_loop().time() - begun < 5
    _, metrics = await worker.ask("/metrics")
    refused = {
        line.split('"')[1]: float(line.split()[-1])
        for line in metrics.decode().splitlines()
        if line.startswith("treasure_map_web_refused_total{")
    }
    assert refused["address"] >= IDLE - 512
    assert (await worker.get("/readyz"))[0] == 200
    assert await worker.stop() == 0
    assert "Too many open files" not in worker.log()


async def test_a_worker_raises_its_limit_of_open_files(processes: Callable[..., Process]) -> None:
    """It goes from the limit of the shell to the limit of the system."""
    worker = processes()
    await apply(worker)
    command = f"ulimit -S -n 512; ulimit -H -n 2048; exec {sys.executable} -m app worker"
    worker.start(("bash", "-c", command))
    await worker.ready()
    assert resource.prlimit(worker.running.pid, resource.RLIMIT_NOFILE) == (2_048, 2_048)
