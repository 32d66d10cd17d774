"""Rights of callers: every route by every kind of caller, and tokens that change meanwhile."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from app.config.settings import Settings
from app.host.reloads import Reloads
from app.peers.wire import PATH, encode_reads
from app.trust.proof import HEADER, PeerKey
from app.trust.tokens import make_token, revoke_token
from app.web.access import Access, scopes, unscoped
from app.web.endpoint import install
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.query.live import LiveRead
from tests import ROOT
from tests.support.common import DAY_MS, small_map
from tests.support.waiting import stays, until
from tests.support.web_support import METRICS, FrameCells, StandingView, frame, get, served, stored
from treasure_map import QueryClient, QueryFailedError
from treasure_map.query_async import AsyncQueryClient

MAP = small_map()
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
SECRET = "secret-between-workers"  # noqa: S105 - no password of anything
RANGE = f"from=0&to={DAY_MS}"
# The URL to ask of each path, by the form that it is mounted with.
ASKED = {
    "/v1/layers/{layer}/cells": f"/v1/layers/hour/cells?{RANGE}",
    "/v1/layers/{layer}/top": f"/v1/layers/hour/top?{RANGE}&by=count",
    "/v1/layers/{layer}/live": "/v1/layers/hour/live",
    "/v1/families/{family}/cells": f"/v1/families/hour/cells?{RANGE}",
}
# Status by caller, for each scope. The first table is that of docs/SECURITY.md.
CALLERS = ("none", "wrong", "read", "live", "admin", "web_token", "worker")
STATUSES = {
    "open": (200, 200, 200, 200, 200, 200, 200),
    "read": (401, 401, 200, 403, 403, 200, 401),
    "live": (401, 401, 403, 200, 403, 200, 401),
    "admin": (401, 401, 403, 403, 200, 200, 401),
    "peer": (401, 401, 403, 403, 403, 403, 200),
    "no such path": (401, 401, 404, 404, 404, 404, 401),
}


async def test_every_route_by_every_kind_of_caller(tmp_path: Path) -> None:
    """The rights of a token follow from its scopes and from nothing else."""
    file = tmp_path / "tokens.json"
    headers = {
        scope: bearer(make_token(file, scope, [scope])) for scope in ("read", "live", "admin")
    }
    headers |= {"none": {}, "wrong": bearer("tm_wrong-token-1234"), "web_token": bearer(TOKEN)}
    settings: dict[str, Any] = {
        "web_tokens_file": str(file),
        "web_token": TOKEN,
        "peer_secret": SECRET,
    }
    found: dict[tuple[str, str], int] = {}
    async with served(MAP, tmp_path / "a", [stored()], **settings) as (view, url):
        key = PeerKey(SECRET, "http://127.0.0.1:6066")
        routes = {**mounted(tmp_path, **settings), "/nothing": "no such path"}
        body = encode_reads(MAP, [LiveRead(MAP.layer("hour"))])
        async with aiohttp.ClientSession() as session:
            for path, scope in routes.items():
                for caller in CALLERS:
                    if caller == "worker":
                        method = "POST" if scope == "peer" else "GET"
                        signed = key.sign(method, "http://127.0.0.1:6066", path, body)
                        headers["worker"] = {HEADER: signed.header}
                    data = body if scope == "peer" else None
                    found[path, caller] = await status_of(
                        session, url + ASKED.get(path, path), data, headers[caller]
                    )
        assert view.reasons == []
    wanted = {
        (path, caller): status
        for path, scope in routes.items()
        for caller, status in zip(CALLERS, STATUSES[scope], strict=True)
    }
    assert found == wanted
    assert len(routes) == 16


async def test_a_method_that_a_path_does_not_take_has_the_answers_of_its_scope(
    tmp_path: Path,
) -> None:
    """Who may not ask a path learns from no method which methods it takes."""
    file = tmp_path / "tokens.json"
    headers = {
        scope: bearer(make_token(file, scope, [scope])) for scope in ("read", "live", "admin")
    }
    headers |= {"none": {}, "wrong": bearer("tm_wrong-token-1234"), "web_token": bearer(TOKEN)}
    settings: dict[str, Any] = {
        "web_tokens_file": str(file), "web_token": TOKEN, "peer_secret": SECRET,
    }  # fmt: skip
    found: dict[tuple[str, str, str], int] = {}
    wanted: dict[tuple[str, str, str], int] = {}
    async with (
        served(MAP, tmp_path / "a", [stored()], **settings) as (_, url),
        aiohttp.ClientSession() as session,
    ):
        key = PeerKey(SECRET, "http://127.0.0.1:6066")
        routes = {**mounted(tmp_path, **settings), "/nothing": "no such path"}
        for path, scope in routes.items():
            for method in ("GET", "PUT") if scope == "peer" else ("POST", "DELETE"):
                signed = key.sign(method, "http://127.0.0.1:6066", path, b"")
                headers["worker"] = {HEADER: signed.header}
                for caller, status in zip(CALLERS, STATUSES[scope], strict=True):
                    asked = url + ASKED.get(path, path)
                    async with session.request(method, asked, headers=headers[caller]) as response:
                        found[path, method, caller] = response.status
                    wanted[path, method, caller] = 405 if status == 200 else status
    assert found == wanted


async def status_of(
    session: aiohttp.ClientSession, url: str, body: bytes | None, headers: dict[str, str]
) -> int:
    """Return the status of a request; a refusal is a problem that names token or scope."""
    method = "GET" if body is None else "POST"
    async with session.request(method, url, headers=headers, data=body) as response:
        if response.status in (401, 403):
            assert response.headers["Content-Type"] == "application/problem+json"
            assert ("WWW-Authenticate" in response.headers) == (response.status == 401)
            problem = await response.json(content_type=None)
            assert "want " in problem["detail"]
            for secret in (TOKEN, SECRET, headers.get("Authorization", "tm_none").split()[-1]):
                assert secret not in problem["detail"]
        return response.status


def bearer(token: str) -> dict[str, str]:
    """Return the header that has a token."""
    return {"Authorization": f"Bearer {token}"}


def mounted(folder: Path, **settings: Any) -> dict[str, str]:
    """Return the scopes of all paths."""
    site = site_of(folder, **settings)
    assert unscoped(site) == []
    return dict(scopes(site))


def site_of(folder: Path, **settings: Any) -> web.Application:
    """Return an endpoint that is not started."""
    site = web.Application()
    archive = EmbeddedArchive(folder / "unused")
    cells = FrameCells(frame([]), set())
    install(
        site, StandingView(MAP, archive, cells), Settings(**settings), live=cells,
        cache=ArchiveCache(archive, 0), metrics=lambda: METRICS,
    )  # fmt: skip
    return site


async def test_of_two_headers_that_prove_something_none_is_taken(tmp_path: Path) -> None:
    """A proxy before the worker may have looked at the other one."""
    settings: dict[str, Any] = {"web_token": TOKEN, "peer_secret": SECRET}
    key, body = PeerKey(SECRET, ""), encode_reads(MAP, [LiveRead(MAP.layer("hour"))])
    async with (
        served(MAP, tmp_path / "a", [stored()], **settings) as (_, url),
        aiohttp.ClientSession() as session,
    ):
        for others, status in (([], 200), (["tm_other"], 401), ([TOKEN], 401)):
            values = [f"Bearer {token}" for token in (TOKEN, *others)]
            for order in (values, values[::-1]):
                headers = [("Authorization", value) for value in order]
                async with session.get(f"{url}/v1/map", headers=headers) as response:
                    assert response.status == status
            proofs = [key.sign("POST", "http://127.0.0.1:6066", PATH, body).header, *others]
            headers = [(HEADER, value) for value in proofs]
            async with session.post(url + PATH, headers=headers, data=body) as response:
                assert response.status == status


async def test_a_route_without_a_scope_keeps_the_endpoint_from_starting(tmp_path: Path) -> None:
    """The author of a route must say who may ask it."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    site = site_of(tmp_path)
    site.router.add_get("/v1/new", handler)
    assert unscoped(site) == ["/v1/new"]
    with pytest.raises(AssertionError, match=r"'/v1/new'.* have no scope; use .*mount"):
        await web.AppRunner(site).setup()


