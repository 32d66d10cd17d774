"""Workers prove themselves to each other; who is not one learns nothing that opens a door."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from app.config.settings import Settings
from app.peers import troubles as peer_troubles
from app.peers.remote_owners import Peers
from app.peers.wire import PATH, encode_jobs, encode_reads
from app.trust.certificates import PemFiles, client_context
from app.trust.proof import HEADER, SKEW_S, PeerKey, ProofError
from app.web.access import peer_key
from tables.model.cost import QueryCost
from tables.query.live import LiveJob, LiveRead, LiveRows
from tests.support.common import small_map
from tests.support.pki import Authority
from tests.support.waiting import beats
from tests.support.web_support import served, stored

MAP = small_map()
SECRET = "secret-between-workers"  # noqa: S105 - no password of anything
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
URL = "https://worker-1:6066"
READS = [LiveRead(MAP.layer("hour"))]
BODY = encode_reads(MAP, READS)


class Clock:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


def key(clock: Clock, secret: str = SECRET, url: str = URL) -> PeerKey:
    """Return the key of a worker at ``url``."""
    return PeerKey(secret, url, clock)


def test_a_request_and_its_answer_are_proved(clock: Clock) -> None:
    """The same proof is good once."""
    asker, asked = key(clock, url="https://worker-0:6066"), key(clock)
    proof = asker.sign("POST", URL, PATH, BODY)
    assert asked.check("POST", PATH, proof.header) == proof
    asker.check_answer(proof, asked.sign_answer(proof, b"rows"), b"rows")
    with pytest.raises(ProofError, match="the request was here before"):
        asked.check("POST", PATH, proof.header)
    for body, header in ((b"other", asked.sign_answer(proof, b"rows")), (b"rows", "")):
        with pytest.raises(ProofError, match="its answer is not signed by a worker"):
            asker.check_answer(proof, header, body)
    other = asker.sign("POST", URL, PATH, BODY)
    with pytest.raises(ProofError, match="its answer is not signed"):
        asker.check_answer(other, asked.sign_answer(proof, b"rows"), b"rows")


@pytest.mark.parametrize("off_s", [-SKEW_S - 1, SKEW_S + 1])
def test_a_proof_has_its_time(clock: Clock, off_s: float) -> None:
    """Clocks may be a minute apart, and no more."""
    proof = key(clock).sign("POST", URL, PATH, BODY)
    clock.now_s += off_s
    with pytest.raises(ProofError, match="want clocks within 60 s"):
        key(clock).check("POST", PATH, proof.header)


def test_nonces_are_forgotten_only_when_their_time_is_over(clock: Clock) -> None:
    """The memory of nonces is bounded by two minutes."""
    asker, asked = key(clock), key(clock)
    proofs = [asker.sign("POST", URL, PATH, BODY) for _ in range(100)]
    for proof in proofs:
        asked.check("POST", PATH, proof.header)
    assert len(asked._nonces) == 100
    clock.now_s += 2 * SKEW_S + 1
    asked.check("POST", PATH, asker.sign("POST", URL, PATH, BODY).header)
    assert len(asked._nonces) == 1
    with pytest.raises(ProofError):
        asked.check("POST", PATH, proofs[0].header)


def test_a_proof_is_for_one_worker_path_method_and_secret(clock: Clock) -> None:
    """Any other signature is wrong, and so is any other text."""
    asked = key(clock)
    good = key(clock).sign("POST", URL, PATH, BODY).header
    for header in (
        key(clock).sign("POST", "https://worker-2:6066", PATH, BODY).header,
        key(clock).sign("GET", URL, PATH, BODY).header,
        key(clock).sign("POST", URL, "/v1/map", BODY).header,
        key(clock, "secret-of-another-group").sign("POST", URL, PATH, BODY).header,
        good[:-1] + ("0" if good[-1] != "0" else "1"),
    ):
        with pytest.raises(ProofError, match="the signature is wrong"):
            asked.check("POST", PATH, header)
    for header in ("", "x", good + " ", good.replace("1 ", "2 ", 1), f"Bearer {SECRET}", "é" * 9):
        with pytest.raises(ProofError, match="want the header Treasure-Map-Proof"):
            asked.check("POST", PATH, header)
    assert SECRET not in good


def test_the_key_follows_from_the_peer_secret_else_from_the_token(clock: Clock) -> None:
    """There is no key without one of them."""
    assert peer_key(Settings()) is None
    own = "http://127.0.0.1:6066"
    for secret, settings in (
        (SECRET, Settings(peer_secret=SECRET, web_token=TOKEN)),
        (TOKEN, Settings(web_token=TOKEN)),
    ):
        made = peer_key(settings)
        assert made is not None
        proof = PeerKey(secret, "").sign("POST", own, PATH, BODY)
        assert made.check("POST", PATH, proof.header).sha256 == proof.sha256
    del clock


@contextlib.asynccontextmanager
async def rogue(
    answer: Any, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """Serve an endpoint that a member of the group may name; yield its URL and its requests."""
    asked: list[tuple[str, dict[str, str]]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.path, dict(request.headers)))
        return answer()  # type: ignore[no-any-return]

    site = web.Application()
    site.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def peers_of(url: str, **options: Any) -> Peers:
    """Return peers that ask one other worker."""
    members = {("raw", 0): url, ("raw", 1): "http://me"}
    return Peers(
        MAP, lambda _: LiveJob({}, list, 0), lambda: members, own_url="http://me",
        key=PeerKey(SECRET, "http://me"), **options,
    )  # fmt: skip


def unsigned() -> web.Response:
    """Answer as a worker would, without its secret."""
    return web.Response(body=encode_jobs([LiveJob({}, list, 0)]))


async def test_who_names_a_foreign_url_learns_nothing_that_opens_a_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a token nor a signature that another worker takes; its answer is not used."""
    settings: dict[str, Any] = {"web_token": TOKEN, "peer_secret": SECRET}
    async with (
        rogue(unsigned) as (url, asked),
        served(MAP, tmp_path, [stored()], **settings) as (
            _,
            worker,
        ),
    ):
        peers = peers_of(url)
        assert await peers._ask(url, READS, 1.0, QueryCost()) is None
        await peers.close()
        assert asked
        for path, headers in asked:
            assert path == PATH
            assert "Authorization" not in headers
            text = str(headers)
            assert TOKEN not in text
            assert SECRET not in text
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    worker + PATH, data=BODY, headers={HEADER: headers[HEADER]}
                ) as response,
            ):
                assert response.status == 401
    assert peers.failed_total == len(asked)
    assert [one.own for one in peers.workers()] == [False, True]
    (problem,) = [one.problem for one in peers.workers() if one.url == url]
    assert problem.startswith("its answer is not signed by a worker of this group")
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert warnings == [f"worker {url} is not used, answers lack its live cells: {problem}"]


