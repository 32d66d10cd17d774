"""Real servers that go away and come back while a worker runs: its log lines, and how many."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest

from app.cluster.topics import apply_topics
from app.mapfile.load import load_map
from tests.support import servers
from tests.support.common import flight
from tests.support.waiting import stays, until
from tests.support.worker_process import AWAY, HOUR_MS, SECONDS_MAX, Process, unready

WARNINGS_OF_AN_OUTAGE_MAX = 30
"""First and last lines of each kind that a library logs, and our own two."""


def warnings_of(worker: Process) -> int:
    """Return how many lines of the worker's log warn."""
    return sum(" WARNING " in line or " ERROR " in line for line in worker.log().splitlines())


def folded(worker: Process, count: int) -> Callable[[], Awaitable[bool]]:
    """Return a condition: so many events are folded."""

    async def there() -> bool:
        _, ledger = await worker.get("/v1/ledger")
        return bool(ledger["layers"]["hour"]["folded"] == count)

    return there


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "hanging"])
async def test_a_worker_whose_kafka_is_away_is_not_ready_until_it_is_back(
    processes: Callable[..., Process], kafka_server: servers.KafkaServer, how: str
) -> None:
    """It lives, answers from its cells, logs once that it is away and once that it is back."""
    worker = processes(kafka_server.bootstrap)
    await apply_topics(kafka_server.bootstrap, load_map(worker.map_file))
    worker.start()
    await worker.ready()
    raw = f"{worker.map_name}.raw"
    await worker.send(raw, (0, flight(HOUR_MS)))
    await until(folded(worker, 1), SECONDS_MAX)
    before = warnings_of(worker)
    stop, start = (
        (kafka_server.stop, kafka_server.start)
        if how == "stopped"
        else (kafka_server.pause, kafka_server.resume)
    )
    await asyncio.to_thread(stop)
    await until(unready(worker, "Kafka does not answer since "), SECONDS_MAX)
    assert (await worker.get("/livez"))[0] == 200
    status, answer = await worker.get(f"/v1/layers/hour/cells?from={HOUR_MS}&to={2 * HOUR_MS}")
    assert (status, len(answer["cells"])) == (200, 1)
    await stays(unready(worker, "Kafka does not answer since "), 5)
    await asyncio.to_thread(start)
    await worker.ready()
    await worker.send(raw, (0, flight(HOUR_MS + 1)))
    await until(folded(worker, 2), SECONDS_MAX)
    log = worker.log()
    assert log.count(AWAY) == log.count("Kafka answers again after ") == 1
    assert warnings_of(worker) - before < WARNINGS_OF_AN_OUTAGE_MAX, log
    assert await worker.stop() == 0


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_worker_whose_cassandra_is_away_is_not_ready_until_it_is_back(
    processes: Callable[..., Process], spare_cassandra: servers.CassandraServer
) -> None:
    """It says so although nothing is written or asked, and goes on by itself."""
    cassandra = spare_cassandra
    worker = processes(
        archive="cassandra", cassandra_hosts=cassandra.host,
        cassandra_port=str(cassandra.port), cassandra_replication="1",
        cassandra_keyspace=f"k{uuid.uuid4().hex[:12]}",
    )  # fmt: skip
    await apply_topics(worker.settings["brokers"], load_map(worker.map_file))
    worker.start()
    await worker.ready()
    before = warnings_of(worker)
    await asyncio.to_thread(cassandra.kill)
    await until(unready(worker, "the archive does not answer since "), SECONDS_MAX)
    raw = f"{worker.map_name}.raw"
    await worker.send(raw, *((p, flight(at * HOUR_MS)) for p in (0, 1) for at in (0, 5, 9)))
    await until(folded(worker, 6), SECONDS_MAX)
    await stays(unready(worker, "the archive does not answer since "), 5)
    await asyncio.to_thread(cassandra.start)
    await worker.ready()

    async def archived() -> bool:
        _, layers = await worker.get("/v1/layers")
        return bool(layers["layers"][0]["archived_cells"] >= 4)

    await until(archived, SECONDS_MAX)
    log = worker.log()
    away, back = "the archive does not answer; ", "the archive answers again after "
    assert log.count(away) == log.count(back) == 1
    assert warnings_of(worker) - before < WARNINGS_OF_AN_OUTAGE_MAX, log
    assert await worker.stop() == 0
