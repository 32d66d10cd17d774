"""The query endpoint over a real server, a real embedded archive, and Faust's own web server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import polars as pl
import pytest
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from app.config.settings import Settings
from app.peers.wire import PATH
from app.runtime.faust_app import create_app
from app.web.endpoint import install
from app.web.guard import host_name
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveDamagedError, ArchiveError
from tables.model.layer import Layer
from tables.threads import Threads
from tests.support.common import DAY_MS, HOUR_MS, small_map
from tests.support.servers import free_ports
from tests.support.waiting import until
from tests.support.web_support import (
    METRICS,
    FrameCells,
    StandingView,
    frame,
    get,
    given_cells,
    in_thread,
    served,
    stored,
)
from treasure_map import QueryClient, QueryFailedError
from treasure_map.status import Layers
from treasure_map.version import version

MAP = small_map()
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
CELLS = f"/v1/layers/hour/cells?from=0&to={DAY_MS}"


class HeldArchive(EmbeddedArchive):
    """An archive whose reads wait until the test lets them go, or fail as the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reading = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Wait, then fail or return nothing."""
        del cells, cost
        self.reading += 1
        try:
            await self.go.wait()
        finally:
            self.reading -= 1
        if self.error is not None:
            raise self.error
        return frame([], layer)


async def test_live_and_archived_cells_are_one_answer(tmp_path: Path) -> None:
    """A late update in the live table wins over the archive; other cells come from either."""
    live = [stored(version=9, delays=[5, 6]), stored(hour=2)]
    archived = [stored(version=3, delays=[5]), stored(hour=1)]
    async with served(MAP, tmp_path, live, archived) as (_, url):
        status, body, headers = await get(url + CELLS)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert [(row["window_start"], row["measures"]["sum_delay"]) for row in body["cells"]] == [
        (0, 11),
        (HOUR_MS, 1),
        (2 * HOUR_MS, 1),
    ]
    assert body["rows_read"] == {"live": 2, "archived": 2}
    assert (body["cursor"], body["partial"], body["layer"]) == (None, False, "hour")


async def test_what_live_tables_cover_is_not_read_from_the_archive(tmp_path: Path) -> None:
    """Cells not evicted are all here; an hour before them needs the archive again."""
    live, archived = [stored(hour=2)], [stored(hour=1)]
    async with served(MAP, tmp_path, live, archived) as (view, url):
        view.live.evicted_ms = 2 * HOUR_MS
        for first, rows in ((2, {"live": 1, "archived": 0}), (1, {"live": 1, "archived": 1})):
            path = f"/v1/layers/hour/cells?from={first * HOUR_MS}&to={DAY_MS}"
            status, body, _ = await get(url + path)
            assert status == 200
            assert body["rows_read"] == rows


@pytest.mark.parametrize("path", ["layers/hour/cells", "families/hour/cells", "layers/hour/top"])
async def test_an_empty_answer_hints_at_seconds(tmp_path: Path, path: str) -> None:
    """A caller that asked in seconds gets a hint; one that did not, or got cells, gets none."""
    by = "&by=count" if path.endswith("top") else ""
    async with served(MAP, tmp_path, [stored(hour=2)]) as (_, url):
        for first, last, told in (
            (1_706_400, 1_710_000, True),
            (0, 10_800, False),
            (1_706_400_000, 1_710_000_000, False),
        ):
            span = f"from={first * 1_000}&to={last * 1_000}"
            status, body, _ = await get(f"{url}/v1/{path}?{span}{by}")
            assert status == 200
            assert ("hint" in body) is told, body


async def test_key_and_range_choose_the_cells(tmp_path: Path) -> None:
    """The range holds its start and not its end; keys not named match all."""
    origins = ("EWR", "JFK")
    live = [stored(origin, hour=hour) for origin in origins for hour in range(3)]
    archived = [stored(origin, hour=hour) for origin in origins for hour in range(3, 6)]
    path = "/v1/layers/hour/cells?key.origin=JFK&from=1970-01-01T01:00:00Z&to=1970-01-01T05:00:00Z"
    async with served(MAP, tmp_path, live, archived) as (_, url):
        _, body, _ = await get(url + path)
    assert [row["window_start"] // HOUR_MS for row in body["cells"]] == [1, 2, 3, 4]
    assert {row["key"]["origin"] for row in body["cells"]} == {"JFK"}


async def test_pages_cover_every_cell_once_in_order(tmp_path: Path) -> None:
    """Following the cursor gives the cells of one large page."""
    rows = [
        stored(origin, carrier, hour=hour)
        for origin in ("EWR", "JFK", "LGA")
        for carrier in ("B6", "UA")
        for hour in range(4)
    ]
    async with served(MAP, tmp_path, rows[::2], rows[1::2]) as (_, url):
        _, whole, _ = await get(f"{url}{CELLS}&limit=24")
        found: list[Any] = []
        cursor = ""
        while cursor is not None:
            page = f"&cursor={cursor}" if cursor else ""
            _, body, _ = await get(f"{url}{CELLS}&limit=5{page}")
            found += body["cells"]
            cursor = body["cursor"]
    assert whole["cursor"] is None
    assert len(found) == 24
    assert found == whole["cells"]
    assert given_cells(found) == sorted(given_cells(found))


async def test_an_answer_without_every_partition_says_partial(tmp_path: Path) -> None:
    """Another worker may hold open cells of the partition that is not served here."""
    async with served(MAP, tmp_path, [stored()]) as (view, url):
        view.live.served = {1}
        _, body, _ = await get(url + CELLS)
    assert (body["partial"], body["partitions_served"], body["partitions"]) == (True, 1, 2)
    assert len(body["cells"]) == 1


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/v1/layers/hour/cells?from=noon", 400, "from: not a time; got 'noon'"),
        (f"{CELLS}&key.orign=JFK", 400, "did you mean key.origin?"),
        (f"{CELLS}&limit=0", 400, "want a whole number from 1 to 10000"),
        (f"{CELLS}&cursor=abc", 400, "not a cursor of this layer"),
        ("/v1/layers/hour/cells?from=5&to=5", 400, "want a time after from"),
        ("/v1/layers/nope/cells?from=0&to=1", 404, "want one of hour, day"),
        ("/v1/map?pretty=1", 400, "it takes no parameters; got pretty"),
        ("/", 404, "no such path"),
    ],
)
async def test_a_refusal_is_a_problem_that_says_what_to_change(
    tmp_path: Path, path: str, status: int, detail: str
) -> None:
    """RFC 9457 gives the form of every refusal."""
    async with served(MAP, tmp_path) as (_, url):
        found, body, headers = await get(url + path)
    assert found == status
    assert headers["Content-Type"] == "application/problem+json"
    assert body["status"] == status
    assert detail in body["detail"]


async def test_only_reading_is_possible(tmp_path: Path) -> None:
    """Another method is a 405 that names those allowed."""
    async with (
        served(MAP, tmp_path) as (_, url),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/map") as response,
    ):
        assert response.status == 405
        assert response.headers["Content-Type"] == "application/problem+json"
        assert "GET" in response.headers["Allow"]
        assert (await response.json(content_type=None))["detail"] == (
            "cannot answer /v1/map: the path does not take this method; got POST; want GET or HEAD"
        )


async def test_a_path_of_workers_names_its_own_method(tmp_path: Path) -> None:
    """It is asked by POST, so the sentence must not want the GET that it got."""
    async with served(MAP, tmp_path) as (_, url):
        found, body, headers = await get(url + PATH)
    assert found == 405
    assert headers["Allow"] == "POST"
    assert "got GET; want POST" in body["detail"]


class ThreadedArchive(EmbeddedArchive):
    """An archive whose reads are in a thread, which nobody can stop, until the test says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.threads = Threads(8, "test")
        self.reading = 0
        self.go = threading.Event()

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Wait in a thread, then return nothing."""
        del cells, cost
        await self.threads.run(self._wait)
        return frame([], layer)

    def _wait(self) -> None:
        self.reading += 1
        self.go.wait()
        self.reading -= 1


async def test_a_query_that_was_given_up_counts_until_nothing_of_it_runs(tmp_path: Path) -> None:
    """Any number of short deadlines keeps the archive within its reads at once."""
    archive = ThreadedArchive(tmp_path)
    path = f"{CELLS.replace('layers', 'families')}&key.origin=JFK&key.carrier=UA&deadline_ms=20"
    async with served(MAP, tmp_path, archive=archive, query_concurrency_max=2) as (_, url):
        found = [(await get(url + path))[0] for _ in range(20)]
        assert found == [504, 504] + [503] * 18
        assert archive.reading == 2
        archive.go.set()

        async def answers() -> bool:
            return (await get(f"{url}{path}00"))[0] == 200

        await until(answers)
    archive.threads.close()


async def test_more_rows_than_the_archive_may_read_are_refused(tmp_path: Path) -> None:
    """The setting bounds the rows that one query reads."""
    rows = [stored(hour=hour) for hour in range(5)]
    async with served(MAP, tmp_path, [], rows, query_rows_max=4) as (_, url):
        status, body, _ = await get(url + CELLS)
    assert status == 400
    assert "4" in body["detail"]


async def test_map_layers_ledger_and_health_answer(tmp_path: Path) -> None:
    """The endpoint serves the facts of the view."""
    async with served(MAP, tmp_path) as (view, url):
        _, themap, _ = await get(f"{url}/v1/map")
        assert (themap["revision"], themap["sources"][0]["topic"]) == (1, "flights.raw")
        assert [layer["name"] for layer in themap["layers"]] == ["hour", "day"]
        assert themap["layers"][1]["input_topic"] == "small.layer.day"
        assert themap["layers"][1]["window"] == "1d"
        assert (await get(f"{url}/v1/layers"))[1] == msgspec.to_builtins(
            Layers(view.layers(), view.unselected())
        )
        assert (await get(f"{url}/v1/ledger"))[1]["records"] == {"raw": {"0": {"read": 3}}}
        assert (await get(f"{url}/livez"))[:2] == (200, {"live": True})
        view.mend = ["the group has a member that is not a worker"]
        assert (await get(f"{url}/readyz"))[0] == 200
        view.reasons = ["restoring 2 partitions", "101 records behind"]
        assert (await get(f"{url}/readyz"))[:2] == (
            503,
            {
                "ready": False,
                "reason": "restoring 2 partitions",
                "reasons": ["restoring 2 partitions", "101 records behind"],
                "serving": {"raw": [0]},
                "restoring": {"raw": [1]},
                "paused": {},
                "insecure": False,
                "warnings": ["the group has a member that is not a worker"],
                "map": "small",
                "map_revision": 1,
                "version": version(),
                "lag": {"raw": {"0": 7, "1": None}},
            },
        )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:6066", 200),
        ("[::1]:6066", 200),
        ("evil.example", 403),
        ("localhost.evil.example:6066", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
async def test_on_loopback_only_names_of_this_machine_are_answered(
    tmp_path: Path, host: str, status: int
) -> None:
    """A page that rebinds its name to loopback is turned away, also from the health checks."""
    async with served(MAP, tmp_path) as (_, url):
        assert (await get(f"{url}/v1/map", Host=host))[0] == status
        assert (await get(f"{url}/livez", Host=host))[0] == status


def test_the_port_is_no_part_of_a_host_name() -> None:
    """Bracketed IPv6 addresses too."""
    assert host_name("[::1]:80") == "::1"
    assert host_name("a:80") == "a"
    assert host_name("a") == "a"


async def test_metrics_are_plain_text_behind_the_same_door(tmp_path: Path) -> None:
    """They want the token if one is set, as all that tells of data does."""
    async with served(MAP, tmp_path) as (_, url), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/metrics") as response:
            assert response.headers["Content-Type"] == CONTENT_TYPE_PLAIN_0_0_4
            assert await response.read() == METRICS
        assert (await get(f"{url}/metrics?a=1"))[0] == 400
        assert (await get(f"{url}/metrics", Host="a.example"))[0] == 403
    async with served(MAP, tmp_path, web_token=TOKEN) as (_, url):
        assert (await get(f"{url}/metrics"))[0] == 401


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer é"],
)
async def test_with_a_token_nothing_else_opens_the_door(tmp_path: Path, authorization: str) -> None:
    """Only the whole token under the Bearer scheme does."""
    async with served(MAP, tmp_path, web_token=TOKEN) as (_, url):
        status, body, headers = await get(f"{url}/v1/map", Authorization=authorization)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert TOKEN not in str(body)
        assert (await get(f"{url}/v1/nothing", Authorization=authorization))[0] == 401


async def test_the_token_opens_everything_and_health_needs_none(tmp_path: Path) -> None:
    """The scheme's case does not count; the Host header is not checked with a token."""
    async with served(MAP, tmp_path, web_token=TOKEN) as (_, url):
        for scheme in ("Bearer", "bearer"):
            found = await get(f"{url}/v1/map", Authorization=f"{scheme} {TOKEN}", Host="a.example")
            assert found[0] == 200
        assert (await get(f"{url}/livez"))[0] == 200
        assert (await get(f"{url}/readyz"))[0] == 200


