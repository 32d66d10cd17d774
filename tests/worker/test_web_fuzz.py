"""No request of a client ends in a 500, for any path, parameters, headers and body."""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec
import orjson
import pytest

from app.peers.wire import WireRead, WireReads
from tables.model.layer import KeyField
from tables.model.window import MONTH, START_MS_MIN, TIME_MS_MAX, YEAR
from tables.query.live import FollowerPosition
from tests.support.common import DAY_MS, HOUR_MS, dataclasses_replace, seeds, small_map
from tests.support.web_support import served, stored

KEY = (KeyField("origin", "string"), KeyField("carrier", "string"))
HOURS, DAYS = small_map().layers
MONTHS = dataclasses_replace(DAYS, name="month", window=MONTH, finer="day")
YEARS = dataclasses_replace(MONTHS, name="year", window=YEAR, finer="month", key=())
MAP = small_map(layers=(HOURS, DAYS, MONTHS, YEARS))
TEXTS = ["", "JFK", "\x00", "é", "🙂", "%", "\n", "'\"", "a" * 2_000]
BYTES = ["%ff", "%ED%A0%80", "%", "%zz", "%00", "+"]
NUMBERS = [0, 1, -1, 2**63 - 1, -(2**63), 2**64, "x", "1e3", "007", "", " 1", "9" * 400]
TIMES = [
    0, HOUR_MS, DAY_MS, 31 * DAY_MS, 365 * DAY_MS, -HOUR_MS, START_MS_MIN, TIME_MS_MAX, 2**63,
    "0001-01-01", "9999-12-31", "2013-02-30", "2013-01-01T00:00:00+14:00", "x", "",
]  # fmt: skip
STEPS = [
    "1h", "day", "month", "year", "7d", "1ms", "5h", "90m", "36500d", "36501d", "999999999999d",
    "0s", "x", "999999999999ms",
]  # fmt: skip
HEADERS = {
    "Accept": ["*/*", "text/csv", "application/x-ndjson", "application/vnd.apache.arrow.stream",
               "text/\xff", "x/y", ";q=", "text/csv;q=nan", "*/*;q=" + "9" * 400, ",,,"],
    "Accept-Encoding": ["gzip", "deflate", "\xff", "br;q=x", "gzip;q=0, *"],
    "If-None-Match": ["*", "\xff", 'W/"x"', ","],
    "Last-Event-ID": ["\xff", "x", "=" * 70_000],
    "Authorization": ["Bearer", "Bearer \xff", "\x80", "Basic x"],
    "Range": ["bytes=0-1", "x"],
    "Expect": ["100-continue", "x"],
    "Content-Encoding": ["gzip", "deflate", "x"],
    "Content-Type": ["\xff", "x"],
    "If-Modified-Since": ["x", "\xff"],
    "Cookie": ["a=\xff", ";;;"],
}  # fmt: skip


def some_cursor(rng: random.Random, layer: str, fields: int) -> str:
    """Return a cursor like those of the endpoint, or nearly so."""
    start = rng.choice([0, TIME_MS_MAX, 2**63, -(2**63), 2**64 - 1, "x"])
    values = [rng.choice(["JFK", "", 1, None, True]) for _ in range(fields)]
    raw = orjson.dumps([layer, rng.choice([1, 2]), start, *values])
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def some_query(rng: random.Random, kind: str, layer: str) -> str:
    """Return parameters: mostly those that the path takes, with values of every sort."""
    fields = {"hour": 2, "year": 0}.get(layer, 1)
    given: list[tuple[str, object]] = []
    if rng.random() < 0.7:
        given += [("from", 0), ("to", rng.choice([31 * DAY_MS, 365 * DAY_MS]))]
    elif rng.random() < 0.9:
        given += [("from", rng.choice(TIMES)), ("to", rng.choice(TIMES))]
    names: dict[str, Sequence[object]] = {
        "key.origin": TEXTS, "key.carrier": TEXTS, "prefix.carrier": TEXTS, "limit": NUMBERS,
        "n": NUMBERS, "deadline_ms": NUMBERS, "max_staleness_ms": [0, 5, "x"], "step": STEPS,
        "interval_ms": NUMBERS, "since": ["now", "open", "x"], "group": ["origin", "-", "x"],
        "by": ["count", "variance_delay", "mean_delay", "x"], "order": ["asc", "desc", ""],
        "measures": ["count", "min_delay", "x"], "explain": ["true", "false", "x"],
        "partial": ["allow", "refuse"], "x": [""],
    }  # fmt: skip
    for name in rng.sample(sorted(names), rng.choice([0, 1, 2, 4])):
        given += [(name, rng.choice(names[name]))] * rng.choice([1, 1, 1, 2])
    if rng.random() < 0.3:
        given.append(("cursor", some_cursor(rng, layer, fields)))
    if kind == "top" and rng.random() < 0.9:
        given.append(("by", rng.choice(["count", "sum_delay"])))
    parts = [f"{name}={quote(str(value), safe='')}" for name, value in given]
    if rng.random() < 0.05:
        parts.append(f"key.carrier={rng.choice(BYTES)}")
    return "&".join(parts)


