"""Routes: a route added to the table is mounted, guarded, checked and described."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
from aiohttp import web

from app.trust.tokens import make_token
from app.web.access import ADMIN
from app.web.endpoint import ROUTES
from app.web.guard import answer
from app.web.handlers import Handlers
from app.web.routes import Route
from tables.model.layer import Map
from tables.query.cell_query import Limits, find_layer
from tables.query.parameters import Parameter, read_parameters
from tests.support.common import small_map
from tests.support.web_support import get, served

MAP = small_map()


class WindowAt(msgspec.Struct):
    """The window of a layer that holds a moment."""

    layer: str
    window_start: int


def window_parameters(_map: Map, layer: str, _limits: Limits) -> list[Parameter]:
    """Return the parameters of the route."""
    return [Parameter.whole("at", f"A moment of {layer}.", 0, 10**12)]


async def window(_: Handlers, request: web.Request) -> web.Response:
    """Answer with the window that holds a moment."""
    layer = find_layer(MAP, request.match_info["layer"])
    wanted = window_parameters(MAP, layer.name, Limits())
    problems: list[str] = []
    values = read_parameters(wanted, request.query.items(), problems)
    assert not problems
    return answer(WindowAt(layer.name, layer.window.start(values["at"])))


ADDED = (
    Route(
        "/v1/layers/{layer}/window", window, ADMIN, "The window of {}", WindowAt,
        parameters=window_parameters,
    ),
    Route("/v1/window", window, ADMIN, "Nothing, for it takes no parameters", WindowAt),
)  # fmt: skip


async def test_a_route_that_is_added_is_served_guarded_and_described(tmp_path: Path) -> None:
    """Its row of the table is all that the endpoint needs to know of it."""
    file = tmp_path / "tokens.json"
    headers = {
        scope: {"Authorization": f"Bearer {make_token(file, scope, [scope])}"}
        for scope in ("read", "admin")
    }
    path = "/v1/layers/day/window"
    routes = (*ROUTES, *ADDED)
    async with served(MAP, tmp_path / "a", routes=routes, web_tokens_file=str(file)) as (_, url):
        status, found, _ = await get(f"{url}{path}?at=86400001", **headers["admin"])
        assert (status, found) == (200, {"layer": "day", "window_start": 86_400_000})
        assert (await get(f"{url}{path}?at=1"))[0] == 401
        assert (await get(f"{url}{path}?at=1", **headers["read"]))[0] == 403
        status, refused, _ = await get(f"{url}/v1/window?at=1", **headers["admin"])
        assert (status, "takes no parameters; got at" in refused["detail"]) == (400, True)
        _, document, _ = await get(f"{url}/openapi.json", **headers["read"])
    about = document["paths"][path]["get"]
    assert about["summary"] == "The window of day: windows of 1d"
    assert about["security"] == [{"token": ["admin"]}]
    (parameter,) = about["parameters"]
    assert (parameter["name"], parameter["description"]) == ("at", "A moment of day.")
    schema = about["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(found, {**document, **schema})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"layer": "day"}, {**document, **schema})
