"""Reads of a real Cassandra at their limits: too many rows, readers that leave, empty years."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tables.archive.protocol import CellRange
from tables.model.errors import QueryError
from tests.support.cassandra_rows import BUCKET_MS, HOUR_MS, LAYER, map_of, rows, settings_of, times
from tests.support.common import flight
from tests.support.waiting import until
from tests.support.worker_process import SECONDS_MAX, Process, apply

archive_cassandra = pytest.importorskip("tables.archive.cassandra.archive")
archive_pages = pytest.importorskip("tables.archive.cassandra.pages")

PAGE_ROWS = 5_000
"""The driver's pages."""

Y2001_MS = 978_307_200_000


@pytest.mark.cassandra
async def test_a_read_holds_what_it_may_and_a_page_of_each_request(
    cassandra: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is too large is refused as soon as it has come, for every kind of read."""
    came: list[int] = []
    on_page = archive_pages.Pages._on_page

    def counted(pages: Any, page: list[Any] | None, *error: BaseException) -> None:
        came.append(len(page or ()))
        on_page(pages, page, *error)

    monkeypatch.setattr(archive_pages.Pages, "_on_page", counted)
    layer = msgspec.structs.replace(LAYER, slots=2)
    archive = archive_cassandra.CassandraArchive(settings_of(cassandra, "pages"))
    await archive.open(map_of(layer, name=f"m{uuid.uuid4().hex[:12]}"))
    frame = rows([f"{number:05}" for number in range(30_000)], [0, BUCKET_MS])
    await archive.write(layer, frame, times(frame))
    whole = CellRange(0, 2 * BUCKET_MS)
    # How large partitions are is known after the first whole read.
    for requests in (1, 4):
        came.clear()
        before = archive.requests_total
        with pytest.raises(QueryError, match="1000"):
            await archive.read(layer, dataclasses.replace(whole, rows_max=1_000))
        assert archive.requests_total - before == requests
        assert sum(came) <= 1_000 + requests * PAGE_ROWS
        assert (await archive.read(layer, whole)).height == frame.height
    await archive.close()


@pytest.mark.cassandra
async def test_reads_that_are_given_up_leave_room_for_others(cassandra: tuple[str, int]) -> None:
    """However many, whenever: a statement keeps its permit until Cassandra has answered it."""
    settings = dataclasses.replace(settings_of(cassandra, "pages"), in_flight_max=4)
    archive = archive_cassandra.CassandraArchive(settings)
    await archive.open(map_of(LAYER, name=f"m{uuid.uuid4().hex[:12]}"))
    frame = rows([f"{number:05}" for number in range(20_000)], [0])
    await archive.write(LAYER, frame, times(frame))
    everything = CellRange(0, BUCKET_MS)
    assert (await archive.read(LAYER, everything)).height == frame.height
    for number in range(50):
        reading = asyncio.create_task(archive.read(LAYER, everything))
        await asyncio.wait([reading], timeout=number % 10 / 500)
        reading.cancel()
        await asyncio.wait([reading], timeout=SECONDS_MAX)
        assert reading.done()
    assert (await archive.read(LAYER, everything)).height == frame.height
    await until(lambda: archive._reading._value == 4, SECONDS_MAX)
    await archive.close()


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_range_may_begin_years_before_there_was_anything(
    processes: Callable[..., Process], cassandra: tuple[str, int]
) -> None:
    """A year of minutes has more partitions than one read may ask for; none of them is asked."""
    host, port = cassandra
    worker = processes(
        archive="cassandra", cassandra_hosts=host, cassandra_port=str(port),
        cassandra_replication="1", cassandra_keyspace="years",
    )  # fmt: skip
    text = worker.map_file.read_text()
    worker.map_file.write_text(text.replace('window = "1h"', 'window = "1m"'))
    await apply(worker)
    worker.start()
    await worker.ready()
    events = [flight(Y2001_MS + at) for at in (0, 60_000, 49 * HOUR_MS)]
    await worker.send(f"{worker.map_name}.raw", *((p, one) for p in (0, 1) for one in events))

    async def evicted() -> bool:
        _, found = await worker.get("/v1/layers")
        rows = {row["name"]: row for row in found["layers"]}
        return bool(rows["hour"]["archived_cells"] == 4 and rows["hour"]["open_cells"] == 2)

    await until(evicted, SECONDS_MAX)
    span = f"from=2000-01-01&to={Y2001_MS + 48 * HOUR_MS}"
    status, page = await worker.get(f"/v1/layers/hour/cells?{span}")
    assert (status, [cell["measures"]["count"] for cell in page["cells"]]) == (200, [2, 2])
    assert page["rows_read"] == {"live": 0, "archived": 4}
    status, family = await worker.get(f"/v1/families/hour/cells?{span}&group=-")
    assert (status, [cell["measures"]["count"] for cell in family["cells"]]) == (200, [4])
    assert family["cost"]["archive_partitions"] < 1_000
    assert await worker.stop() == 0
