"""Verify reads Cassandra page by page, and says so if it goes away meanwhile."""

from __future__ import annotations

import asyncio
import socket
import uuid
from typing import Any

import polars as pl
import pytest

from app.config.settings import load_settings
from app.verify import archive as verify_archive
from app.verify.archive import open_archive
from app.verify.errors import VerifyError
from tables.state.cell import archive_schema
from tests.support.common import HOUR_MS, small_map
from tests.support.reset_proxy import ResetProxy

archive_cassandra = pytest.importorskip("tables.archive.cassandra.archive")
pytestmark = pytest.mark.cassandra
ROWS, FRAME_ROWS = 20_000, 3_000


async def written(cassandra: tuple[str, int]) -> tuple[Any, dict[str, str]]:
    """Return a map whose first layer has rows in Cassandra, and the settings to read them."""
    host, port = cassandra
    themap = small_map(name=f"m{uuid.uuid4().hex[:12]}")
    archive = archive_cassandra.CassandraArchive(
        archive_cassandra.CassandraSettings(
            hosts=(host,), port=port, keyspace="verify_reads", replication=1, request_timeout_s=60
        )
    )
    await archive.open(themap)
    layer = themap.layers[0]
    cells = [(f"k{n}", "UA", n % 50 * HOUR_MS, 1, 1, 1, 1, 1, 1, 0, 1, 0) for n in range(ROWS)]
    schema = archive_schema(layer)
    frame = pl.DataFrame([dict(zip(schema, cell, strict=True)) for cell in cells], schema=schema)
    await archive.write(layer, frame, pl.Series("write_time", [1] * ROWS, dtype=pl.Int64))
    await archive.close()
    return themap, {
        "archive": "cassandra", "cassandra_hosts": host, "cassandra_keyspace": "verify_reads",
    }  # fmt: skip


async def test_rows_are_read_page_by_page_and_an_end_amid_them_is_told(
    cassandra: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows come in frames of a bounded size; behind a proxy that dies there is an error."""
    monkeypatch.setattr(verify_archive, "_ROWS", FRAME_ROWS)
    themap, given = await written(cassandra)
    layer = themap.layers[0]
    settings = load_settings(given | {"cassandra_port": str(cassandra[1])}, {})

    def read() -> list[int]:
        with open_archive(settings) as archive:
            return [frame.height for frame in archive.frames(themap, layer)]

    heights = await asyncio.to_thread(read)
    assert sum(heights) == ROWS
    assert max(heights) == FRAME_ROWS

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = load_settings(given | {"cassandra_port": str(port)}, {})
    loop = asyncio.get_running_loop()
    async with ResetProxy(port, cassandra[1]) as proxy:

        async def die() -> None:
            await proxy.__aexit__()

        def read_until_it_dies() -> int:
            seen = 0
            with open_archive(settings) as archive:
                for frame in archive.frames(themap, layer):
                    if not seen:
                        asyncio.run_coroutine_threadsafe(die(), loop).result()
                    seen += frame.height
            return seen

        with pytest.raises(VerifyError, match=r"cannot read .*; check Cassandra"):
            await asyncio.to_thread(read_until_it_dies)
        assert proxy.resets > 0
    with pytest.raises(VerifyError, match="cannot reach Cassandra"):
        await asyncio.to_thread(open_archive, settings)
