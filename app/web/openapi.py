"""The OpenAPI 3.1 document of an endpoint, made from what reads and refuses its requests.

Every layer and family has paths of its own, because its key decides what may be asked. Parameters
are those that requests are read by (``tables.query.parameters``); the schemas of answers are of the
types below, and tests compare real answers with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from app.web.access import OPEN
from app.web.formats import FORMATS, JSON
from app.web.guard import PROBLEM_TYPE
from app.web.live_stream import live_parameters
from tables.model.layer import Layer, Map
from tables.query.cell_query import Limits, cells_parameters
from tables.query.family import family_of, family_parameters
from tables.query.parameters import Parameter
from tables.query.top import top_parameters

VERSION = "3.1.0"

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


_TYPES = (Problem, LayerPage, FamilyPage, Families, Layers, Cluster, Ready, Live)
_REFUSALS = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND,
    HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
)  # fmt: skip


def openapi(
    themap: Map,
    limits: Limits,
    *,
    token: bool,
    scope_of: Callable[[str], str | None] = lambda _: None,
) -> dict[str, Any]:
    """Return the document of a worker that runs this map.

    Args:
        themap: the map.
        limits: the bounds of one request.
        token: whether requests must carry one.
        scope_of: returns the scope that the token of a path must have.
    """
    _, components = msgspec.json.schema_components(
        _TYPES, ref_template="#/components/schemas/{name}"
    )
    document: dict[str, Any] = {
        "openapi": VERSION,
        "info": {
            "title": f"Treasure Map: {themap.name}",
            "version": str(themap.revision),
            "description": "Cells of layers and rows of families, live and archived, of all"
            " workers of a group. docs/formats/http.md has the meaning of every field.",
        },
        "paths": _paths(themap, limits),
        "components": {"schemas": components},
    }
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path, about in document["paths"].items():
            scope = scope_of(path)
            if scope == OPEN:
                about["get"]["security"] = []
            elif scope is not None:
                about["get"]["security"] = [{"token": [scope]}]
    return document


def _paths(themap: Map, limits: Limits) -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v1/families": _get("The families of the map", [], _json("Families")),
        "/v1/map": _get("The map, with the topics that follow from it", [], _any()),
        "/v1/cluster": _get("The workers of the group", [], _json("Cluster")),
        "/v1/layers": _get("What each layer holds on this worker", [], _json("Layers")),
        "/v1/ledger": _get("Where every offset and event went", [], _any()),
        "/livez": _get("Whether the event loop runs", [], _json("Live")),
        "/readyz": _get(
            "Whether this worker is restored and caught up", [], _json("Ready"),
            unready=_json("Ready"),
        ),
    }  # fmt: skip
    for layer in themap.layers:
        paths |= _layer_paths(themap, layer, limits)
    for base in (layer for layer in themap.layers if layer.finer is None):
        family = family_of(themap, base.name)
        paths[f"/v1/families/{base.name}/cells"] = _get(
            f"Rows over any range, from {', '.join(layer.name for layer in family.layers)}",
            family_parameters(family, limits),
            _table("FamilyPage"),
        )
    return paths


def _layer_paths(themap: Map, layer: Layer, limits: Limits) -> dict[str, Any]:
    about = f"{layer.name}: windows of {layer.window}"
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    live = _get(f"Changes of cells of {about}", live_parameters(layer), events)
    live["get"]["parameters"].append(
        {
            "name": "Last-Event-ID", "in": "header", "required": False,
            "description": "Where to go on from: the id of the last event.",
            "schema": {"type": "string"},
        }
    )  # fmt: skip
    return {
        f"/v1/layers/{layer.name}/cells": _get(
            f"Cells of {about}", cells_parameters(layer, limits), _table("LayerPage")
        ),
        f"/v1/layers/{layer.name}/top": _get(
            f"The first keys of {about}", top_parameters(themap, layer, limits),
            _table("FamilyPage"),
        ),
        f"/v1/layers/{layer.name}/live": live,
    }  # fmt: skip


def _get(
    summary: str,
    parameters: Sequence[Parameter],
    content: dict[str, Any],
    unready: dict[str, Any] | None = None,
) -> dict[str, Any]:
    refusal = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    responses |= {
        str(int(status)): {"description": status.phrase, "content": refusal} for status in _REFUSALS
    }
    if unready is not None:
        responses["503"] = {"description": "It is not", "content": unready}
    return {
        "get": {
            "summary": summary,
            "parameters": [_parameter(parameter) for parameter in parameters],
            "responses": responses,
        }
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = dict(parameter.schema)
    if parameter.many:
        schema = {"type": "array", "items": schema}
    return {
        "name": parameter.name,
        "in": "query",
        "required": bool(parameter.want),
        "description": parameter.about,
        "schema": schema,
        # Several values are the parameter given several times.
        "style": "form",
        "explode": True,
    }


def _json(name: str) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _table(name: str) -> dict[str, Any]:
    tables = {kind: {"schema": {"type": "string"}} for kind in FORMATS if kind != JSON}
    return _json(name) | tables


def _any() -> dict[str, Any]:
    return {JSON: {"schema": {"type": "object"}}}