def test_the_page_has_the_table_of_today(tmp_path: Path) -> None:
    """docs/SECURITY.md says of every path which scope it wants, and the status of each caller."""
    page = (ROOT / "docs" / "SECURITY.md").read_text("utf-8")
    paths = re.findall(r"^\| (`/.*`) \| `(\w+)` \|", page, re.MULTILINE)
    told = {path: scope for line, scope in paths for path in re.findall(r"`([^`]+)`", line)}
    assert told == mounted(tmp_path)
    rows = {
        row[0].strip(" `"): tuple(int(cell) for cell in row[1:])
        for line in page.splitlines()
        if re.fullmatch(r"\|( [\w` ]+ \|)( \d{3} \|){7}", line)
        for row in [line.strip("|").split("|")]
    }
    assert rows == STATUSES


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        ({}, (200, 200, 200, 200)),
        ({"peer_secret": SECRET}, (200, 401, 401, 200)),
        ({"web_token": TOKEN}, (401, 401, 403, 401)),
        ({"web_token": TOKEN, "peer_secret": SECRET}, (401, 401, 403, 200)),
        ({"web_tokens_file": "tokens.json"}, (401, 401, 401, 401)),
    ],
    ids=["nothing", "peer secret", "token", "both", "file of tokens"],
)
async def test_what_is_set_decides_who_asks_between_workers(
    tmp_path: Path, settings: dict[str, Any], statuses: tuple[int, ...]
) -> None:
    """The map without a token; then the path of workers without one, with one, and signed."""
    if "web_tokens_file" in settings:
        settings = {"web_tokens_file": str(tmp_path / settings["web_tokens_file"])}
        make_token(Path(settings["web_tokens_file"]), "first", ["read", "live", "admin"])
    body = encode_reads(MAP, [LiveRead(MAP.layer("hour"))])
    own = "http://127.0.0.1:6066"
    signed = {HEADER: PeerKey(SECRET, own).sign("POST", own, PATH, body).header}
    async with (
        served(MAP, tmp_path / "a", **settings) as (_, url),
        aiohttp.ClientSession() as session,
    ):
        found = (
            await status_of(session, f"{url}/v1/map", None, {}),
            await status_of(session, url + PATH, body, {}),
            await status_of(session, url + PATH, body, bearer(TOKEN)),
            await status_of(session, url + PATH, body, signed),
        )
    assert found == statuses