async def test_redirects_of_a_worker_are_not_followed() -> None:
    """They would bring a signed request wherever it says."""
    async with rogue(unsigned) as (target, asked):

        def away() -> web.Response:
            return web.Response(status=307, headers={"Location": target + PATH})

        async with rogue(away) as (url, first):
            peers = peers_of(url)
            assert await peers._post(url, BODY, QueryCost()) is None
            await peers.close()
    assert (len(first), asked) == (1, [])


@contextlib.asynccontextmanager
async def sender(
    part: bytes, pause_s: float, headers: dict[str, str], status: int = 200
) -> AsyncIterator[tuple[str, list[int]]]:
    """Serve answers without an end, in parts; give the URL, and how much of each was sent."""
    sent: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        number = len(sent)
        sent.append(0)
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for _ in beats(lambda: pause_s):
                await response.write(part)
                sent[number] += len(part)
        return response

    site = web.Application()
    site.router.add_post(PATH, handler)
    runner = web.AppRunner(site, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", sent
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 200), ({"Content-Length": str(1 << 40)}, 200), ({}, 503), ({}, 401)],
    ids=["endless", "says that it is long", "endless refusal", "endless distrust"],
)
async def test_an_answer_without_an_end_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], status: int
) -> None:
    """It ends at a bound, before its signature is checked; it counts as failed, and is told."""
    monkeypatch.setattr("app.peers.remote_owners.ANSWER_BYTES_MAX", 4 << 20)
    async with sender(bytes(1 << 16), 0, headers, status) as (url, sent):
        peers = peers_of(url)
        async with asyncio.timeout(30):
            assert await peers._post(url, BODY, QueryCost()) is None
        await peers.close()
    # Bytes on their way, in the buffers of both sides and of the system, come on top.
    assert len(sent) == 1
    assert sent[0] < 32 << 20
    assert peers.failed_total == 1
    (problem,) = [one.problem for one in peers.workers() if one.url == url]
    bytes_max = "4,194,304" if status == 200 else "65,536"
    assert problem == f"its answer is longer than {bytes_max} bytes, which no worker's is"


