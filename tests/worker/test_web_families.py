"""Families over HTTP: formats, pages, ETags, refusals, and the facts of an answer about itself."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import polars as pl
import pytest
from multidict import CIMultiDict

import app.web.formats
from app.web.formats import ARROW, accepted, has_etag
from app.web.guard import NotAcceptableError
from tests.support.common import DAY_MS, HOUR_MS, dataclasses_replace, small_map
from tests.support.web_support import get, served, stored

MAP = small_map()
HOURS = MAP.layer("hour")
FAMILY = f"/v1/families/hour/cells?from=0&to={DAY_MS}"
ROWS = [
    stored(origin, carrier, hour=hour, delays=[hour, 5])
    for origin in ("JFK", "LGA")
    for carrier in ("AA", "B6", "UA")
    for hour in range(6)
]


async def fetch(url: str, **headers: str) -> tuple[int, bytes, Any]:
    """Return status, body and headers of one request."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.read(), response.headers


async def test_rows_are_grouped_and_stepped(tmp_path: Path) -> None:
    """Fields that are not kept are added up over; steps are cut by the range."""
    async with served(MAP, tmp_path, ROWS[::2], ROWS[1::2]) as (_, url):
        _, body, _ = await get(f"{url}{FAMILY}&key.carrier=UA&step=4h&measures=count")
        assert body["cells"] == [
            {"key": {"carrier": "UA"}, "window_start": 0, "window_end": 4 * HOUR_MS,
             "measures": {"count": 16}},
            {"key": {"carrier": "UA"}, "window_start": 4 * HOUR_MS, "window_end": 8 * HOUR_MS,
             "measures": {"count": 8}},
        ]  # fmt: skip
        assert (body["family"], body["exactness"], body["final"]) == ("hour", "exact", False)
        assert body["as_of"] == {"flights.raw": {"0": 7, "1": 7}}
        assert body["plan"]["segments"][0]["layer"] == "hour"
        _, body, _ = await get(f"{url}{FAMILY}&group=-")
        (row,) = body["cells"]
        assert (row["key"], row["measures"]["count"]) == ({}, 72)
        _, body, _ = await get(f"{url}{FAMILY}&prefix.origin=J&key.carrier=AA&key.carrier=UA")
        assert [cell["key"] for cell in body["cells"]] == [
            {"origin": "JFK", "carrier": "AA"}, {"origin": "JFK", "carrier": "UA"},
        ]  # fmt: skip


async def test_pages_are_what_one_large_page_is(tmp_path: Path) -> None:
    """They are with steps too, and the cursor of another format continues them."""
    path = f"{FAMILY}&group=origin&group=carrier&step=1h"
    async with served(MAP, tmp_path, ROWS) as (_, url):
        _, whole, _ = await get(url + path)
        found: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = f"&cursor={cursor}" if cursor else ""
            status, body, headers = await fetch(
                f"{url}{path}&limit=5{page}", Accept="application/x-ndjson"
            )
            assert status == 200
            found += [orjson.loads(line) for line in body.splitlines()]
            cursor = headers.get("Treasure-Map-Cursor")
    assert len(found) == 36
    assert found == whole["cells"]