async def test_the_key_that_follows_from_a_token_opens_what_the_token_does_not(
    tmp_path: Path,
) -> None:
    """Only ``web_token`` need be set, and it goes to no other worker."""
    body = encode_reads(MAP, [LiveRead(MAP.layer("hour"))])
    own = "http://127.0.0.1:6066"
    signed = {HEADER: PeerKey(TOKEN, own).sign("POST", own, PATH, body).header}
    async with (
        served(MAP, tmp_path, web_token=TOKEN) as (_, url),
        aiohttp.ClientSession() as session,
    ):
        assert await status_of(session, url + PATH, body, signed) == 200
        other = signed | {"Content-Type": "application/msgpack"}
        assert await status_of(session, url + PATH, body, other) == 401
        key = PeerKey(TOKEN, own)
        changed = {HEADER: key.sign("POST", own, PATH, body).header}
        async with session.post(url + PATH, data=body + b"x", headers=changed) as response:
            assert response.status == 401
            assert "not the one that was signed" in await response.text()


async def test_the_document_says_which_scope_a_path_wants(tmp_path: Path) -> None:
    """It does so if tokens are set."""
    async with served(MAP, tmp_path, web_token=TOKEN) as (_, url):
        _, document, _ = await get(f"{url}/openapi.json", **bearer(TOKEN))
    wants = {path: about["get"]["security"] for path, about in document["paths"].items()}
    assert wants["/v1/layers/hour/live"] == [{"token": ["live"]}]
    assert wants["/v1/layers/hour/cells"] == [{"token": ["read"]}]
    assert wants["/v1/ledger"] == [{"token": ["admin"]}]
    assert wants["/readyz"] == []


async def test_a_wrong_scope_is_a_403_that_names_the_right_one(tmp_path: Path) -> None:
    """Our own client raises it with the status."""
    file = tmp_path / "tokens.json"
    token = make_token(file, "reader", ["read"])
    async with served(MAP, tmp_path / "a", [stored()], web_tokens_file=str(file)) as (_, url):
        status, body, headers = await get(f"{url}/metrics", **bearer(token))
        assert (status, headers["Content-Type"]) == (403, "application/problem+json")
        assert body["detail"] == (
            "cannot answer: the token does not have the scope admin; got read; want a token made"
            " with --scope admin"
        )
        async with AsyncQueryClient(url, token) as client:
            assert len((await client.cells("hour", {}, 0, DAY_MS)).cells) == 1
            with pytest.raises(QueryFailedError, match="want a token made with --scope live") as no:
                await anext(client.live("hour"))
        assert no.value.status == 403

        def blocking() -> int:
            with QueryClient(url, token) as client:
                return len(client.cells("hour", {}, 0, DAY_MS).cells)

        assert await asyncio.to_thread(blocking) == 1


