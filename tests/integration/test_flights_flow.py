"""The main job on real input: the flights of 2013, recomputed from the file row by row."""

import asyncio
import random
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from app.demo import check
from app.demo.embedded_broker import EmbeddedBroker
from app.demo.flights.events import flight_events, read_flights
from app.demo.flights.events import records as event_records
from app.demo.flights.truth import LAYERS, MONTH_LAYERS
from app.load.replay import keyed, replay, settled_ms
from tables.archive.embedded import archive as archive_embedded
from tables.archive.protocol import Archive
from tables.model.window import DAY_MS
from tests.support.cluster import FLIGHTS_MAP, YEAR_END_MS, Cluster

MONTHS = 2
"""Months that a test replays; their rows are of all layers, of the month too."""

SEALED_MS = YEAR_END_MS + 2 * 31 * DAY_MS


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """Return the file's rows."""
    return read_flights()


@pytest.fixture
def embedded_broker() -> Iterator[str]:
    """Run an embedded broker of its own."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


async def check_answers(cluster: Cluster, flights: pl.DataFrame) -> None:
    """Every month layer, over HTTP from the first worker, equals the recomputation."""
    for name in MONTH_LAYERS:
        layer = cluster.map.layer(name)
        url = cluster.workers[0].url
        rows, partial = await asyncio.to_thread(check.answered, url, layer)
        # Everything is sealed and archived, so that even a partial answer lacks no cell. Whether a
        # second worker holds partitions may change at any time; alone, a worker has them all.
        assert not partial or len(cluster.workers) > 1
        want = check.expected(layer, flights)
        assert check.differences("over HTTP", layer, want, rows) == []


async def check_archive(cluster: Cluster, archive: Archive, flights: pl.DataFrame) -> None:
    """Every layer of the flights, read from the archive, equals the recomputation."""
    await archive.open(cluster.map)
    for name in LAYERS:
        layer = cluster.map.layer(name)
        found = await check.archived_rows(archive, layer)
        want = check.expected(layer, flights)
        assert check.differences("archived", layer, want, found) == []
    await archive.close()


class Part:
    """The flights of the first months, and how often their events are folded."""

    def __init__(self, flights: pl.DataFrame, months: int) -> None:
        self.flights = flights.filter(pl.col("month") <= months)
        self.events = flight_events(self.flights)
        # Arrivals are folded twice: by origin and destination, and by destination alone.
        arrived = self.events.filter(pl.col("type") == "flight.arrived").height
        self.folded = self.events.height + arrived

    async def replay(self, brokers: str, cluster: Cluster, seconds: float) -> None:
        """Write the events, and heartbeats that seal the whole year."""
        source = cluster.map.source("flights")
        records = keyed(event_records(self.events), source)
        await replay(brokers, source.topic, records, SEALED_MS, seconds=seconds)


async def check_ledgers(cluster: Cluster, part: Part) -> None:
    """Every event was folded exactly once and every sum adds up."""
    ledgers = await cluster.ledgers()
    assert all(ledger["balanced"] for ledger in ledgers)
    assert await cluster.folded() == part.folded


@pytest.mark.slow
async def test_five_kills_during_the_replay_leave_the_same_rows(
    embedded_broker: str, tmp_path: Path, flights: pl.DataFrame
) -> None:
    """Five SIGKILLs; twice the state folder goes too.

    The first come after some and before all events; on a busy machine the last find all folded.
    """
    part = Part(flights, MONTHS)
    rng = random.Random(2013)
    moments = sorted(rng.uniform(0.02, 0.85) for _ in range(5))
    with Cluster(embedded_broker, tmp_path, archive="embedded") as cluster:
        worker = cluster.add()
        replaying = asyncio.create_task(part.replay(embedded_broker, cluster, 8))
        between = 0
        for number, moment in enumerate(moments):
            await cluster.folded_more_than(int(moment * part.folded))
            between += 0 < await cluster.folded() < part.folded
            worker.signal(signal.SIGKILL)
            if number % 2:
                worker.wipe_state()
            worker.start()
        assert between > 0
        await replaying
        await cluster.sealed()
        await check_ledgers(cluster, part)
        await check_answers(cluster, part.flights)
        assert worker.stop() == 0
        archive = archive_embedded.EmbeddedArchive(tmp_path / "archive")
        await check_archive(cluster, archive, part.flights)


@pytest.mark.slow
async def test_flights_spread_over_eight_partitions_give_the_rows_of_keyed_ones(
    embedded_broker: str, tmp_path: Path, flights: pl.DataFrame
) -> None:
    """Two months over a source that is keyed by nothing: every layer is merged. One kill."""
    map_file = tmp_path / "map_unkeyed.toml"
    map_file.write_text(unkeyed(FLIGHTS_MAP.read_text()))
    part = Part(flights, 2)
    with Cluster(embedded_broker, tmp_path, map_file=map_file, archive="embedded") as cluster:
        assert all(layer.merged for layer in cluster.map.base_layers("flights"))
        worker = cluster.add()
        await part.replay(embedded_broker, cluster, 0)
        await cluster.folded_more_than(part.folded // 10)
        worker.signal(signal.SIGKILL)
        worker.start()
        await cluster.sealed()
        await check_ledgers(cluster, part)
        (told,) = await cluster.ledgers()
        spread = [row["with_events"] for row in told["records"]["flights.raw"].values()]
        assert sum(spread) == part.events.height
        assert max(spread) - min(spread) <= 1
        await check_answers(cluster, part.flights)
        assert worker.stop() == 0
        archive = archive_embedded.EmbeddedArchive(tmp_path / "archive")
        await check_archive(cluster, archive, part.flights)


def unkeyed(text: str) -> str:
    """Return the flights' map over a source that is keyed by nothing, in eight partitions."""
    for old, new in (('keyed_by = ["origin"]\n', ""), ("partitions = 4", "partitions = 8")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@pytest.mark.slow
async def test_shuffled_months_give_the_rows_of_ordered_ones(
    embedded_broker: str, tmp_path: Path, flights: pl.DataFrame
) -> None:
    """Events come in any order; a lateness of a year takes all of them in.

    From the first chunk on nearly every window is closed, so that nearly every event is late and
    amends: rows in the archive are replaced, coarser ones corrected.
    """
    map_file = tmp_path / "map_patient.toml"
    text = FLIGHTS_MAP.read_text()
    map_file.write_text(text.replace('allowed_lateness = "1h"', 'allowed_lateness = "400d"'))
    part = Part(flights, MONTHS)
    records = event_records(part.events).sample(fraction=1.0, shuffle=True, seed=2013)
    # To the replay they are of one day, which it sends in their order.
    records = records.with_columns(at=pl.lit(YEAR_END_MS))
    with Cluster(embedded_broker, tmp_path, map_file=map_file, archive="embedded") as cluster:
        worker = cluster.add()
        end_ms = settled_ms(cluster.map, "flights", YEAR_END_MS)
        await replay(embedded_broker, "flights.raw", records, end_ms, seconds=0)
        await cluster.sealed()
        await check_ledgers(cluster, part)
        (told,) = await cluster.ledgers()
        assert all(counts["too_late"] == 0 for counts in told["layers"].values())
        await check_answers(cluster, part.flights)
        assert worker.stop() == 0
        archive = archive_embedded.EmbeddedArchive(tmp_path / "archive")
        await check_archive(cluster, archive, part.flights)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
async def test_two_workers_over_kafka_and_cassandra_share_the_work(
    kafka: str, cassandra: tuple[str, int], tmp_path: Path, flights: pl.DataFrame
) -> None:
    """Real brokers, real database, partitions on both workers: the same rows."""
    from tables.archive.cassandra.archive import CassandraArchive, CassandraSettings  # noqa: PLC0415

    part = Part(flights, MONTHS)
    host, port = cassandra
    keyspace = f"flights_{uuid.uuid4().hex[:8]}"
    with Cluster(
        kafka,
        tmp_path,
        archive="cassandra",
        cassandra_hosts=host,
        cassandra_port=str(port),
        cassandra_keyspace=keyspace,
        group=keyspace,
    ) as cluster:
        cluster.add()
        cluster.add()
        await part.replay(kafka, cluster, 8)
        await cluster.sealed()
        served = [
            {(topic, p) for topic, ps in ledger["records"].items() for p in ps}
            for ledger in await cluster.ledgers()
        ]
        assert len(served) == 2
        assert all(served)
        assert not served[0] & served[1]
        await check_ledgers(cluster, part)
        await check_answers(cluster, part.flights)
        settings = CassandraSettings(hosts=(host,), port=port, keyspace=keyspace, replication=1)
        await check_archive(cluster, CassandraArchive(settings), part.flights)
