"""The OpenAPI 3.1 document of an endpoint, made from its routes.

Every layer and family has paths of its own, because its key decides what may be asked. Parameters
are those that requests are read by (``tables.query.parameters``); the schemas of answers are of the
types below, and tests compare real answers with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from app.web.access import OPEN
from app.web.formats import JSON
from app.web.guard import PROBLEM_TYPE
from app.web.routes import Route
from tables.model.layer import Map
from tables.query.cell_query import Limits
from tables.query.family import family_of
from tables.query.parameters import Parameter

VERSION = "3.1.0"

Schemas = Mapping[Any, dict[str, Any]]
"""The schema of each type that answers have."""

_SEVERAL = {"style": "form", "explode": True}
"""Several values are the parameter given several times."""

Key = dict[str, str | int | bool]
Measures = dict[str, int | float | str | None]


class Problem(msgspec.Struct):
    """A refusal (RFC 9457); ``detail`` says what to change."""

    type: str
    title: str
    status: int
    detail: str


class Cell(msgspec.Struct):
    """One aggregate of a layer; an integer beyond 64 bits is its decimal text."""

    key: Key
    window_start: int
    window_end: int
    measures: Measures
    version: int


class Row(msgspec.Struct):
    """One row of a family; an integer beyond 64 bits is its decimal text."""

    key: Key
    window_start: int
    window_end: int
    measures: Measures


class RowsRead(msgspec.Struct):
    """Rows before merging."""

    live: int
    archived: int


class LayerPage(msgspec.Struct):
    """A page of cells of one layer."""

    layer: str
    map_revision: int
    partial: bool
    partitions_served: int
    partitions: int
    rows_read: RowsRead
    whole_from: dict[str, int | None]
    cells: list[Cell]
    cursor: str | None
    hint: str | msgspec.UnsetType = msgspec.UNSET


class SegmentRead(msgspec.Struct):
    """Windows of one layer."""

    layer: str
    from_ms: int = msgspec.field(name="from")
    to_ms: int = msgspec.field(name="to")
    windows: int
    cells: float


class PlanRead(msgspec.Struct):
    """What a range is answered from."""

    exactness: Literal["exact", "settling"]
    cells: float
    segments: list[SegmentRead]


class LayerCost(msgspec.Struct):
    """Rows read of one layer."""

    live_rows: int
    archived_rows: int


class Cost(msgspec.Struct):
    """What an answer cost."""

    workers_asked: int
    archive_reads: int
    archive_partitions: int
    archive_bytes: int
    cache_hits: int
    cache_misses: int
    layers: dict[str, LayerCost]


class FamilyPage(msgspec.Struct):
    """A page of rows of a family, or only its plan where that was asked for."""

    family: str
    plan: PlanRead
    map_revision: int | msgspec.UnsetType = msgspec.UNSET
    exactness: Literal["exact", "settling", "partial"] | msgspec.UnsetType = msgspec.UNSET
    final: bool | msgspec.UnsetType = msgspec.UNSET
    as_of: dict[str, dict[str, int]] | msgspec.UnsetType = msgspec.UNSET
    watermark_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    data_age_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    whole_from: dict[str, int | None] | msgspec.UnsetType = msgspec.UNSET
    cost: Cost | msgspec.UnsetType = msgspec.UNSET
    cells: list[Row] | msgspec.UnsetType = msgspec.UNSET
    cursor: str | msgspec.UnsetType | None = msgspec.UNSET
    layer: str | msgspec.UnsetType = msgspec.UNSET
    by: str | msgspec.UnsetType = msgspec.UNSET
    order: Literal["desc", "asc"] | msgspec.UnsetType = msgspec.UNSET
    keys: int | msgspec.UnsetType = msgspec.UNSET
    hint: str | msgspec.UnsetType = msgspec.UNSET


class FamilyAbout(msgspec.Struct):
    """One family."""

    name: str
    layers: list[str]
    key: list[str]
    measures: list[str]
    window: str


class Families(msgspec.Struct):
    """All families."""

    families: list[FamilyAbout]


class LayerAbout(msgspec.Struct):
    """What one layer holds on this worker."""

    name: str
    open_cells: int


class Layers(msgspec.Struct):
    """What each layer holds on this worker."""

    layers: list[LayerAbout]


class WorkerAbout(msgspec.Struct):
    """One worker of the group; ``problem`` says why it is not asked or not trusted."""

    url: str
    own: bool
    partitions: int
    problem: str


class Cluster(msgspec.Struct):
    """The workers of the group that own partitions."""

    workers: list[WorkerAbout]


class Ready(msgspec.Struct):
    """Whether a worker is restored and caught up; without a token that is wanted, no more."""

    ready: bool
    reason: str | msgspec.UnsetType = msgspec.UNSET
    reasons: list[str] | msgspec.UnsetType = msgspec.UNSET
    serving: dict[str, list[int]] | msgspec.UnsetType = msgspec.UNSET
    restoring: dict[str, list[int]] | msgspec.UnsetType = msgspec.UNSET
    paused: dict[str, list[str]] | msgspec.UnsetType = msgspec.UNSET
    insecure: bool | msgspec.UnsetType = msgspec.UNSET
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET


class Live(msgspec.Struct):
    """That the event loop runs."""

    live: bool


_REFUSALS = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND,
    HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
)  # fmt: skip


def openapi(themap: Map, limits: Limits, routes: Sequence[Route], *, token: bool) -> dict[str, Any]:
    """Return the document of a worker that runs this map.

    Args:
        themap: the map.
        limits: the bounds of one request.
        routes: what can be asked.
        token: whether requests must carry one.
    """
    shown = [route for route in routes if route.summary]
    types = list(dict.fromkeys([Problem, *(route.answer for route in shown)]))
    found, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(types, found, strict=True))
    document: dict[str, Any] = {
        "openapi": VERSION,
        "info": {
            "title": f"Treasure Map: {themap.name}",
            "version": str(themap.revision),
            "description": "Cells of layers and rows of families, live and archived, of all"
            " workers of a group. docs/formats/http.md has the meaning of every field.",
        },
        "paths": {
            path: {route.method.lower(): operation | _security(route.scope, token=token)}
            for route, path, operation in _operations(themap, limits, shown, schemas)
        },
        "components": {"schemas": dict(sorted(components.items()))},
    }
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _operations(
    themap: Map, limits: Limits, routes: Sequence[Route], schemas: Schemas
) -> Iterator[tuple[Route, str, dict[str, Any]]]:
    """Yield route, path and operation, once for each layer or family that a path may name."""
    for kind, name, words in _names(themap):
        for route in routes:
            if route.names != kind:
                continue
            given = () if route.parameters is None else route.parameters(themap, name, limits)
            parameters = [_parameter(one) | _SEVERAL for one in given]
            parameters += [_parameter(one, "header") for one in route.headers]
            operation = {
                "summary": route.summary.format(words),
                "parameters": parameters,
                "responses": _responses(route, schemas),
            }
            yield route, route.path.replace(f"{{{kind}}}", name), operation


def _names(themap: Map) -> Iterator[tuple[str, str, str]]:
    """Yield what paths may name: nothing, each layer, each family; its name, and words for it."""
    yield "", "", ""
    for layer in themap.layers:
        yield "layer", layer.name, f"{layer.name}: windows of {layer.window}"
    for base in (layer for layer in themap.layers if layer.finer is None):
        family = family_of(themap, base.name)
        yield "family", family.name, ", ".join(layer.name for layer in family.layers)


def _responses(route: Route, schemas: Schemas) -> dict[str, Any]:
    content = {
        kind: {"schema": schemas[route.answer] if kind == JSON else {"type": "string"}}
        for kind in route.formats
    }
    refusal = {PROBLEM_TYPE: {"schema": schemas[Problem]}}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    responses |= {
        str(int(status)): {"description": status.phrase, "content": refusal} for status in _REFUSALS
    }
    if route.answers_unready:
        responses["503"] = {"description": "It is not", "content": content}
    return responses


def _security(scope: str, *, token: bool) -> dict[str, Any]:
    """Return what the token of a request must have; of a route for anyone, nothing."""
    if not token:
        return {}
    return {"security": [] if scope == OPEN else [{"token": [scope]}]}


def _parameter(parameter: Parameter, place: str = "query") -> dict[str, Any]:
    schema: dict[str, Any] = dict(parameter.schema)
    if parameter.many:
        schema = {"type": "array", "items": schema}
    return {
        "name": parameter.name,
        "in": place,
        "required": bool(parameter.want),
        "description": parameter.about,
        "schema": schema,
    }
