"""Connections: silent ones, huge heads, readers that take nothing, too many, and no HTTP at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest

import app.web.handlers
import app.web.live_stream
import app.web.server
from tests.support.common import small_map
from tests.support.waiting import beats, until
from tests.support.web_support import served, stored

MAP = small_map()
ROWS = [stored("A" * 1_000, f"{number:05d}") for number in range(10_000)]
PAGE = "/v1/layers/hour/cells?from=0&to=1&limit=10000"
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Serve rows of more bytes than all buffers of a connection hold, with short waits."""
    monkeypatch.setattr(app.web.server, "CHECK_S", 0.05)
    async with served(MAP, tmp_path, ROWS, query_live_max=2, query_deadline_ms=60_000) as (_, url):
        yield url


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Ends]:
    """Give a connection that takes no more than it is asked to."""
    place = urlsplit(url)
    with socket.socket() as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, (place.hostname, place.port))
        reader, writer = await asyncio.open_connection(sock=end, limit=4_096)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


def get(path: str, *headers: str) -> bytes:
    """Return a request."""
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *headers, "\r\n")).encode()


async def ended(ends: Ends) -> bytes:
    """Return all bytes until the other side ends the connection."""
    found = b""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            while some := await ends[0].read(65_536):
                found += some
    return found


async def answered(ends: Ends, path: str = "/livez") -> int:
    """Return the status of an answer, with which the connection stays."""
    ends[1].write(get(path))
    head = await asyncio.wait_for(ends[0].readuntil(b"\r\n\r\n"), 20)
    length = int(head.split(b"Content-Length: ")[1].split()[0])
    await asyncio.wait_for(ends[0].readexactly(length), 20)
    return int(head.split()[1])


def refused(answer: bytes) -> tuple[int, str]:
    """Return status and detail of a problem."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    problem: dict[str, Any] = orjson.loads(body)
    assert problem["status"] == int(head.split()[1])
    return problem["status"], problem["detail"]


@pytest.mark.parametrize(
    "request_line",
    [b"\xff\xfe\x00", b"GET /livez\xff HTTP/1.1", b"GET /livez HTTP/9.9", b"\x16\x03\x01\x02",
     b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: x",
     b"GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x",
     b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA\x00: b",
     b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 70_000,
     b"GET /" + b"b" * 40_000 + b" HTTP/1.1"],
)  # fmt: skip
async def test_what_cannot_be_read_is_a_problem(url: str, request_line: bytes) -> None:
    """The problem has the form of every other refusal, and the endpoint goes on."""
    async with connected(url) as ends:
        ends[1].write(request_line + b"\r\n\r\n")
        status, detail = refused(await ended(ends))
    assert status == 400
    assert detail.startswith("cannot read the request: ")
    async with connected(url) as ends:
        assert await answered(ends) == 200


async def test_the_head_of_a_request_has_a_size_in_all(url: str) -> None:
    """A hundred headers that are each as long as one may be are several megabytes."""
    async with connected(url) as ends:
        ends[1].write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(10):
            ends[1].write(b"A%d: " % number + b"b" * 60_000 + b"\r\n")
        status, detail = refused(await ended(ends))
    assert (status, "too long" in detail) == (431, True)


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: ", get("/livez")])
async def test_a_silent_connection_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """It ends before its first request, in the middle of one, and after one."""
    monkeypatch.setattr(app.web.server, "SILENT_S_MAX", 0.2)
    async with served(MAP, tmp_path) as (_, url), connected(url) as ends:
        ends[1].write(sent)
        assert (b"live" in await ended(ends)) == sent.endswith(b"\r\n")


async def test_an_answer_that_nobody_takes_is_let_go(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that takes a little now and then keeps it."""
    monkeypatch.setattr(app.web.server, "UNTAKEN_S_MAX", 4.0)
    async with connected(url) as slow, connected(url) as stuck:
        for ends in (slow, stuck):
            ends[1].write(get(PAGE))
        left = 11_000_000
        async for number in beats(lambda: 0.15):
            if number == 40:
                break
            for _ in range(20):
                left -= len(await slow[0].read(1 << 20))
        assert len(await ended(stuck)) < 8_000_000
        assert left > 0
        while left > 0:
            some = await asyncio.wait_for(slow[0].read(1 << 20), 20)
            assert some
            left -= len(some)


