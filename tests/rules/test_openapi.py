"""The OpenAPI document: every path of it answers, as it says, and the page shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest

from app.web.docs_page import docs_page
from app.web.endpoint import ROUTES
from app.web.openapi import openapi
from tables.model.layer import KeyField
from tables.query.cell_query import Limits
from tests.support.common import DAY_MS, dataclasses_replace, small_map
from tests.support.web_support import get, served, stored

MAP = small_map()
ROWS = [stored(origin, hour=hour) for origin in ("JFK", "LGA") for hour in range(3)]
RANGE = f"from=0&to={DAY_MS}"


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/layers/hour/cells?{RANGE}&limit=2",
        f"/v1/layers/day/cells?{RANGE}",
        f"/v1/families/hour/cells?{RANGE}&group=origin&step=1h",
        f"/v1/families/hour/cells?{RANGE}&explain=true",
        f"/v1/layers/hour/top?{RANGE}&by=count",
        "/v1/families", "/v1/map", "/v1/cluster", "/v1/layers", "/v1/ledger", "/livez", "/readyz",
        "/v1/layers/hour/cells", "/v1/families/hour/cells?from=1&to=2",
    ],
)  # fmt: skip
async def test_answers_are_as_the_document_says(path: str, tmp_path: Path) -> None:
    """Refusals too: status, type and shape."""
    async with served(MAP, tmp_path, ROWS[:3], ROWS[3:]) as (_, url):
        _, document, _ = await get(f"{url}/openapi.json")
        status, body, headers = await get(url + path)
    about = document["paths"][path.partition("?")[0]]["get"]
    content = about["responses"][str(status)]["content"]
    schema = content[headers["Content-Type"].partition(";")[0]]["schema"]
    jsonschema.validate(body, {**document, **schema})


async def test_the_document_describes_itself_and_is_shown(tmp_path: Path) -> None:
    """A page of one file that loads nothing, with every path and parameter."""
    async with served(MAP, tmp_path) as (_, url):
        _, document, _ = await get(f"{url}/openapi.json")
    assert document["openapi"] == "3.1.0"
    assert "/v1/layers/day/top" in document["paths"]
    page = docs_page(document)
    for path, about in document["paths"].items():
        assert f"GET {path}<" in page
        for parameter in about["get"]["parameters"]:
            assert f"<code>{parameter['name']}</code>" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://127.0.0.1", "")


def test_keys_and_measures_are_those_of_each_layer() -> None:
    """They have types and choices; the day has no origin."""
    paths = openapi(MAP, Limits(limit_max=77), ROUTES, token=False)["paths"]

    def names(path: str) -> dict[str, Any]:
        return {one["name"]: one["schema"] for one in paths[path]["get"]["parameters"]}

    assert names("/v1/layers/day/cells")["limit"]["maximum"] == 77
    assert "key.origin" not in names("/v1/layers/day/cells")
    assert "sum_delay" in names("/v1/layers/day/top")["by"]["enum"]
    family = names("/v1/families/hour/cells")
    assert family["key.origin"] == {"type": "array", "items": {"type": "string"}}
    assert family["group"]["items"]["enum"] == ["origin", "carrier", "-"]
    assert "prefix.origin" in family


def test_a_token_is_told() -> None:
    """Every path wants it then."""
    assert "security" not in openapi(MAP, Limits(), ROUTES, token=False)
    assert openapi(MAP, Limits(), ROUTES, token=True)["security"] == [{"token": []}]


def test_names_of_a_map_are_text_on_the_page() -> None:
    """They are checked when the map is read; the page escapes them all the same."""
    layer = dataclasses_replace(MAP.layers[0], key=(KeyField("<b>", "string"),))
    page = docs_page(openapi(small_map(layers=(layer,)), Limits(), ROUTES, token=False))
    assert "key.&lt;b&gt;" in page
    assert "<b>" not in page


async def test_unknown_parameters_are_refused_there_too(tmp_path: Path) -> None:
    """Like everywhere."""
    async with served(MAP, tmp_path) as (_, url):
        for path in ("/openapi.json", "/docs"):
            status, body, _ = await get(f"{url}{path}?x=1")
            assert (status, body["status"]) == (400, 400)
        status, _, headers = await get_page(f"{url}/docs")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


async def get_page(url: str) -> tuple[int, str, Any]:
    """Return status, text and headers."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text(), dict(response.headers)