async def test_more_queries_at_once_than_may_be_are_turned_away(tmp_path: Path) -> None:
    """The third of two gets 503 with Retry-After; when one is done, the next is answered."""
    archive = HeldArchive(tmp_path)
    async with served(MAP, tmp_path, archive=archive, query_concurrency_max=2) as (_, url):
        held = [asyncio.create_task(get(url + CELLS)) for _ in range(2)]
        await until(lambda: is_reading(archive, 2))
        status, body, headers = await get(url + CELLS)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "query_concurrency_max" in body["detail"]
        assert (await get(f"{url}/livez"))[0] == 200
        archive.go.set()
        assert [found[0] for found in await asyncio.gather(*held)] == [200, 200]
        assert (await get(url + CELLS))[0] == 200


async def is_reading(archive: HeldArchive, count: int) -> bool:
    """Return whether so many reads wait in the archive."""
    return archive.reading == count


async def test_a_late_query_is_given_up_and_its_slot_is_free_again(tmp_path: Path) -> None:
    """The deadline gives 504 and ends the archive's read."""
    settings: dict[str, Any] = {"query_deadline_ms": 50, "query_concurrency_max": 1}
    archive = HeldArchive(tmp_path)
    async with served(MAP, tmp_path, archive=archive, **settings) as (_, url):
        status, body, headers = await get(url + CELLS)
        assert (status, headers["Retry-After"]) == (504, "1")
        assert "not done after 50 ms" in body["detail"]
        await until(lambda: is_reading(archive, 0))
        assert (await get(url + CELLS))[0] == 504