async def test_tokens_are_made_and_revoked_while_the_worker_runs(tmp_path: Path) -> None:
    """A stream with a revoked token ends, and says why."""
    file = tmp_path / "tokens.json"
    make_token(file, "first", ["read"])
    async with served(MAP, tmp_path / "a", [stored()], web_tokens_file=str(file)) as (_, url):
        token = make_token(file, "second", ["live", "read"])

        async def status(wanted: int) -> bool:
            return (await get(f"{url}/v1/map", **bearer(token)))[0] == wanted

        await until(lambda: status(200), 5)
        async with (
            aiohttp.ClientSession(headers=bearer(token)) as session,
            session.get(f"{url}/v1/layers/hour/live?interval_ms=100") as stream,
        ):
            assert stream.status == 200
            revoke_token(file, "second")
            async with asyncio.timeout(10):
                text = (await stream.read()).decode()
        assert '"status":401' in text
        assert "the token was revoked or has expired" in text
        await until(lambda: status(401), 5)


async def test_an_expired_token_is_refused(tmp_path: Path) -> None:
    """It is refused from the moment of its expiry on."""
    file = tmp_path / "tokens.json"
    token = make_token(file, "brief", ["read"], dt.timedelta(seconds=2))
    async with served(MAP, tmp_path / "a", web_tokens_file=str(file)) as (_, url):
        assert (await get(f"{url}/v1/map", **bearer(token)))[0] == 200

        async def refused() -> bool:
            return (await get(f"{url}/v1/map", **bearer(token)))[0] == 401

        await until(refused, 10)


async def test_a_file_that_breaks_keeps_the_last_good_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning tells it, and so does the readiness to callers with a token."""
    monkeypatch.setattr("app.host.reloads.LOOK_S", 0.05)
    caplog.set_level(logging.INFO)
    file = tmp_path / "tokens.json"
    token = make_token(file, "first", ["read"])
    good = file.read_bytes()
    async with served(MAP, tmp_path / "a", web_tokens_file=str(file)) as (_, url):
        file.write_text("{")

        async def warned() -> bool:
            return bool((await get(f"{url}/readyz", **bearer(token)))[1]["warnings"])

        await until(warned, 5)
        await until(lambda: "the last good contents" in caplog.text, 5)

        async def is_ready() -> bool:
            status, body, _ = await get(f"{url}/readyz", **bearer(token))
            return (status, body["ready"]) == (200, True)

        await stays(is_ready, 0.5)
        body = (await get(f"{url}/readyz", **bearer(token)))[1]
        assert body["warnings"][0].startswith("tokens: cannot use web_tokens_file: ")
        file.write_bytes(good)
        await until(lambda: not_(warned), 5)
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one.name for one in warnings] == ["app.host.reloads"]
    assert token not in caplog.text


async def not_(condition: Any) -> bool:
    """Return whether a condition does not hold."""
    return not await condition()


async def test_readiness_says_no_names_without_a_token(tmp_path: Path) -> None:
    """Probes have none: they get the status, and whether."""
    async with served(MAP, tmp_path, web_token=TOKEN, insecure=True) as (view, url):
        assert (await get(f"{url}/readyz"))[:2] == (200, {"ready": True})
        view.reasons = ["no worker of the group owns raw[0]"]
        for headers in ({}, bearer("tm_wrong-token-1234")):
            assert (await get(f"{url}/readyz", **headers))[:2] == (503, {"ready": False})
        status, body, _ = await get(f"{url}/readyz", **bearer(TOKEN))
        assert (status, body["reason"], body["insecure"]) == (503, view.reasons[0], True)


def test_a_file_of_tokens_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    """Such a worker would refuse every caller."""
    settings = Settings(web_tokens_file=str(tmp_path / "none.json"))
    with pytest.raises(Exception, match=r"cannot use web_tokens_file: .*python -m app token"):
        Access(settings, Reloads())


def test_the_page_of_threats_names_tests_that_there_are() -> None:
    """Each defence stands beside the modules that try it."""
    page = (ROOT / "docs" / "SECURITY.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if "`test_" in line]
    named = {name for line in rows for name in re.findall(r"`(test_\w+\.py)`", line)}
    assert len(rows) > 10
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