async def test_a_compressed_answer_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers compress none; a bomb of a few bytes would come to as many as it likes."""
    monkeypatch.setattr("app.peers.remote_owners.ANSWER_BYTES_MAX", 1 << 16)
    bomb = gzip.compress(bytes(16 << 20))
    assert len(bomb) < 1 << 16

    def answer() -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with rogue(answer) as (url, asked):
        peers = peers_of(url)
        assert await peers._post(url, BODY, QueryCost()) is None
        await peers.close()
    assert asked[0][1]["Accept-Encoding"] == "identity"
    (problem,) = [one.problem for one in peers.workers() if one.url == url]
    assert problem.startswith("its answer is not signed by a worker of this group")


async def test_a_slow_answer_has_its_time_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Bytes may come steadily; both tries count, and the worker is told as one that is gone."""
    async with sender(b"x", 0.01, {}) as (url, sent):
        peers = peers_of(url)
        loop = asyncio.get_running_loop()
        for tries in (1, 2):
            began_s = loop.time()
            assert await peers._ask(url, READS, 1.2, QueryCost()) is None
            assert 1.1 < loop.time() - began_s < 5
            assert (len(sent), peers.failed_total) == (2 * tries, 2 * tries)
        await peers.close()
    assert all(some > 1 for some in sent)
    (told,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert "it has not answered within 1.20 s" in told


async def test_a_worker_with_tls_asks_none_without(caplog: pytest.LogCaptureFixture) -> None:
    """It counts as failed, with a warning once a minute."""
    async with rogue(unsigned) as (url, asked):
        peers = peers_of(url, only_https=True)
        for _ in range(5):
            assert await peers._post(url, BODY, QueryCost()) is None
        await peers.close()
    assert asked == []
    assert peers.failed_total == 5
    (problem,) = [one.problem for one in peers.workers() if one.url == url]
    assert problem == "it is not asked: its URL has the scheme http; want https"
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize(
    "url",
    ["", "worker-1:6066", "ftp://a", "file:///etc/passwd", "https://", "https://u:p@a:1",
     "https://a/?x=1", "https://a#b", "https://a b", "https://a:99999", "https://a\n",
     "https://\u0430", "javascript:1", "//a", "https://[::1"],
)  # fmt: skip
async def test_odd_urls_are_never_asked(url: str) -> None:
    """A member of the group may name any URL."""
    assert peer_troubles.why_never(url, only_https=False) != ""
    peers = peers_of(url)
    assert await peers._post(url, BODY, QueryCost()) is None
    assert peers._session is None
    assert peers.failed_total == 1


def test_urls_of_workers_are_asked() -> None:
    """The settings take the same URLs."""
    for url in ("https://worker-1:6066", "https://[::1]:6066/base", "https://10.0.0.1"):
        assert peer_troubles.why_never(url, only_https=True) == ""
        assert peer_troubles.why_never(url.replace("https", "http"), only_https=False) == ""


def test_a_warning_comes_back_after_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """It comes back while the trouble lasts; a trouble that is gone is not told any more."""
    now = [0.0]
    trouble = peer_troubles.Trouble("https://a", lambda: now[0])
    for second in range(121):
        now[0] = float(second)
        trouble.found("it is so")
    assert len(caplog.records) == 3
    trouble.gone()
    assert trouble.why == ""


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("good", ""),
        ("expired", "certificate has expired"),
        ("wrong host", "certificate is not valid for"),
        ("unknown authority", "unable to get local issuer certificate"),
    ],
)
async def test_a_worker_whose_certificate_fails_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, told: str
) -> None:
    """A warning tells it once, and so does the list of workers; good ones are used."""
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    made = {
        "good": lambda: authority.issue("a"),
        "expired": lambda: authority.issue("b", expired=True),
        "wrong host": lambda: authority.issue("c", "elsewhere.example"),
        "unknown authority": lambda: other.issue("d"),
    }[kind]()
    settings: dict[str, Any] = {
        "web_cert_file": str(made.cert_file), "web_key_file": str(made.key_file),
        "peer_secret": SECRET,
    }  # fmt: skip
    async with served(MAP, tmp_path / "archive", [stored()], **settings) as (_, url):
        tls = client_context(PemFiles("web", str(authority.ca_file)))
        peers = peers_of(url, only_https=True, tls=tls)
        # The endpoint is signed for under the address that its settings say.
        peers._key = SignsFor("https://127.0.0.1:6066")
        for _ in range(3):
            found = await peers._ask(url, READS, 1.0, QueryCost())
        await peers.close()
    warnings = [one.getMessage() for one in caplog.records if one.name == "app.peers.troubles"]
    (problem,) = [one.problem for one in peers.workers() if one.url == url]
    if kind == "good":
        assert isinstance(found, list)
        assert isinstance(found[0], LiveRows)
        assert (warnings, problem) == ([], "")
        return
    assert found is None
    assert told in problem.lower()
    assert warnings == [f"worker {url} is not used, answers lack its live cells: {problem}"]


class SignsFor(PeerKey):
    """Signs for another URL than the one that is asked."""

    def __init__(self, url: str) -> None:
        super().__init__(SECRET, "")
        self._url = url

    def sign(self, method: str, url: str, path: str, body: bytes) -> Any:
        """Return the proof for the other URL."""
        del url
        return super().sign(method, self._url, path, body)
