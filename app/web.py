"""The query endpoint: aiohttp handlers over what one worker knows, mounted on Faust's web server.

Queries read applied state only, of all workers of the group (``agents.reader``). Work is bounded:
so many queries at once, each with a deadline. Paths and answers are described in
``docs/formats/http.md``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
import polars as pl
from aiohttp import web

from agents.reader import LiveSource, Reader
from app.peers import CONTENT_TYPE, PATH, REQUEST_BYTES_MAX, decode_reads, encode_rows
from app.settings import Settings
from app.web_families import age_ms, describe_answer, describe_families, describe_plan
from app.web_guard import HEADERS, PartialError, answer, guard, ssl_context
from app.web_slots import Slots
from tables.archive import Archive
from tables.archive_cache import ArchiveCache
from tables.errors import QueryError
from tables.family import FamilyQuery, parse_family_query
from tables.layer import Layer, Map
from tables.live import LiveRead, LiveRows
from tables.query import Answer, CellQuery, Limits, merge_answer, parse_query

__all__ = ["WorkerView", "install", "ssl_context"]

MERGED_AT_ONCE_ROWS_MAX = 2_000
"""So few rows are merged faster than a thread begins."""

STALE_AGAIN_S = 0.01

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class WorkerView(Protocol):
    """What the endpoint reads of a worker. All but ``archive`` answers at once, without waiting."""

    @property
    def themap(self) -> Map:
        """The map this worker runs."""

    @property
    def archive(self) -> Archive:
        """The archive, open."""

    def local(self, read: LiveRead) -> LiveRows:
        """Return the applied cells of this worker."""

    def layers(self) -> list[dict[str, Any]]:
        """Return, for each layer, its name and its counts; see ``docs/formats/http.md``."""

    def ledger(self) -> dict[str, Any]:
        """Return where every offset and event went, and whether it adds up."""

    def ready(self) -> tuple[bool, str]:
        """Tell whether the worker is restored and caught up; if not, what it waits for."""

    def serving(self) -> dict[str, list[int]]:
        """Return the restored partitions, by topic."""

    def restoring(self) -> dict[str, list[int]]:
        """Return the partitions that are assigned and not restored yet, by topic."""

    def paused(self) -> dict[str, list[str]]:
        """Return the kinds of input that are paused, each with its reasons in words."""


def install(
    app: Any,
    view: WorkerView,
    live: LiveSource,
    settings: Settings,
    metrics: Callable[[], bytes],
) -> None:
    """Mount the endpoint on an aiohttp application or a Faust app, before its server starts.

    Of a Faust app every page of its own (tables, router, statistics, index) is taken off.

    Args:
        app: an ``aiohttp.web.Application`` or a ``faust.App``.
        view: the worker to answer for.
        live: the owners of all partitions, here and on other workers.
        settings: token, host, limits.
        metrics: returns the worker's metrics in Prometheus' text form.
    """
    if isinstance(app, web.Application):
        site = app
    else:
        app.web.blueprints = type(app.web.blueprints)()
        site = app.web.web_app
    endpoint = _Endpoint(view, live, settings, metrics)
    site.middlewares.append(guard(settings))
    site.router.add_get("/v1/map", endpoint.map)
    site.router.add_get("/v1/layers", endpoint.layers)
    site.router.add_get("/v1/layers/{layer}/cells", endpoint.cells)
    site.router.add_get("/v1/families", endpoint.families)
    site.router.add_get("/v1/families/{family}/cells", endpoint.family)
    site.router.add_get("/v1/ledger", endpoint.ledger)
    site.router.add_post(PATH, endpoint.worker)
    site.router.add_get("/metrics", endpoint.metrics)
    site.router.add_get("/livez", endpoint.livez)
    site.router.add_get("/readyz", endpoint.readyz)
    site.on_cleanup.append(endpoint.close)


class _Endpoint:
    """The handlers, with the slots that bound how many queries run at once."""

    def __init__(
        self, view: WorkerView, live: LiveSource, settings: Settings, metrics: Callable[[], bytes]
    ) -> None:
        self._view = view
        self._metrics = metrics
        self._settings = settings
        self._limits = Limits(
            settings.query_rows_max,
            settings.query_cells_max,
            settings.query_limit_max,
            settings.query_deadline_ms,
        )
        self._slots = Slots(settings.query_concurrency_max, settings.query_deadline_ms)
        self._threads = ThreadPoolExecutor(settings.query_concurrency_max, "query")
        self._reader = Reader(
            view.themap, live, ArchiveCache(view.archive, settings.query_cache_bytes_max),
            self._limits, clock_ms,
        )  # fmt: skip

    async def close(self, _: web.Application) -> None:
        """Give up what still runs and let the threads go."""
        self._slots.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def map(self, request: web.Request) -> web.Response:
        """Answer with the map as this worker runs it."""
        _no_parameters(request)
        return answer(describe_map(self._view.themap))

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
        """Answer whether this worker is restored and caught up."""
        _no_parameters(request)
        ready, reason = self._view.ready()
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        state = {
            "ready": ready,
            "reason": reason,
            "serving": self._view.serving(),
            "restoring": self._view.restoring(),
            "paused": self._view.paused(),
        }
        return answer(state, status)

    async def cells(self, request: web.Request) -> web.Response:
        """Answer with one page of cells, live and archived merged."""
        query = parse_query(
            self._view.themap, request.match_info["layer"], request.query.items(), self._limits
        )
        return answer(await self._slots.run(self._read(query)))

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
            plan = await self._slots.run(self._reader.plan(query), query.deadline_ms)
            return answer({"family": query.family.name, "plan": describe_plan(plan)})
        return answer(await self._slots.run(self._family(query), query.deadline_ms))

    async def worker(self, request: web.Request) -> web.Response:
        """Answer another worker with the live cells of this one; nothing is asked of others."""
        body = await request.content.read(REQUEST_BYTES_MAX + 1)
        if len(body) > REQUEST_BYTES_MAX:
            raise QueryError(
                f"cannot read live cells: the request is too long; want at most {REQUEST_BYTES_MAX}"
                " bytes"
            )
        reads = decode_reads(self._view.themap, body)
        # No await between them: all are of one state.
        found = [self._view.local(read) for read in reads]
        return web.Response(
            body=encode_rows(found), headers=HEADERS | {"Content-Type": CONTENT_TYPE}
        )

    async def _family(self, query: FamilyQuery) -> dict[str, Any]:
        while True:
            found = await self._reader.answer(query)
            now_ms = clock_ms()
            age = age_ms(found, now_ms)
            if found.exactness == "partial" and query.partial == "refuse":
                raise PartialError(
                    f"cannot read family {query.family.name}: some owners do not answer; ask again"
                    " later, or with partial=allow"
                )
            if query.max_staleness_ms is None or (age or 0) <= query.max_staleness_ms:
                return describe_answer(self._view.themap, query, found, now_ms)
            # Younger data may come within the deadline.
            await asyncio.sleep(STALE_AGAIN_S)

    async def _read(self, query: CellQuery) -> dict[str, Any]:
        layer = query.layer
        found = await self._reader.layer(layer, query.cells)
        live, archived = found.live, found.archived
        if live.height + archived.height <= MERGED_AT_ONCE_ROWS_MAX:
            page = self._merge(query, live, archived)
        else:
            page = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._merge, query, live, archived
            )
        return {
            "layer": layer.name,
            "map_revision": self._view.themap.revision,
            "partial": not found.served.issuperset(range(layer.partitions)),
            "partitions_served": len(found.served),
            "partitions": layer.partitions,
            "rows_read": {"live": live.height, "archived": archived.height},
            "cells": page.rows,
            "cursor": page.cursor,
        }

    def _merge(self, query: CellQuery, live: pl.DataFrame, archived: pl.DataFrame) -> Answer:
        return merge_answer(self._view.themap, query, live, archived, self._limits.cells_max)


def clock_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


def describe_map(themap: Map) -> dict[str, Any]:
    """Return the map as JSON, with the topics that follow from it."""
    return {
        "name": themap.name,
        "revision": themap.revision,
        "digest": themap.digest,
        "sources": [msgspec.to_builtins(source) for source in themap.sources],
        "layers": [_describe_layer(themap, layer) for layer in themap.layers],
    }


def _describe_layer(themap: Map, layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "source": layer.source,
        "finer": layer.finer,
        "merged": layer.merged,
        "events": layer.events,
        "where": [msgspec.to_builtins(condition) for condition in layer.where],
        "key": [msgspec.to_builtins(field) for field in layer.key],
        "window": str(layer.window),
        "measures": [
            {"name": measure.name, "kind": measure.kind, "field": measure.field}
            for measure in layer.measures
        ],
        "max_out_of_orderness_ms": layer.max_out_of_orderness_ms,
        "allowed_lateness_ms": layer.allowed_lateness_ms,
        "archive_ttl_ms": layer.archive_ttl_ms,
        "input_topic": themap.input_topic(layer),
        "journal_topic": themap.journal_topic(themap.input_topic(layer)),
        "publish": layer.publish,
        "feed_topic": themap.feed_topic(layer) if layer.publish else None,
        "partitions": layer.partitions,
    }


def _no_parameters(request: web.Request) -> None:
    if request.query:
        raise QueryError(
            f"cannot answer {request.path}: it takes no parameters; got {', '.join(request.query)}"
        )
