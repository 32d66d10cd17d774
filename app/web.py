"""The query endpoint: aiohttp handlers over what one worker knows, mounted on Faust's web server.

Queries read applied state only. The live table is read first, synchronously with the set of
partitions served; then the archive; the merge runs in a thread. Work is bounded: so many queries at
once, each with a deadline. Paths and answers are described in ``docs/formats/http.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
import polars as pl
from aiohttp import web

from app.settings import Settings
from app.web_guard import HEADERS, BusyError, DeadlineError, answer, guard, ssl_context
from tables.archive import Archive
from tables.cell import archive_schema
from tables.errors import QueryError
from tables.layer import Layer, Map
from tables.query import Answer, CellQuery, Limits, LiveCells, merge_answer, parse_query

__all__ = ["WorkerView", "install", "ssl_context"]

MERGED_AT_ONCE_ROWS_MAX = 2_000
"""So few rows are merged faster than a thread begins."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class WorkerView(Protocol):
    """What the endpoint reads of a worker. All but ``archive`` answers at once, without waiting."""

    @property
    def themap(self) -> Map:
        """The map this worker runs."""

    @property
    def archive(self) -> Archive:
        """The archive, open."""

    @property
    def live(self) -> LiveCells:
        """The applied cells of this worker."""

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


def install(app: Any, view: WorkerView, settings: Settings, metrics: Callable[[], bytes]) -> None:
    """Mount the endpoint on an aiohttp application or a Faust app, before its server starts.

    Of a Faust app every page of its own (tables, router, statistics, index) is taken off.

    Args:
        app: an ``aiohttp.web.Application`` or a ``faust.App``.
        view: the worker to answer for.
        settings: token, host, limits.
        metrics: returns the worker's metrics in Prometheus' text form.
    """
    if isinstance(app, web.Application):
        site = app
    else:
        app.web.blueprints = type(app.web.blueprints)()
        site = app.web.web_app
    endpoint = _Endpoint(view, settings, metrics)
    site.middlewares.append(guard(settings))
    site.router.add_get("/v1/map", endpoint.map)
    site.router.add_get("/v1/layers", endpoint.layers)
    site.router.add_get("/v1/layers/{layer}/cells", endpoint.cells)
    site.router.add_get("/v1/ledger", endpoint.ledger)
    site.router.add_get("/metrics", endpoint.metrics)
    site.router.add_get("/livez", endpoint.livez)
    site.router.add_get("/readyz", endpoint.readyz)
    site.on_cleanup.append(endpoint.close)


class _Endpoint:
    """The handlers, with the slots that bound how many queries run at once."""

    def __init__(self, view: WorkerView, settings: Settings, metrics: Callable[[], bytes]) -> None:
        self._view = view
        self._metrics = metrics
        self._settings = settings
        self._limits = Limits(
            settings.query_rows_max, settings.query_cells_max, settings.query_limit_max
        )
        self._running: set[asyncio.Task[dict[str, Any]]] = set()
        self._threads = ThreadPoolExecutor(settings.query_concurrency_max, "query")

    async def close(self, _: web.Application) -> None:
        """Give up what still runs and let the threads go."""
        for task in self._running:
            task.cancel()
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
        return answer(await self._bounded(query))

    async def _read(self, query: CellQuery) -> dict[str, Any]:
        layer = query.layer
        # No await between the two: the partitions are those whose cells were read.
        served = self._view.live.partitions(layer)
        live = self._view.live.cells(layer, query.cells)
        if self._view.live.covers(layer, query.cells.from_ms):
            archived = pl.DataFrame(schema=archive_schema(layer))
        else:
            archived = await self._view.archive.read(layer, query.cells)
        if live.height + archived.height <= MERGED_AT_ONCE_ROWS_MAX:
            page = self._merge(query, live, archived)
        else:
            page = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._merge, query, live, archived
            )
        return {
            "layer": layer.name,
            "map_revision": self._view.themap.revision,
            "partial": not served.issuperset(range(layer.partitions)),
            "partitions_served": len(served),
            "partitions": layer.partitions,
            "rows_read": {"live": live.height, "archived": archived.height},
            "cells": page.rows,
            "cursor": page.cursor,
        }

    def _merge(self, query: CellQuery, live: pl.DataFrame, archived: pl.DataFrame) -> Answer:
        return merge_answer(self._view.themap, query, live, archived, self._limits.cells_max)

    async def _bounded(self, query: CellQuery) -> dict[str, Any]:
        """Run a query in a slot of its own until it is done or late.

        A late query is cancelled. Its merge, if one runs, goes on to its end in one of the threads,
        of which there are as many as slots: what is left over is bounded too.
        """
        if len(self._running) >= self._settings.query_concurrency_max:
            raise BusyError(
                f"cannot read cells: {len(self._running)} queries are being answered;"
                " want no more at once (query_concurrency_max); ask again later"
            )
        task = asyncio.create_task(self._read(query))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        deadline_ms = self._settings.query_deadline_ms
        try:
            await asyncio.wait({task}, timeout=deadline_ms / 1_000)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise DeadlineError(
            f"cannot read cells: not done after {deadline_ms} ms (query_deadline_ms);"
            " ask for a shorter range or fewer keys, or again later"
        )


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