async def test_of_too_many_answers_that_wait_the_oldest_goes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes that wait for readers have one bound."""
    monkeypatch.setattr(app.web.server, "UNTAKEN_BYTES_MAX", 16_000_000)
    async with connected(url) as first, connected(url) as second:
        for ends in (first, second):
            ends[1].write(get(PAGE))
            await ends[0].readuntil(b"\r\n\r\n")
        assert len(await ended(first)) < 8_000_000
        left = 11_000_000
        while left > 0:
            left -= len(await asyncio.wait_for(second[0].read(1 << 20), 20))


async def test_past_the_most_connections_the_longest_silent_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of silent connections do not keep a reader out."""
    monkeypatch.setattr(app.web.server, "CONNECTIONS_MAX", 4)
    monkeypatch.setattr(app.web.server, "ADDRESS_SHARE", 1.0)
    async with contextlib.AsyncExitStack() as stack:
        _, url = await stack.enter_async_context(served(MAP, tmp_path, query_live_max=1))
        used = await stack.enter_async_context(connected(url))
        assert await answered(used) == 200
        idle = [await stack.enter_async_context(connected(url)) for _ in range(4)]
        assert await answered(used) == 200
        more = [await stack.enter_async_context(connected(url)) for _ in range(3)]
        assert await ended(idle[0]) == b""
        assert await ended(idle[2]) == b""
        assert await answered(used) == 200
        assert await answered(more[-1]) == 200


async def test_where_all_are_busy_a_new_connection_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followers are neither silent nor done."""
    monkeypatch.setattr(app.web.server, "CONNECTIONS_MAX", 0)
    monkeypatch.setattr(app.web.server, "ADDRESS_SHARE", 1.0)
    async with contextlib.AsyncExitStack() as stack:
        given = served(MAP, tmp_path, [stored()], query_live_max=2)
        _, url = await stack.enter_async_context(given)
        for _ in range(2):
            ends = await stack.enter_async_context(connected(url))
            ends[1].write(get("/v1/layers/hour/live"))
            await ends[0].readuntil(b"\r\n\r\n")
        third = await stack.enter_async_context(connected(url))
        status, detail = refused(await ended(third))
    assert (status, "2 connections" in detail) == (503, True)


async def test_a_follower_that_takes_nothing_loses_its_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is not ended in order: that would wait for it."""
    monkeypatch.setattr(app.web.live_stream, "SLOW_S_MAX", 0.3)
    async with connected(url) as ends:
        ends[1].write(get("/v1/layers/hour/live?since=open"))
        await ends[0].readuntil(b"\r\n\r\n")
        begun = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > begun + 2)
        assert len(await ended(ends)) < 10_000_000


async def test_a_body_that_does_not_come_is_a_408(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is a request between workers."""
    monkeypatch.setattr(app.web.handlers, "BODY_S_MAX", 0.1)
    async with connected(url) as ends:
        ends[1].write(
            b"POST /v1/worker/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: 100\r\n\r\nabc"
        )
        head = await asyncio.wait_for(ends[0].readuntil(b"\r\n\r\n"), 20)
        assert head.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in head


async def test_an_expectation_that_nobody_meets_is_a_problem(url: str) -> None:
    """It is refused before any path is looked at."""
    async with connected(url) as ends:
        ends[1].write(get("/livez", "Expect: miracles", "Connection: close"))
        assert refused(await ended(ends))[0] == 417


async def test_a_broken_body_is_told_to_its_sender_alone(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Anyone could fill the log with it."""
    async with connected(url) as ends:
        ends[1].write(
            b"POST /v1/worker/live HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 3\r\n\r\nabc"
        )
        assert refused(await ended(ends))[0] == 400
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_bodies_on_one_connection_are_no_heads(url: str) -> None:
    """Any part of a body may come before its request is begun with."""
    async with aiohttp.ClientSession() as session:
        for _ in range(6):
            async with session.post(f"{url}/v1/worker/live", data=b"x" * 1_000_000) as response:
                assert response.status == 400, await response.text()


async def test_who_leaves_within_a_body_fills_no_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that ask twice do."""
    async with connected(url) as ends:
        ends[1].write(
            b"POST /v1/worker/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc"
        )
        ends[1].write_eof()
        await ended(ends)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_pipelined_requests_are_answered_in_turn(url: str) -> None:
    """Only the requests that wait in order are read meanwhile."""
    async with connected(url) as ends:
        ends[1].write(get("/livez") * 199 + get("/livez", "Connection: close"))
        assert (await ended(ends)).count(b'{"live":true}') == 200


@pytest.mark.parametrize(
    "headers",
    [("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
      "Sec-WebSocket-Key: eA=="),
     ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAM")],
)  # fmt: skip
async def test_no_other_protocol_is_spoken(url: str, headers: tuple[str, ...]) -> None:
    """The request is answered in this one, and the connection ends: nothing waits in it."""
    async with connected(url) as ends:
        ends[1].write(get("/livez", *headers))
        answer = await ended(ends)
    assert answer.endswith(b'{"live":true}')
    assert b"Connection: close" in answer