def some_body(rng: random.Random) -> bytes:
    """Return a body as workers send it, or nearly so."""
    number = rng.choice([0, 2**63, 2**64 - 1, -(2**63), 7])
    read = WireRead(
        rng.choice(["hour", "day", "x"]), 0, number,
        rng.choice([{}, {"origin": ["JFK"]}, {"x": [1]}, {"origin": []}, {"carrier": [2**64 - 1]}]),
        rng.choice([{}, {"carrier": "U"}, {"x": ""}]),
        rng.choice([False, True]), rng.choice([None, [0], [number]]),
        rng.choice([None, {0: FollowerPosition(number, 0, 0)}]),
    )  # fmt: skip
    body = msgspec.msgpack.encode(WireReads(rng.choice([MAP.digest, "x"]), [read]))
    return rng.choice([body, body, body, body[:-1], b"", b"\xff"])


def some_request(rng: random.Random) -> bytes:
    """Return the bytes of a request."""
    layer = rng.choice(["hour", "day", "month", "year", "x"])
    kind = rng.choice(["cells", "top", "live", "family", "worker", "other"])
    path = {
        "family": "/v1/families/hour/cells", "worker": "/v1/worker/live",
        "other": rng.choice(["/v1/map", "/livez", "/metrics", "/x", "//", "/v1/layers/%ff/cells"]),
    }.get(kind, f"/v1/layers/{layer}/{kind}")  # fmt: skip
    method = rng.choice(["GET"] * 8 + ["HEAD", "POST", "OPTIONS", "PURGE"])
    body = some_body(rng) if kind == "worker" else b""
    if kind == "worker":
        method = "POST"
    elif rng.random() < 0.9:
        path += f"?{some_query(rng, kind, layer)}"
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    names = rng.sample(sorted(HEADERS), rng.choice([0, 1, 1, 2, 3]))
    lines += [f"{name}: {rng.choice(HEADERS[name])}" for name in names]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def status_of(url: str, request: bytes) -> tuple[int, bytes]:
    """Return an answer's status and head; of a stream, too, which is left then."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        async with asyncio.timeout(20):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ")[1]), head
    finally:
        writer.close()


@pytest.mark.parametrize("seed", seeds(3))
async def test_no_request_ends_in_a_fault(seed: int, tmp_path: Path) -> None:
    """Each is answered, or refused with a 4xx, or comes too late or too often."""
    rng = random.Random(seed)
    rows = [
        stored(rng.choice(["JFK", "é", "\x00"]), f"{number}", hour=number % 90, version=number)
        for number in range(200)
    ]
    found: Counter[int] = Counter()
    async with served(MAP, tmp_path, rows[:50], rows[50:], query_deadline_ms=2_000) as (view, url):
        for number in range(400):
            if number % 100 == 0:
                view.live.archived_ms = rng.choice([-(2**62), 0, 2**50])
                view.live.closed_ms = view.live.archived_ms
            request = some_request(rng)
            status, head = await status_of(url, request)
            found[status] += 1
            assert status != 500, (seed, request)
            assert status < 500 or status in {503, 504}, (seed, request)
            if status >= 400 and head.startswith(b"HTTP/1."):
                assert b"application/problem+json" in head, (seed, request, head)
    assert found[200] > 5
    assert found[400] > 100


async def test_the_head_of_a_stream_ends(tmp_path: Path) -> None:
    """The next request on its connection is answered."""
    async with served(MAP, tmp_path, [stored()]) as (_, url):
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        line = "HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        writer.write(f"HEAD /v1/layers/hour/live {line}GET /livez {line}".encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            following = await reader.readuntil(b"\r\n\r\n")
            assert following.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(13) == b'{"live":true}'
        writer.close()


@pytest.mark.parametrize("query", ["key.carrier=%ff", "key.carrier=%ED%A0%80", "%ff=1"])
async def test_a_query_that_is_not_utf_8_is_refused(tmp_path: Path, query: str) -> None:
    """It would name a key that no producer can have sent, and find nothing."""
    async with served(MAP, tmp_path, [stored()]) as (_, url):
        line = f"GET /v1/layers/hour/cells?from=0&to=1&{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        status, head = await status_of(url, line.encode())
    assert (status, b"problem+json" in head) == (400, True)
