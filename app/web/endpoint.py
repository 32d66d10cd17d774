"""The query endpoint: its routes, mounted on Faust's web server over the state of one worker.

``ROUTES`` is the one table of its paths. ``docs/formats/http.md`` describes paths and answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import hdrs, web

from agents.query.reader import LiveSource, Reader
from app.config.settings import Settings
from app.host.reloads import Reloads
from app.peers.wire import PATH
from app.web.access import ADMIN, LIVE, OPEN, PEER, READ, Access, check_scopes
from app.web.admission import QueryAdmission
from app.web.formats import FORMATS
from app.web.guard import guard, ssl_context
from app.web.handlers import Handlers, WorkerView
from app.web.live_stream import LAST_EVENT_ID, LiveStreams, live_parameters
from app.web.openapi import openapi
from app.web.routes import EVENT_STREAM, Route, mount_routes
from tables.archive.cache import ArchiveCache
from tables.model.clock import wall_clock_ms
from tables.model.layer import Map
from tables.query.cell_query import Limits, cells_parameters
from tables.query.family import family_of, family_parameters
from tables.query.parameters import Parameter
from tables.query.top import top_parameters
from treasure_map.answers import Explained, Families, FamilyPage, Page
from treasure_map.status import Cluster, Layers, Live, Ready, WorkerAbout

__all__ = ["ROUTES", "WorkerView", "install", "ssl_context"]

TABLES = tuple(FORMATS)


def _cells(themap: Map, layer: str, limits: Limits) -> Sequence[Parameter]:
    return cells_parameters(themap.layer(layer), limits)


def _top(themap: Map, layer: str, limits: Limits) -> Sequence[Parameter]:
    return top_parameters(themap, themap.layer(layer), limits)


def _live(themap: Map, layer: str, _: Limits) -> Sequence[Parameter]:
    return live_parameters(themap.layer(layer))


def _family(themap: Map, family: str, limits: Limits) -> Sequence[Parameter]:
    return family_parameters(family_of(themap, family), limits)


ROUTES = (
    Route("/v1/families", Handlers.families, READ, "The families of the map", Families),
    Route("/v1/map", Handlers.map, READ, "The map, with the topics that follow from it"),
    Route("/v1/cluster", Handlers.cluster, READ, "The workers of the group", Cluster),
    Route(
        "/v1/layers", Handlers.layers, READ, "The layers of this worker, with their counts", Layers
    ),
    Route("/v1/ledger", Handlers.ledger, ADMIN, "The account of all offsets and events"),
    Route("/livez", Handlers.livez, OPEN, "Whether the event loop runs", Live),
    Route(
        "/readyz", Handlers.readyz, OPEN, "Whether this worker is restored and caught up",
        Ready, answers_unready=True,
    ),
    Route(
        "/v1/layers/{layer}/cells", Handlers.cells, READ, "Cells of {}", Page,
        parameters=_cells, formats=TABLES,
    ),
    Route(
        "/v1/layers/{layer}/top", Handlers.top, READ, "The first keys of {}",
        FamilyPage | Explained, parameters=_top, formats=TABLES,
    ),
    Route(
        "/v1/layers/{layer}/live", Handlers.live, LIVE, "Changes of cells of {}",
        parameters=_live, headers=(LAST_EVENT_ID,), formats=(EVENT_STREAM,),
    ),
    Route(
        "/v1/families/{family}/cells", Handlers.family, READ, "Rows over any range, from {}",
        FamilyPage | Explained, parameters=_family, formats=TABLES,
    ),
    Route("/openapi.json", Handlers.openapi, READ),
    Route("/docs", Handlers.docs, READ),
    Route("/metrics", Handlers.metrics, ADMIN),
    Route(PATH, Handlers.worker, PEER, method=hdrs.METH_POST),
)  # fmt: skip
"""All routes, in the order of the OpenAPI document. docs/SECURITY.md has the scope of each too."""


def install(
    app: Any,
    view: WorkerView,
    settings: Settings,
    *,
    live: LiveSource,
    cache: ArchiveCache,
    metrics: Callable[[], bytes],
    access: Access | None = None,
    workers: Callable[[], list[WorkerAbout]] = list,
    routes: Sequence[Route] = ROUTES,
) -> None:
    """Mount the endpoint on an aiohttp application or a Faust app, before its server starts.

    Of a Faust app every page of its own (tables, router, statistics, index) is taken off.

    Args:
        app: an ``aiohttp.web.Application`` or a ``faust.App``.
        view: the worker to answer for.
        settings: token, host, limits.
        live: the owners of all partitions, here and on other workers.
        cache: the archive, with a cache of its answers.
        metrics: returns the worker's metrics in Prometheus' text form.
        access: the rights of callers; None for those of the settings alone, with tokens read once.
        workers: returns the workers of the group.
        routes: the routes of the endpoint.
    """
    if isinstance(app, web.Application):
        site = app
    else:
        app.web.blueprints = type(app.web.blueprints)()
        site = app.web.web_app
    themap, limits = view.themap, _limits(settings)
    access = access or Access(settings, Reloads())
    streams = LiveStreams(themap, live, cache, settings)
    handlers = Handlers(
        view,
        Reader(themap, live, cache, limits, wall_clock_ms),
        streams,
        QueryAdmission(settings.query_concurrency_max, settings.query_deadline_ms),
        access=access, limits=limits, metrics=metrics, workers=workers,
        document=openapi(themap, limits, routes, token=access.wants_token),
    )  # fmt: skip
    site.middlewares.append(guard(settings, access))
    mount_routes(site, routes, handlers)
    site.on_startup.append(check_scopes)
    site.on_shutdown.append(streams.close)
    site.on_cleanup.append(handlers.close)


def _limits(settings: Settings) -> Limits:
    return Limits(
        settings.query_rows_max,
        settings.query_cells_max,
        settings.query_limit_max,
        settings.query_deadline_ms,
    )
