"""The OpenAPI 3.1 document of an endpoint, made from its routes.

Every layer and family has paths of its own, because its key decides which parameters there are.
Parameters are those that requests are read by (``tables.query.parameters``); the schemas of answers
are of the types that they are encoded from (``treasure_map.answers``), and tests compare real
answers with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from app.web.access import OPEN
from app.web.guard import JSON, PROBLEM_TYPE
from app.web.routes import Route
from tables.model.layer import Map
from tables.query.cell_query import Limits
from tables.query.family import family_of
from tables.query.parameters import Parameter
from treasure_map.answers import Problem

VERSION = "3.1.0"

Schemas = Mapping[Any, dict[str, Any]]
"""The schema of each type that answers have."""

_SEVERAL = {"style": "form", "explode": True}
"""Several values are the parameter given several times."""

_REFUSALS = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND,
    HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
)  # fmt: skip


def openapi(themap: Map, limits: Limits, routes: Sequence[Route], *, token: bool) -> dict[str, Any]:
    """Return the document of a worker; ``token`` says whether requests must carry one."""
    shown = [route for route in routes if route.summary]
    types = list(dict.fromkeys([Problem, *(one for route in shown for one in _types(route))]))
    found, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    for component in components.values():
        words = inspect.cleandoc(component["description"])
        component["description"] = words.partition("\n\nAttributes:")[0]
        _require_defaults(component)
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


def _require_defaults(component: dict[str, Any]) -> None:
    """Require fields that have a default: it is for clients that read answers of older workers."""
    fields, required = component["properties"], component["required"]
    component["required"] = [
        name for name, schema in fields.items() if name in required or "default" in schema
    ]
    for schema in fields.values():
        schema.pop("default", None)


def _operations(
    themap: Map, limits: Limits, routes: Sequence[Route], schemas: Schemas
) -> Iterator[tuple[Route, str, dict[str, Any]]]:
    """Yield route, path and operation, once for each layer or family that a path may name."""
    for kind, name, words in _names(themap):
        for route in routes:
            if route.kind != kind:
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
    """Yield kind, name and words of each name that paths may have: empty, a layer, a family."""
    yield "", "", ""
    for layer in themap.layers:
        yield "layer", layer.name, f"{layer.name}: windows of {layer.window}"
    for base in (layer for layer in themap.layers if layer.finer is None):
        family = family_of(themap, base.name)
        yield "family", family.name, ", ".join(layer.name for layer in family.layers)


def _responses(route: Route, schemas: Schemas) -> dict[str, Any]:
    several = [schemas[one] for one in _types(route)]
    schema = several[0] if len(several) == 1 else {"anyOf": several}
    content = {
        kind: {"schema": schema if kind == JSON else {"type": "string"}} for kind in route.formats
    }
    refusal = {PROBLEM_TYPE: {"schema": schemas[Problem]}}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    responses |= {
        str(int(status)): {"description": status.phrase, "content": refusal} for status in _REFUSALS
    }
    if route.answers_unready:
        responses["503"] = {"description": "It is not", "content": content}
    return responses


def _types(route: Route) -> tuple[Any, ...]:
    return get_args(route.answer) or (route.answer,)


def _security(scope: str, *, token: bool) -> dict[str, Any]:
    """Return the scope that a token must have; no token is needed for an open route."""
    if not token:
        return {}
    return {"security": [] if scope == OPEN else [{"token": [scope]}]}


def _parameter(parameter: Parameter, location: str = "query") -> dict[str, Any]:
    schema: dict[str, Any] = dict(parameter.schema)
    if parameter.many:
        schema = {"type": "array", "items": schema}
    return {
        "name": parameter.name,
        "in": location,
        "required": bool(parameter.want),
        "description": parameter.about,
        "schema": schema,
    }