async def test_every_format_has_the_same_rows(tmp_path: Path) -> None:
    """Sums of 128 bits are the same too; a header has the exactness of the answer."""
    big = [stored() | {"sum_delay": 2**100}, stored("LGA", delays=[3])]
    path = f"{FAMILY}&group=origin&measures=count&measures=sum_delay&measures=mean_delay"
    async with served(MAP, tmp_path, big) as (_, url):
        _, document, _ = await get(url + path)
        rows = [
            (cell["key"]["origin"], cell["window_start"], cell["window_end"],
             cell["measures"]["count"], int(cell["measures"]["sum_delay"]),
             cell["measures"]["mean_delay"])
            for cell in document["cells"]
        ]  # fmt: skip
        _, body, headers = await fetch(url + path, Accept=ARROW)
        frame = pl.read_ipc_stream(io.BytesIO(body))
        assert frame.columns == [
            "origin", "window_start", "window_end", "count", "sum_delay", "mean_delay",
        ]  # fmt: skip
        times = [frame.schema[name] for name in ("window_start", "window_end")]
        assert times == [pl.Datetime("ms", "UTC")] * 2
        frame = frame.with_columns(pl.col("window_start", "window_end").dt.epoch("ms"))
        assert [(*row[:4], int(row[4]), row[5]) for row in frame.rows()] == rows
        about = orjson.loads(headers["Treasure-Map-Answer"])
        assert about["exactness"] == "exact"
        assert headers["Content-Type"] == ARROW
        _, body, headers = await fetch(url + path, Accept="text/csv")
        assert body.decode().splitlines() == [
            "origin,window_start,window_end,count,sum_delay,mean_delay",
            f"JFK,0,{DAY_MS},1,{2**100},{float(2**100)!r}",
            f"LGA,0,{DAY_MS},1,3,3.0",
        ]
        assert headers["Content-Type"] == "text/csv; charset=utf-8"
        cells = f"/v1/layers/hour/cells?from=0&to={DAY_MS}"
        _, body, _ = await fetch(url + cells, Accept="text/csv")
        assert body.splitlines()[0].endswith(b",variance_delay,version")
        status, body, headers = await fetch(url + path, Accept="image/png")
        assert (status, headers["Content-Type"]) == (406, "application/problem+json")
        assert b"want one of application/json" in body


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("*/*", "application/json"),
        ("text/*", "text/csv"),
        ("text/html, application/xml;q=0.9, */*;q=0.8", "application/json"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0, application/*", "application/json"),
        (ARROW.upper(), ARROW),
    ],
)
def test_the_preferred_format_is_taken(header: str, kind: str) -> None:
    """Quality decides, then order."""
    assert accepted(CIMultiDict(Accept=header)) == kind


def test_no_header_is_json_and_nothing_acceptable_is_refused() -> None:
    """A quality that is not a number counts as zero."""
    assert accepted(CIMultiDict()) == "application/json"
    for header in ("image/png", "text/csv;q=0", "text/csv;q=x", ""):
        with pytest.raises(NotAcceptableError):
            accepted(CIMultiDict(Accept=header))


def test_an_etag_is_found_among_others() -> None:
    """The others may be in one header or several."""
    headers = CIMultiDict([("If-None-Match", '"a", W/"b"'), ("If-None-Match", 'W/"c"')])
    assert [has_etag(headers, f'W/"{name}"') for name in "abc"] == [False, True, True]


async def test_a_final_answer_has_an_etag(tmp_path: Path) -> None:
    """Nothing is read again with it; another format or question is another answer."""
    path = f"{FAMILY}&group=origin"
    async with served(MAP, tmp_path, [], ROWS) as (view, url):
        status, _, headers = await fetch(url + path)
        assert "ETag" not in headers
        assert headers["Cache-Control"] == "no-store"
        view.live.archived_ms = 2**50
        # Facts of before are used for two seconds.
        status, body, headers = await fetch(f"{url}{path}&limit=9")
        status, body, headers = await fetch(url + path)
        assert orjson.loads(body)["final"] is True
        etag = headers["ETag"]
        await view.archive.close()
        status, body, again = await fetch(url + path, **{"If-None-Match": etag})
        assert (status, body, again["ETag"]) == (304, b"", etag)
        status, _, _ = await fetch(url + path, **{"If-None-Match": etag, "Accept": "text/csv"})
        assert status == 200, "from the cache"


async def test_large_answers_are_compressed_for_who_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser sends the header; the client library need not."""
    monkeypatch.setattr(app.web.formats, "COMPRESS_BYTES_MIN", 1_024)
    path = f"{FAMILY}&group=origin&group=carrier&step=1h"
    async with served(MAP, tmp_path, ROWS) as (_, url):
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(url + path, headers={"Accept-Encoding": "gzip"}) as response,
        ):
            assert response.headers["Content-Encoding"] == "gzip"
            assert "Accept-Encoding" in response.headers["Vary"]
            packed = len(await response.read())
        async with (
            aiohttp.ClientSession() as session,
            session.get(url + path, headers={"Accept-Encoding": "identity"}) as response,
        ):
            assert "Content-Encoding" not in response.headers
            assert len(await response.read()) > 3 * packed


async def test_the_plan_is_explained_and_not_run(tmp_path: Path) -> None:
    """The archive may even be away."""
    async with served(MAP, tmp_path, [], ROWS) as (view, url):
        await view.archive.close()
        _, body, _ = await get(f"{url}{FAMILY}&key.carrier=UA&explain=true")
    assert body == {
        "family": "hour",
        "plan": {
            "exactness": "exact",
            "cells": 48.0,
            "segments": [{"layer": "hour", "from": 0, "to": DAY_MS, "windows": 24, "cells": 48.0}],
        },
    }


async def test_data_may_be_wanted_younger_than_it_is(tmp_path: Path) -> None:
    """It is waited for until the deadline."""
    async with served(MAP, tmp_path, ROWS) as (view, url):
        view.live.fresh_ms = time.time_ns() // 1_000_000 - 60_000
        _, body, _ = await get(url + FAMILY)
        assert 60_000 <= body["data_age_ms"] < 90_000
        status, body, _ = await get(f"{url}{FAMILY}&max_staleness_ms=5000&deadline_ms=80")
        assert status == 504
        assert "80 ms (deadline_ms)" in body["detail"]
        view.live.fresh_ms = time.time_ns() // 1_000_000
        status, body, _ = await get(f"{url}{FAMILY}&max_staleness_ms=9000")
        assert (status, body["data_age_ms"] < 9_000) == (200, True)
        status, body, _ = await get(f"{url}{FAMILY}&max_staleness_ms=0")
        want = "max_staleness_ms: got '0'; want a whole number from 1 to 10000"
        assert (status, want in body["detail"]) == (400, True)


async def test_the_top_keys_of_a_layer(tmp_path: Path) -> None:
    """Keys are ranked over all windows of the range; the answer has their number."""
    rows = [stored("JFK", carrier, hour=hour, delays=[delay] * count)
            for carrier, hour, delay, count in (("UA", 0, 1, 5), ("UA", 3, 1, 2), ("AA", 1, 9, 6),
                                                ("B6", 2, -4, 1))]  # fmt: skip
    path = f"/v1/layers/hour/top?from=0&to={DAY_MS}"
    async with served(MAP, tmp_path, rows[:2], rows[2:]) as (_, url):
        _, body, _ = await get(f"{url}{path}&by=count&n=2")
        assert [(cell["key"]["carrier"], cell["measures"]["count"]) for cell in body["cells"]] == [
            ("UA", 7), ("AA", 6),
        ]  # fmt: skip
        assert (body["layer"], body["by"], body["keys"]) == ("hour", "count", 3)
        _, body, _ = await get(f"{url}{path}&by=sum_delay&order=asc&n=1")
        assert body["cells"][0]["key"]["carrier"] == "B6"
        _, body, _ = await get(f"{url}{path}&by=median")
        assert (body["status"], "by: got 'median'" in body["detail"]) == (400, True)
        _, body, _ = await get(f"{url}/v1/families")
        assert body["families"][0]["layers"] == ["hour", "day"]


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/v1/families/days/cells?from=0&to=1", 404, "want one of hour, day; did you mean day?"),
        (f"{FAMILY}&step=7", 400, "step: got '7'; want a whole number and a unit"),
        (f"{FAMILY}&cursor=abc", 400, "cursor: not a cursor of this layer"),
        (f"{FAMILY}&step=90m", 400, "want steps of whole windows of 1h"),
        (f"{FAMILY}&group=day", 400, "group: got 'day'; want one of origin, carrier, -"),
    ],
)
async def test_bad_requests_are_told_what_to_change(
    path: str, status: int, detail: str, tmp_path: Path
) -> None:
    """Refusals are problem documents."""
    async with served(MAP, tmp_path, ROWS) as (_, url):
        found, body, headers = await get(url + path)
    assert (found, body["status"]) == (status, status)
    assert detail in body["detail"]
    assert headers["Content-Type"] == "application/problem+json"


async def test_the_header_of_an_answer_is_bounded(tmp_path: Path) -> None:
    """Clients refuse one of 8 KiB; the positions of a thousand partitions are left out of it."""
    base = dataclasses_replace(HOURS, partitions=1_000)
    source = dataclasses_replace(MAP.sources[0], partitions=1_000)
    themap = dataclasses_replace(MAP, sources=(source,), layers=(base, *MAP.layers[1:]))
    async with served(themap, tmp_path, [stored()]) as (_, url), aiohttp.ClientSession() as session:
        path = f"{url}/v1/families/hour/cells?from=0&to={DAY_MS}"
        async with session.get(path, headers={"Accept": "text/csv"}) as response:
            about = response.headers["Treasure-Map-Answer"]
            assert response.status == 200
        async with session.get(path) as response:
            as_of = orjson.loads(await response.read())["as_of"]
    assert len(about) < 8_000
    assert orjson.loads(about)["as_of"] is None
    assert len(as_of["flights.raw"]) == 1_000