async def test_an_archive_that_fails_is_a_503_without_its_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The cause goes to the log, not to the reader."""
    archive = HeldArchive(tmp_path)
    async with served(MAP, tmp_path, archive=archive) as (_, url):
        archive.go.set()
        archive.error = ArchiveError("cannot read: node 10.1.2.3 is down")
        status, body, headers = await get(url + CELLS)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "10.1.2.3" not in str(body)
        assert "10.1.2.3" in caplog.text
        archive.error = RuntimeError("a fault at 10.9.9.9")
        status, body, _ = await get(url + CELLS)
        assert status == 500
        assert "10.9.9.9" not in str(body)
        assert "10.9.9.9" in caplog.text


async def test_damaged_rows_are_a_500_that_names_the_range_and_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not an outage: asking again does not help, and the answer does not suggest it."""
    archive = HeldArchive(tmp_path)
    async with served(MAP, tmp_path, archive=archive) as (_, url):
        archive.go.set()
        archive.error = ArchiveDamagedError("cannot read: /var/archive/000009.sst is damaged")
        status, body, headers = await get(url + CELLS)
        assert status == 500
        assert "Retry-After" not in headers
        assert "archived rows are damaged; got layer hour, windows from" in body["detail"]
        assert "000009" not in str(body)
        assert "000009" in caplog.text


