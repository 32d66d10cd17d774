"""The query endpoint: aiohttp handlers over what one worker knows, mounted on Faust's web server.

Queries read applied state only, of all workers of the group (``agents.query.reader``). Work is
bounded: so many queries at once, each with a deadline. Paths and answers are described in
``docs/formats/http.md``.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from agents.query.answers import FamilyAnswer, LayerAnswer
from agents.query.reader import LiveSource, Reader
from app.config.settings import Settings
from app.health.readiness import READY
from app.host.reloads import Reloads
from app.peers.wire import CONTENT_TYPE, PATH, decode_reads, encode_jobs
from app.trust.proof import HEADER, Proof, sha256
from app.web.access import (
    ADMIN,
    CALLER,
    LIVE,
    OPEN,
    PEER,
    PROOF,
    READ,
    Access,
    check_scopes,
    mount,
    scope_of,
)
from app.web.admission import QueryAdmission
from app.web.docs_page import docs_page
from app.web.family_answers import (
    age_ms,
    answered_family,
    answered_top,
    describe_families,
    describe_plan,
    etag_of,
)
from app.web.formats import Page, accepted, has_etag, hinted, not_modified, respond
from app.web.guard import HEADERS, PartialError, answer, guard, ssl_context
from app.web.live_stream import LiveStreams
from app.web.map_answer import describe_map
from app.web.openapi import openapi
from tables.archive.cache import ArchiveCache
from tables.model.errors import QueryError
from tables.model.layer import Map
from tables.query.cell_query import CellQuery, Limits, cell_rows, merge_answer, parse_query
from tables.query.family import FamilyQuery, parse_family_query
from tables.query.live import LiveJob, LiveRead
from tables.query.top import parse_top_query

__all__ = ["WorkerView", "install", "ssl_context"]

MERGED_AT_ONCE_ROWS_MAX = 500
"""So few rows are merged, and made JSON, in some 5 ms."""

STALE_AGAIN_S = 0.01

BODY_S_MAX = 10.0
"""What a worker may take to send what it asks."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class WorkerView(Protocol):
    """What the endpoint reads of a worker; it answers at once, without waiting."""

    @property
    def themap(self) -> Map:
        """The map this worker runs."""

    def local(self, read: LiveRead) -> LiveJob:
        """Return what makes the applied cells of this worker."""

    def layers(self) -> list[dict[str, Any]]:
        """Return, for each layer, its name and its counts; see ``docs/formats/http.md``."""

    def ledger(self) -> dict[str, Any]:
        """Return where every offset and event went, and whether it adds up."""

    def unready(self) -> list[str]:
        """Return why this worker should not be asked now, in sentences; none where it is ready."""

    def warnings(self) -> list[str]:
        """Return a sentence for each thing to mend that does not keep it from being ready."""

    def serving(self) -> dict[str, list[int]]:
        """Return the restored partitions, by topic."""

    def restoring(self) -> dict[str, list[int]]:
        """Return the partitions that are assigned and not restored yet, by topic."""

    def paused(self) -> dict[str, list[str]]:
        """Return the kinds of input that are paused, each with its reasons in words."""


def install(
    app: Any,
    view: WorkerView,
    settings: Settings,
    *,
    live: LiveSource,
    cache: ArchiveCache,
    metrics: Callable[[], bytes],
    access: Access | None = None,
    workers: Callable[[], list[dict[str, Any]]] = list,
) -> None:
    """Mount the endpoint on an aiohttp application or a Faust app, before its server starts.

    Of a Faust app every page of its own (tables, router, statistics, index) is taken off.

    Args:
        app: an ``aiohttp.web.Application`` or a ``faust.App``.
        view: the worker to answer for.
        settings: token, host, limits.
        live: the owners of all partitions, here and on other workers.
        cache: the archive, and what is remembered of it.
        metrics: returns the worker's metrics in Prometheus' text form.
        access: who may ask what; None for what the settings alone say, with tokens read once.
        workers: returns the workers of the group.
    """
    if isinstance(app, web.Application):
        site = app
    else:
        app.web.blueprints = type(app.web.blueprints)()
        site = app.web.web_app
    reader = Reader(view.themap, live, cache, _limits(settings), clock_ms)
    access = access or Access(settings, Reloads(_ignore))
    endpoint = _Endpoint(view, settings, reader, metrics, access)
    endpoint.workers = workers
    streams = LiveStreams(view.themap, live, cache, settings)
    site.middlewares.append(guard(settings, access))
    get = hdrs.METH_GET
    for method, path, scope, handler in (
        (get, "/livez", OPEN, endpoint.livez),
        (get, "/readyz", OPEN, endpoint.readyz),
        (get, "/v1/map", READ, endpoint.map),
        (get, "/v1/cluster", READ, endpoint.cluster),
        (get, "/v1/layers", READ, endpoint.layers),
        (get, "/v1/layers/{layer}/cells", READ, endpoint.cells),
        (get, "/v1/layers/{layer}/top", READ, endpoint.top),
        (get, "/v1/families", READ, endpoint.families),
        (get, "/v1/families/{family}/cells", READ, endpoint.family),
        (get, "/v1/layers/{layer}/live", LIVE, streams.stream),
        (get, "/v1/ledger", ADMIN, endpoint.ledger),
        (get, "/metrics", ADMIN, endpoint.metrics),
        (hdrs.METH_POST, PATH, PEER, endpoint.worker),
    ):
        mount(site, method, path, scope, handler)
    document = openapi(
        view.themap, _limits(settings), token=access.wants_token,
        scope_of=functools.partial(scope_of, site),
    )  # fmt: skip
    mount(site, get, "/openapi.json", READ, _document(document))
    mount(site, get, "/docs", READ, _page(docs_page(document)))
    site.on_startup.append(check_scopes)
    site.on_shutdown.append(streams.close)
    site.on_cleanup.append(endpoint.close)


