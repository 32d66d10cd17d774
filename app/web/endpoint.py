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
from app.web.access import ADMIN, LIVE, OPEN, PEER, READ, Access, check_scopes, mount
from app.web.admission import QueryAdmission
from app.web.formats import FORMATS
from app.web.guard import guard
from app.web.handlers import Handlers, WorkerView
from app.web.live_stream import LAST_EVENT_ID, LiveStreams, live_parameters
from app.web.openapi import openapi
from app.web.routes import EVENT_STREAM, Route, handler_of
from tables.archive.cache import ArchiveCache
from tables.model.clock import wall_clock_ms
from tables.query.cell_query import Limits, cells_parameters
from tables.query.family import family_of, family_parameters
from tables.query.top import top_parameters
from treasure_map.answers import Explained, Families, FamilyPage, Page
from treasure_map.status import Cluster, Layers, Live, Ready, WorkerAbout

TABLES = tuple(FORMATS)

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
        parameters=lambda themap, name, limits: cells_parameters(themap.layer(name), limits),
        formats=TABLES,
    ),
    Route(
        "/v1/layers/{layer}/top", Handlers.top, READ, "The first keys of {}",
        FamilyPage | Explained, formats=TABLES,
        parameters=lambda themap, name, limits: top_parameters(themap, themap.layer(name), limits),
    ),
    Route(
        "/v1/layers/{layer}/live",
        lambda handlers, request: handlers.streams.stream(request), LIVE, "Changes of cells of {}",
        parameters=lambda themap, name, _: live_parameters(themap.layer(name)),
        headers=(LAST_EVENT_ID,), formats=(EVENT_STREAM,),
    ),
    Route(
        "/v1/families/{family}/cells", Handlers.family, READ,
        "Rows over any range, from {}; any of these names the family",
        FamilyPage | Explained, formats=TABLES,
        parameters=lambda themap, name, limits: family_parameters(family_of(themap, name), limits),
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

    It removes every page of a Faust app's own: tables, router, statistics, index.

    Args:
        app: an ``aiohttp.web.Application`` or a ``faust.App``.
        view: the worker to answer for.
        settings: token, host, limits.
        live: the owners of all partitions, here and on other workers.
        cache: the archive.
        metrics: returns the worker's metrics in Prometheus' text form.
        access: the rights of callers; None for those of the settings alone, with tokens read once.
        workers: returns the workers of the group.
        routes: the table of paths.
    """
    if isinstance(app, web.Application):
        site = app
    else:
        app.web.blueprints = type(app.web.blueprints)()
        site = app.web.web_app
    themap = view.themap
    limits = Limits(
        settings.query_rows_max, settings.query_cells_max, settings.query_limit_max,
        settings.query_deadline_ms,
    )  # fmt: skip
    access = access or Access(settings, Reloads())
    streams = LiveStreams(themap, live, cache, settings)
    handlers = Handlers(
        view,
        Reader(themap, live, cache, limits, wall_clock_ms),
        streams,
        QueryAdmission(settings.query_concurrency_max, settings.query_deadline_ms),
        access, limits, metrics, wall_clock_ms, workers,
        document=openapi(themap, limits, routes, token=access.wants_token),
    )  # fmt: skip
    site.middlewares.append(guard(settings, access))
    for route in routes:
        mount(site, route.method, route.path, route.scope, handler_of(route, handlers))
    site.on_startup.append(check_scopes)
    site.on_shutdown.append(streams.close)
    site.on_cleanup.append(handlers.close)