async def test_faust_serves_the_endpoint_and_nothing_of_its_own(tmp_path: Path) -> None:
    """Mounted on a real Faust app without Kafka; its index, tables and router are gone."""
    port = free_ports(1)[0]
    app = create_app("web-test", data_folder=tmp_path / "faust", web_port=port, uvloop=False)
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    live = FrameCells(frame([stored()]), {0, 1})
    install(
        app, StandingView(MAP, archive, live), Settings(web_port=port), live=live,
        cache=ArchiveCache(archive, 0), metrics=lambda: METRICS,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    await app.start()
    try:
        status, body, _ = await get(url + CELLS)
        assert (status, len(body["cells"])) == (200, 1)
        for path in ("/", "/table/", "/router/", "/graph/", "/stats/", "/performance/"):
            assert (await get(url + path))[0] == 404, path
        assert (await get(f"{url}/v1/map", Host="evil.example"))[0] == 403
    finally:
        await app.stop()
        await archive.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_the_client_reads_over_tls_and_checks_the_certificate(tmp_path: Path) -> None:
    """It is answered with the authority's file; without it the certificate is refused."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", key, "-out", cert]
    run = [*request, *names, *files]
    done = await in_thread(subprocess.run, run, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    tls: dict[str, Any] = {"web_cert_file": cert, "web_key_file": key}
    async with served(MAP, tmp_path / "archive", [stored()], **tls) as (_, url):
        with QueryClient(url, ca_file=cert) as client:
            answer = await in_thread(client.cells, "hour", {}, 0, DAY_MS)
            assert len(answer.cells) == 1
        with (
            QueryClient(url) as client,
            pytest.raises(QueryFailedError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            await in_thread(client.map)


async def test_the_client_reads_all_pages_with_exact_integers(tmp_path: Path) -> None:
    """Sums beyond 64 bits are integers again; the limit cuts and says so."""
    big = 2**90 + 1
    rows = [stored(hour=hour) | {"sum_delay": big} for hour in range(5)]
    async with served(MAP, tmp_path, rows, query_limit_max=1_000) as (view, url):
        with QueryClient(url) as client:
            answer = await in_thread(client.cells, "hour", {"origin": "JFK"}, 0, DAY_MS)
            assert [cell.measures["sum_delay"] for cell in answer.cells] == [big] * 5
            assert (answer.more, answer.partial) == (False, False)
            view.live.served = set()
            some = await in_thread(client.cells, "hour", {}, "1970-01-01", DAY_MS, limit=3)
            assert (len(some.cells), some.more, some.partial) == (3, True, True)
            assert (await in_thread(client.map))["name"] == "small"
            assert await in_thread(client.layers) == view.layers()
            assert (await in_thread(client.ledger))["balanced"] is True


async def test_the_client_follows_pages_of_the_servers_size(tmp_path: Path) -> None:
    """Pages smaller than the answer are read to the end."""
    rows = [stored(hour=hour) for hour in range(7)]
    async with served(MAP, tmp_path, rows[:3], rows[3:], query_limit_max=2) as (_, url):
        with QueryClient(url) as client:
            answer = await in_thread(client.cells, "hour", {}, 0, DAY_MS)
    assert [cell.window_start // HOUR_MS for cell in answer.cells] == list(range(7))


async def test_the_client_tells_why_it_was_refused(tmp_path: Path) -> None:
    """The problem's detail, its status, and when to ask again."""
    archive = HeldArchive(tmp_path)
    archive.go.set()
    async with served(MAP, tmp_path, archive=archive, web_token=TOKEN) as (_, url):
        with QueryClient(url) as client, pytest.raises(QueryFailedError) as caught:
            await in_thread(client.map)
        assert caught.value.status == 401
        with QueryClient(url, TOKEN) as client:
            with pytest.raises(QueryFailedError, match="want one of hour, day") as caught:
                await in_thread(client.cells, "x/y?z", {}, 0, 1)
            assert (caught.value.status, caught.value.retry_after_s) == (404, None)
            archive.error = ArchiveError("down")
            with pytest.raises(QueryFailedError, match="does not answer now") as caught:
                await in_thread(client.cells, "hour", {}, 0, 1)
            assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_the_client_tells_that_nobody_is_there() -> None:
    """A refused connection is one error, with the address and advice."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with (
        QueryClient(url) as client,
        pytest.raises(QueryFailedError, match=f"cannot reach {url}") as caught,
    ):
        client.map()
    assert caught.value.status is None


@pytest.mark.parametrize("url", ["ftp://a", "127.0.0.1:6066", "http://", "http://a/?x=1"])
def test_the_client_refuses_what_is_no_address(url: str) -> None:
    """It does so before anything is sent."""
    with pytest.raises(ValueError, match="want http://host:port"):
        QueryClient(url)