class _Endpoint:
    """The handlers, with the slots that bound how many queries run at once."""

    def __init__(
        self,
        view: WorkerView,
        settings: Settings,
        reader: Reader,
        metrics: Callable[[], bytes],
        access: Access,
    ) -> None:
        self.workers: Callable[[], list[dict[str, Any]]] = list
        self._view = view
        self._access = access
        self._reader = reader
        self._metrics = metrics
        self._limits = _limits(settings)
        self._slots = QueryAdmission(settings.query_concurrency_max, settings.query_deadline_ms)
        self._threads = reader.threads

    async def close(self, _: web.Application) -> None:
        """Give up what still runs and let the threads go."""
        self._slots.close()
        self._threads.close()

    async def map(self, request: web.Request) -> web.Response:
        """Answer with the map as this worker runs it."""
        _no_parameters(request)
        return answer(describe_map(self._view.themap))

    async def cluster(self, request: web.Request) -> web.Response:
        """Answer with the workers of the group, as this one sees them."""
        _no_parameters(request)
        return answer({"workers": self.workers()})

    async def layers(self, request: web.Request) -> web.Response:
        """Answer with what each layer holds on this worker."""
        _no_parameters(request)
        return answer({"layers": self._view.layers()})

    async def ledger(self, request: web.Request) -> web.Response:
        """Answer with where every offset and event went."""
        _no_parameters(request)
        return answer(self._view.ledger())

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the worker's metrics."""
        _no_parameters(request)
        return web.Response(body=self._metrics(), headers=HEADERS | {"Content-Type": METRICS_TYPE})

    async def livez(self, request: web.Request) -> web.Response:
        """Answer that the event loop runs."""
        _no_parameters(request)
        return answer({"live": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """Answer whether this worker is restored and caught up, and all it needs answers.

        Who has no valid token, where one is wanted, learns no more than that.
        """
        _no_parameters(request)
        reasons = self._view.unready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        if CALLER not in request:
            return answer({"ready": not reasons}, status)
        state = {
            "ready": not reasons,
            "reason": reasons[0] if reasons else READY,
            "reasons": reasons,
            "serving": self._view.serving(),
            "restoring": self._view.restoring(),
            "paused": self._view.paused(),
            "insecure": self._access.is_insecure,
            "warnings": [*self._access.warnings(), *self._view.warnings()],
        }
        return answer(state, status)

    async def cells(self, request: web.Request) -> web.Response:
        """Answer with one page of cells of one layer, live and archived merged."""
        query = parse_query(
            self._view.themap, request.match_info["layer"], request.query.items(), self._limits
        )
        kind = accepted(request.headers)
        return await self._slots.run(self._read(query, kind))

    async def families(self, request: web.Request) -> web.Response:
        """Answer with the families of the map."""
        _no_parameters(request)
        return answer({"families": describe_families(self._view.themap)})

    async def family(self, request: web.Request) -> web.Response:
        """Answer a request to a family, from the cheapest layers that have it exactly."""
        query = parse_family_query(
            self._view.themap, request.match_info["family"], request.query.items(), self._limits
        )
        if query.explain:
            return await self._explain(query)

        def page(found: FamilyAnswer, now_ms: int) -> Page:
            return answered_family(self._view.themap, query, found, now_ms)

        return await self._answer(request, query, page)

    async def top(self, request: web.Request) -> web.Response:
        """Answer with the first keys of a layer by a measure."""
        top = parse_top_query(
            self._view.themap, request.match_info["layer"], request.query.items(), self._limits
        )
        if top.query.explain:
            return await self._explain(top.query)

        def first(found: FamilyAnswer, now_ms: int) -> Page:
            return answered_top(self._view.themap, top, found, now_ms)

        return await self._answer(request, top.query, first)

    async def _explain(self, query: FamilyQuery) -> web.Response:
        plan = await self._slots.run(self._reader.plan(query), query.deadline_ms)
        return answer({"family": query.family.name, "plan": describe_plan(plan)})

    async def _answer(
        self,
        request: web.Request,
        query: FamilyQuery,
        shown: Callable[[FamilyAnswer, int], Page],
    ) -> web.Response:
        """Answer in the format wanted, or that what the reader has is still right."""
        kind = accepted(request.headers)
        # Only answers that never change have one, so who names it has the answer.
        etag = etag_of(self._view.themap, request.path_qs, kind)
        if has_etag(request.headers, etag):
            return not_modified(etag)

        async def response() -> web.Response:
            found, now_ms = await self._family(query)
            rows = found.rows.height
            make = functools.partial(_made, shown, found, now_ms, kind, etag)
            if rows <= MERGED_AT_ONCE_ROWS_MAX:
                return make()
            return await self._threads.run(make)

        return await self._slots.run(response(), query.deadline_ms)

    async def worker(self, request: web.Request) -> web.Response:
        """Answer another worker with the live cells of this one; nothing is asked of others."""
        try:
            async with asyncio.timeout(BODY_S_MAX):
                body = await request.read()
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(reason="the body did not come in time") from error
        except ConnectionError as error:
            # Who asks twice leaves the slower answer.
            raise web.HTTPBadRequest(reason="the connection ended within the body") from error
        proof: Proof | None = request.get(PROOF)
        if proof is not None and sha256(body) != proof.sha256:
            raise web.HTTPUnauthorized(reason="the body is not the one that was signed")
        reads = decode_reads(self._view.themap, body)
        # No await between them: all are of one state.
        jobs = [self._view.local(read) for read in reads]
        if sum(job.height for job in jobs) <= MERGED_AT_ONCE_ROWS_MAX:
            rows, signed = self._signed(proof, jobs)
        else:
            rows, signed = await self._threads.run(self._signed, proof, jobs)
        return web.Response(body=rows, headers=HEADERS | {"Content-Type": CONTENT_TYPE} | signed)

    def _signed(self, proof: Proof | None, jobs: list[LiveJob]) -> tuple[bytes, dict[str, str]]:
        """Return the body of an answer to a worker, and the header that proves whose it is."""
        rows = encode_jobs(jobs)
        key = self._access.peer_key
        if proof is None or key is None:
            return rows, {}
        return rows, {HEADER: key.sign_answer(proof, rows)}

    async def _family(self, query: FamilyQuery) -> tuple[FamilyAnswer, int]:
        """Return an answer as the reader wants it, and when it was made."""
        while True:
            found = await self._reader.answer(query)
            now_ms = clock_ms()
            if found.exactness == "partial" and query.partial == "refuse":
                raise PartialError(
                    f"cannot read family {query.family.name}: some owners do not answer; ask again"
                    " later, or with partial=allow"
                )
            age = age_ms(found, now_ms)
            if query.max_staleness_ms is None or found.final:
                return found, now_ms
            if age is not None and age <= query.max_staleness_ms:
                return found, now_ms
            # Younger data may come within the deadline.
            await asyncio.sleep(STALE_AGAIN_S)

    async def _read(self, query: CellQuery, kind: str) -> web.Response:
        found = await self._reader.layer(query.layer, query.cells)
        live, archived = found.live, found.archived
        make = functools.partial(self._page, query, found, kind)
        if live.height + archived.height <= MERGED_AT_ONCE_ROWS_MAX:
            return make()
        return await self._threads.run(make)

    def _page(self, query: CellQuery, found: LayerAnswer, kind: str) -> web.Response:
        layer, live, archived = query.layer, found.live, found.archived
        page = merge_answer(self._view.themap, query, live, archived, self._limits.cells_max)
        about = {
            "layer": layer.name,
            "map_revision": self._view.themap.revision,
            "partial": found.partial,
            "partitions_served": len(found.served),
            "partitions": layer.partitions,
            "rows_read": {"live": live.height, "archived": archived.height},
            "whole_from": found.whole,
            **hinted(page.cells, query.cells.from_ms, query.cells.to_ms),
        }
        ends = [layer.window.end(start) for start in page.cells["window_start"].to_list()]
        answered = Page(
            about, layer, page.cells, ends, lambda: cell_rows(layer, page.cells), versions=True,
            cursor=page.cursor,
        )  # fmt: skip
        return respond(answered, kind)


def _ignore(_: BaseException) -> None:
    """Take what nobody runs."""


def _document(document: dict[str, Any]) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        """Answer with what can be asked, as OpenAPI."""
        _no_parameters(request)
        return answer(document)

    return handler


def _page(page: str) -> Handler:
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    headers = HEADERS | {"Content-Security-Policy": policy}

    async def handler(request: web.Request) -> web.Response:
        """Answer with what can be asked, as a page."""
        _no_parameters(request)
        return web.Response(text=page, content_type="text/html", headers=headers)

    return handler


def _limits(settings: Settings) -> Limits:
    return Limits(
        settings.query_rows_max,
        settings.query_cells_max,
        settings.query_limit_max,
        settings.query_deadline_ms,
    )


def _made(
    shown: Callable[[FamilyAnswer, int], Page],
    found: FamilyAnswer,
    now_ms: int,
    kind: str,
    etag: str,
) -> web.Response:
    return respond(shown(found, now_ms), kind, etag if found.final else "")


def clock_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


def _no_parameters(request: web.Request) -> None:
    if request.query:
        raise QueryError(
            f"cannot answer {request.path}: it takes no parameters; got {', '.join(request.query)}"
        )
