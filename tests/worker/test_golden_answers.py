"""The answers of every route, byte by byte beside those that are kept in ``tests/worker/golden``.

Programs of others read these bytes; sentences for people, and times, are left out. If a change is
meant, ``KEEP_ANSWERS=1`` writes them anew, and their difference is part of the commit.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents.partition.emitter import Emitter
from app.peers.wire import PATH, encode_reads
from app.runtime.worker_status import WorkerStatus
from tables.archive.embedded.archive import EmbeddedArchive
from tables.query.live import LiveRead
from tests.support.common import DAY_MS, HOUR_MS, NO_PRESSURE, MemoryLog, small_map
from tests.support.local_worker import RAW, LocalWorker, fill
from tests.support.web_support import METRICS, served, stored

KEPT = Path(__file__).resolve().parent / "golden" / "answers.txt"
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
MAP = small_map()
RANGE = f"from=0&to={DAY_MS}"
FAMILY = f"/v1/families/hour/cells?{RANGE}"
CELLS = f"/v1/layers/hour/cells?{RANGE}"
# Sums beyond 64 bits, variances beyond 2**53, keys that JSON escapes.
ROWS = [
    stored(origin, carrier, hour=hour, delays=[hour, 5, *big], version=hour + 1)
    for origin, big in (("JFK", []), ('L"\\Ä', [2**62]))
    for carrier in ("AA", "UA")
    for hour in range(4)
]
ASKED = (
    ("/livez", ""), ("/readyz", ""), ("/v1/map", ""), ("/v1/cluster", ""), ("/v1/layers", ""),
    ("/v1/families", ""), ("/v1/ledger", ""), ("/metrics", ""),
    (CELLS, ""), (f"{CELLS}&limit=3&key.carrier=UA", ""), (f"{CELLS}&limit=3", "text/csv"),
    (f"{CELLS}&limit=2", "application/x-ndjson"), ("/v1/layers/day/cells?from=1&to=2", ""),
    (FAMILY, ""), (f"{FAMILY}&step=2h&group=carrier&limit=3", ""), (f"{FAMILY}&explain=true", ""),
    (f"{FAMILY}&step=1h&measures=count", "text/csv"), ("/v1/families/hour/cells?from=0&to=0", ""),
    (f"{FAMILY}&limit=1", "application/x-ndjson"), ("/v1/families/day/cells", ""),
    (f"/v1/layers/hour/top?{RANGE}&by=sum_delay&n=2", ""),
    (f"/v1/layers/day/top?{RANGE}&by=count&order=asc&explain=true", ""),
    ("/v1/layers/week/cells", ""), ("/v1/map?x=1", ""), ("/nothing", ""),
    (CELLS, "image/png"), ("/v1/layers/hour/live?since=open", "text/event-stream"),
)  # fmt: skip
GUARDED = (("/readyz", ""), ("/readyz", TOKEN), ("/openapi.json", TOKEN))
HEADERS = (
    "Content-Type", "Cache-Control", "Vary", "ETag", "Treasure-Map-Answer", "Treasure-Map-Cursor",
    "Retry-After", "Allow",
)  # fmt: skip


SENTENCES = re.compile(r'"(detail|hint|description|summary|version)":"(?:[^"\\]|\\.)*"')


class QuietTransport:
    """The transport of a status, one that has handed all over."""

    def lag_records(self) -> dict[tuple[str, int], int | None]:
        """Return one lag that is known."""
        return {(RAW, 0): 0}

    def positions(self) -> dict[tuple[str, int], int]:
        """Return the position of one partition."""
        return {(RAW, 0): 12}

    def restoring(self) -> list[tuple[str, int]]:
        """Return one partition."""
        return [("small.layer.day", 1)]


@pytest.fixture
async def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerStatus]:
    """Return the status of a worker that has read events, one without meaning, and sent nothing."""

    async def away(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Emitter, "_serve", away)
    archive = EmbeddedArchive(tmp_path / "worker")
    await archive.open(MAP)
    log = MemoryLog()
    fill(log, 3, 40)
    log.put(RAW, 0, b"no JSON")
    house = LocalWorker(log, archive, tmp_path / "state")
    await house.restore()
    assert await house.step(RAW, 1_000)
    transport: Any = QuietTransport()
    yield WorkerStatus(MAP, archive, house.owners, transport, NO_PRESSURE, readiness=list)
    await house.kill()
    await archive.close()


def shown(path: str, accept: str, response: aiohttp.ClientResponse, body: bytes) -> str:
    """Return an answer as it is kept, with a line for each object of JSON."""
    named = [f"{name}: {response.headers[name]}" for name in HEADERS if name in response.headers]
    head = "\n".join([f"=== {path} {accept}".rstrip(), str(response.status), *named])
    text = re.sub(r'"data_age_ms":\d+', '"data_age_ms":0', f"{head}\n\n{body.decode()}")
    text = SENTENCES.sub(r'"\1":"..."', text)
    return text.replace("},", "},\n").rstrip("\n") + "\n"


async def told(response: aiohttp.ClientResponse) -> bytes:
    """Return the beginning of a stream: up to the second event that has an id."""
    lines: list[bytes] = []
    while sum(line.startswith(b"id: ") for line in lines) < 2:
        lines.append(await response.content.readline())
        assert lines[-1], "the stream has ended"
    return b"".join(lines)


async def test_answers_are_those_that_are_kept(tmp_path: Path, status: WorkerStatus) -> None:
    """A worker answers over cells that are live, archived, both and neither."""
    found = []
    async with (
        served(MAP, tmp_path / "a", ROWS[::2], ROWS[1:]) as (view, url),
        aiohttp.ClientSession() as session,
    ):
        view.live.fresh_ms = view.live.closed_ms = 2 * HOUR_MS
        for name in (
            "layers", "unselected", "lag", "ledger", "serving", "restoring", "paused",
        ):  # fmt: skip
            setattr(view, name, getattr(status, name))
        for path, accept in ASKED:
            headers = {"Accept": accept} if accept else {}
            async with session.get(url + path, headers=headers) as response:
                is_stream = response.content_type == "text/event-stream"
                body = await told(response) if is_stream else await response.read()
                found.append(shown(path, accept, response, body))
        reads = encode_reads(MAP, [LiveRead(MAP.layer("hour"))])
        async with session.post(url + PATH, data=reads) as response:
            body = (await response.read()).hex().encode()
            found.append(shown(PATH, "", response, body))
        view.live.served = {0}
        for path in (f"{CELLS}&limit=1", FAMILY, f"{FAMILY}&partial=refuse"):
            async with session.get(url + path) as response:
                found.append(shown(path, "partial", response, await response.read()))
        view.live.served, view.live.archived_ms = {0, 1}, 10 * DAY_MS
        async with session.get(url + FAMILY) as response:
            found.append(shown(FAMILY, "final", response, await response.read()))
    assert METRICS.decode() in found[7]
    async with (
        served(MAP, tmp_path / "b", web_token=TOKEN) as (view, url),
        aiohttp.ClientSession() as session,
    ):
        view.reasons = ["it is not restored", "it is paused"]
        for path, token in GUARDED:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.get(url + path, headers=headers) as response:
                found.append(shown(path, "guarded", response, await response.read()))
    text = "".join(found)
    if os.environ.get("KEEP_ANSWERS"):
        KEPT.write_text(text)
    assert text == KEPT.read_text()
