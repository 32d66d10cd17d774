"""Routes: one row has everything about one endpoint of the API.

The router, the scope that a token must have, the refusal of unknown parameters and the OpenAPI
document follow from a :class:`Route`; the worker's own are ``app.web.endpoint.ROUTES``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from app.web.guard import JSON
from tables.model.errors import QueryError
from tables.model.layer import Map
from tables.query.cell_query import Limits
from tables.query.parameters import Parameter

if TYPE_CHECKING:
    from app.web.handlers import Handlers

EVENT_STREAM = "text/event-stream"

Parameters = Callable[[Map, str, Limits], Sequence[Parameter]]
"""Returns the parameters of a request: of a map, the name in the path, and the bounds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One endpoint of the API.

    Attributes:
        path: the path; ``{layer}`` or ``{family}`` in it is the name of one.
        handler: answers a request.
        scope: the scope that a request needs: ``OPEN``, ``PEER``, or one that tokens may have.
        summary: its title in the OpenAPI document; ``{}`` becomes words for the layer or family.
            The document leaves out a route without one.
        answer: the type of the answer in JSON, or the union of those that it may have.
        parameters: returns its parameters; None if it has no parameters.
        headers: the headers that it reads, beside those that all routes do.
        formats: the media types of its answers.
        answers_unready: whether an answer of status 503 has that type too, and is not a refusal.
        method: the HTTP method; GET comes with HEAD.
    """

    path: str
    handler: Callable[[Handlers, web.Request], Awaitable[web.StreamResponse]]
    scope: str
    summary: str = ""
    answer: Any = dict
    parameters: Parameters | None = None
    headers: tuple[Parameter, ...] = ()
    formats: tuple[str, ...] = (JSON,)
    answers_unready: bool = False
    method: str = hdrs.METH_GET

    @property
    def kind(self) -> str:
        """The kind of the name in the path: ``layer``, ``family``, or empty without a name."""
        found = re.search(r"\{(\w+)\}", self.path)
        return found[1] if found else ""


def handler_of(route: Route, handlers: Handlers) -> Handler:
    """Return the handler of a route, which refuses parameters that the route does not have."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if route.parameters is None and request.query:
            raise QueryError(
                f"cannot answer {request.path}: it takes no parameters;"
                f" got {', '.join(request.query)}"
            )
        return await route.handler(handlers, request)

    return handler
