"""Partitions added to a source's topic: in words at once, and the advice in them works."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewPartitions
from click.testing import CliRunner

from agents.partition.claims import OTHER_PARTITIONS
from app.__main__ import group
from app.kafka.transport_options import TransportError, TransportOptions
from tables.model.errors import MapError
from tests.support.common import HOUR_MS, flight
from tests.support.kafka_admin import admin_of
from tests.support.waiting import until
from tests.support.worker_process import Process, apply, last_words

AT_MS = 1_699_920_000_000
WORDS = f"the topic got more partitions than the map declares; want 2; {OTHER_PARTITIONS}"


def test_only_partitions_that_the_map_has_may_be_read() -> None:
    """Topics of which nothing is known may have any."""
    options = TransportOptions(brokers="", group="g", node="n", partitions={"raw": 2})
    options.check([("raw", 0), ("raw", 1), ("other", 9)])
    with pytest.raises(TransportError, match=r"^cannot read raw\[2\]: the topic got more"):
        options.check([("raw", 0), ("raw", 2)])


def run(process: Process, *arguments: str) -> str:
    """Run a command with the settings of a process, and raise its exception."""
    settings = process.settings
    options = ["--brokers", settings["brokers"], "--archive-folder", settings["archive_folder"]]
    given = [*arguments[0].split(), str(process.map_file), *options, *arguments[1:]]
    done = CliRunner().invoke(group, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


async def grow(process: Process, topic: str) -> None:
    """Give a topic a third partition."""
    async with admin_of(process.settings["brokers"]) as admin:
        await admin.create_partitions({topic: NewPartitions(3)})


async def comes_to(process: Process, want: dict[str, list[tuple[int, str, int]]]) -> None:
    """Wait for the rows of layers: window start, carrier and count."""
    got: dict[str, Any] = {}

    async def right() -> bool:
        for layer in want:
            path = f"/v1/layers/{layer}/cells?from={AT_MS}&to={AT_MS + 24 * HOUR_MS}"
            cells = (await process.get(path))[1]["cells"]
            got[layer] = sorted(
                (cell["window_start"], cell["key"]["carrier"], cell["measures"]["count"])
                for cell in cells
            )
        return got == want

    try:
        await until(right, 60)
    except AssertionError:
        raise AssertionError(f"{got}\n{process.log()[-3000:]}") from None


@pytest.mark.slow
@pytest.mark.kafka
async def test_the_advice_works_either_way(kafka: str, tmp_path: Path) -> None:
    """A running worker, one that starts and `map apply` refuse alike; all events are counted."""
    worker = Process(kafka, tmp_path / "w", early_emit_ms="1000", disk_free_bytes_min="1")
    topic = f"{worker.map_name}.raw"
    try:
        await apply(worker)
        await worker.send(topic, (0, flight(AT_MS, "LGA", "UA", 1)))
        worker.start()
        await worker.ready()
        await grow(worker, topic)
        # A keyed producer sends some keys elsewhere from now on.
        await worker.send(topic, (2, flight(AT_MS, "LGA", "UA", 1)))
        await worker.send(topic, (1, flight(AT_MS, "JFK", "DL", 1)))
        assert await worker.ended() == 1
        assert last_words(worker) == f"cannot read {topic}[2]: {WORDS}"
        worker.start()
        assert await worker.ended() == 1
        assert f"{topic}: wrong number of partitions; got 3; want 2; {OTHER_PARTITIONS}" in (
            last_words(worker)
        )
        await _advice(worker, topic)
    finally:
        worker.close()


async def _advice(worker: Process, topic: str) -> None:
    text = worker.map_file.read_text().replace("partitions = 2", "partitions = 3", 1)
    worker.map_file.write_text(text.replace("revision = 1", "revision = 2"))
    with pytest.raises(MapError) as refused:
        await asyncio.to_thread(run, worker, "map apply")
    assert str(refused.value).endswith(
        f"1 problem(s)\n  - the map declares 3 partitions of {topic}; its journal was begun with 2;"
        f" {OTHER_PARTITIONS}"
    )
    rows = {
        "hour": [(AT_MS, "DL", 1), (AT_MS, "UA", 2)],
        "day": [(AT_MS, "DL", 1), (AT_MS, "UA", 2)],
    }
    await asyncio.to_thread(run, worker, "reset", "--yes")
    await _used(worker, rows)
    # The other way: the rows of the old name stay.
    old = worker.map_name
    worker.map_file.write_text(
        worker.map_file.read_text().replace(f'name = "{old}"', f'name = "{old}b"')
    )
    worker.settings["archive_folder"] += "-b"
    worker.settings["group"] += "b"
    await _used(worker, rows)


async def _used(worker: Process, rows: dict[str, list[tuple[int, str, int]]]) -> None:
    await asyncio.to_thread(run, worker, "map apply")
    worker.start()
    await worker.ready()
    await comes_to(worker, rows)
    assert await worker.stop() == 0
