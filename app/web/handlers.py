"""The handlers of the query endpoint: each answers the requests of one route.

Queries read applied state only, of all workers of the group (``agents.query.reader``). Work is
bounded: a number of queries at once, each with a deadline.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web

from agents.query.reader import FamilyResult, Reader
from app.health.readiness import READY
from app.peers.wire import CONTENT_TYPE, decode_reads, encode_jobs
from app.trust.proof import HEADER, Proof, sha256
from app.web.access import CALLER, PROOF, Access
from app.web.admission import QueryAdmission
from app.web.docs_page import docs_page
from app.web.formats import CellPage, accepted, has_etag, not_modified, respond
from app.web.guard import HEADERS, answer
from app.web.live_stream import LiveStreams
from app.web.pages import (
    answered_cells,
    answered_family,
    answered_top,
    describe_families,
    describe_map,
    describe_plan,
    etag_of,
)
from tables.model.layer import Map
from tables.query.cell_query import Limits, parse_query
from tables.query.family import FamilyQuery, parse_family_query
from tables.query.live import LiveJob, LiveRead
from tables.query.top import parse_top_query
from treasure_map.answers import Explained
from treasure_map.status import Cluster, Layers, LayerStatus, Live, Ready, WorkerAbout
from treasure_map.version import version

MERGED_AT_ONCE_ROWS_MAX = 500
"""Rows that are merged and encoded as JSON in some 5 ms."""

BODY_S_MAX = 10.0
"""Time for a worker to send its request."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class WorkerView(Protocol):
    """The worker as the endpoint reads it; each method answers at once, without waiting."""

    @property
    def themap(self) -> Map:
        """The map this worker runs."""

    def local(self, read: LiveRead) -> LiveJob:
        """Return a job that makes the applied cells of this worker."""

    def layers(self) -> list[LayerStatus]:
        """Return, for each layer, its name and its counts."""

    def unselected(self) -> dict[str, dict[str, int]]:
        """Return, by source, the event types that no layer selects, with their events."""

    def lag(self) -> dict[str, dict[str, int | None]]:
        """Return the records not read yet, by topic and partition; None if that is not known."""

    def ledger(self) -> dict[str, Any]:
        """Return the account of all offsets and events, and whether it adds up."""

    def unready(self) -> list[str]:
        """Return why this worker should not be asked now, in sentences; empty if it is ready."""

    def warnings(self) -> list[str]:
        """Return a sentence for each thing to mend that does not keep it from being ready."""

    def serving(self) -> dict[str, list[int]]:
        """Return the restored partitions, by topic."""

    def restoring(self) -> dict[str, list[int]]:
        """Return the partitions that are assigned and not restored yet, by topic."""

    def paused(self) -> dict[str, list[str]]:
        """Return the kinds of input that are paused, each with its reasons in words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers; ``slots`` bounds the queries that run at once, ``document`` is OpenAPI's."""

    view: WorkerView
    reader: Reader
    streams: LiveStreams
    slots: QueryAdmission
    access: Access
    limits: Limits
    text_of_metrics: Callable[[], bytes]
    clock_ms: Callable[[], int]
    workers: Callable[[], list[WorkerAbout]]
    document: dict[str, Any]

    async def close(self, _: web.Application) -> None:
        """Cancel the queries that still run and close the threads."""
        self.slots.close()
        self.reader.threads.close()

    async def map(self, _: web.Request) -> web.Response:
        """Answer with the map as this worker runs it."""
        return answer(describe_map(self.view.themap))

    async def cluster(self, _: web.Request) -> web.Response:
        """Answer with the workers of the group, as this one sees them."""
        return answer(Cluster(self.workers()))

    async def layers(self, _: web.Request) -> web.Response:
        """Answer with the counts of each layer on this worker."""
        return answer(Layers(self.view.layers(), self.view.unselected()))

    async def ledger(self, _: web.Request) -> web.Response:
        """Answer with the account of all offsets and events."""
        return answer(self.view.ledger())

    async def metrics(self, _: web.Request) -> web.Response:
        """Answer with the worker's metrics."""
        headers = HEADERS | {"Content-Type": METRICS_TYPE}
        return web.Response(body=self.text_of_metrics(), headers=headers)

    async def openapi(self, _: web.Request) -> web.Response:
        """Answer with the OpenAPI document."""
        return answer(self.document)

    async def docs(self, _: web.Request) -> web.Response:
        """Answer with the page that shows the OpenAPI document."""
        headers = HEADERS | {"Content-Security-Policy": PAGE_POLICY}
        page = docs_page(self.document)
        return web.Response(text=page, content_type="text/html", headers=headers)

    async def livez(self, _: web.Request) -> web.Response:
        """Answer that the event loop runs."""
        return answer(Live(live=True))

    async def readyz(self, request: web.Request) -> web.Response:
        """Answer whether this worker is restored and caught up, and all its services answer.

        A caller without a valid token, if one is wanted, learns no more than that.
        """
        reasons = self.view.unready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        if CALLER not in request:
            return answer(Ready(not reasons), status)
        state = Ready(
            ready=not reasons,
            reason=reasons[0] if reasons else READY,
            reasons=reasons,
            serving=self.view.serving(),
            restoring=self.view.restoring(),
            paused=self.view.paused(),
            insecure=self.access.is_insecure,
            warnings=[*self.access.warnings(), *self.view.warnings()],
            map=self.view.themap.name,
            map_revision=self.view.themap.revision,
            version=version(),
            lag=self.view.lag(),
        )
        return answer(state, status)

    async def cells(self, request: web.Request) -> web.Response:
        """Answer with one page of cells of one layer, live and archived merged."""
        query = parse_query(*self._asked(request, "layer"))
        kind = accepted(request.headers)

        async def response() -> web.Response:
            found = await self.reader.layer(
                query.layer, query.cells, from_first=query.asked.asked_from_ms is None
            )
            rows = found.live.height + found.archived.height

            def make() -> web.Response:
                page = answered_cells(self.view.themap, query, found, self.limits)
                return respond(page, kind)

            return await self._made(rows, make)

        return await self.slots.run(response())

    async def families(self, _: web.Request) -> web.Response:
        """Answer with the families of the map."""
        return answer(describe_families(self.view.themap))

    async def family(self, request: web.Request) -> web.Response:
        """Answer a request to a family, from the cheapest layers that have it exactly."""
        query = parse_family_query(*self._asked(request, "family"))
        page = functools.partial(answered_family, self.view.themap)
        return await self._answer(request, query, page)

    async def top(self, request: web.Request) -> web.Response:
        """Answer with the first keys of a layer by a measure."""
        top = parse_top_query(*self._asked(request, "layer"))
        page = functools.partial(answered_top, self.view.themap, top)
        return await self._answer(request, top.query, page)

    def _asked(
        self, request: web.Request, kind: str
    ) -> tuple[Map, str, Iterable[tuple[str, str]], Limits, int]:
        """Return the arguments by which a request is parsed; ``now`` is this moment."""
        name, words = request.match_info[kind], request.query.items()
        return self.view.themap, name, words, self.limits, self.clock_ms()

    async def _answer(
        self, request: web.Request, query: FamilyQuery, page: Callable[[FamilyResult], CellPage]
    ) -> web.Response:
        """Answer in the format wanted, with the plan alone, or that the reader's copy is right."""
        if query.explain:
            plan = await self.slots.run(self.reader.plan(query), query.deadline_ms)
            return answer(Explained(query.family.name, describe_plan(plan)))
        kind = accepted(request.headers)
        # Only answers that never change have one, so a reader that names it has the answer.
        etag = etag_of(self.view.themap, request.path_qs, query.asked, kind)
        if not query.asked.is_open and has_etag(request.headers, etag):
            return not_modified(etag)

        async def response() -> web.Response:
            found = await self.reader.answer(query)
            final_etag = etag if found.final else ""
            return await self._made(
                found.rows.height, lambda: respond(page(found), kind, final_etag)
            )

        return await self.slots.run(response(), query.deadline_ms)

    async def _made(self, rows: int, make: Callable[[], web.Response]) -> web.Response:
        """Return a response that is made of ``rows`` rows, in a thread if they are many."""
        if rows <= MERGED_AT_ONCE_ROWS_MAX:
            return make()
        return await self.reader.threads.run(make)

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
        reads = decode_reads(self.view.themap, body)
        # No await between them: all are of one state.
        jobs = [self.view.local(read) for read in reads]
        rows = sum(job.height for job in jobs)
        return await self._made(rows, lambda: self._signed(proof, jobs))

    def _signed(self, proof: Proof | None, jobs: list[LiveJob]) -> web.Response:
        """Return the answer to a worker, with the header that proves whose it is."""
        rows, headers = encode_jobs(jobs), HEADERS | {"Content-Type": CONTENT_TYPE}
        if proof is not None and (key := self.access.peer_key) is not None:
            headers |= {HEADER: key.sign_answer(proof, rows)}
        return web.Response(body=rows, headers=headers)
