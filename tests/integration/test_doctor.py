"""``doctor`` against brokers: each fault is a line with its level and its remedy."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner

from app.__main__ import group
from app.cluster.topics import apply_topics
from app.doctor.kafka import AHEAD_MS_MAX, _clock
from app.mapfile.load import load_map, parse_map
from tables.model.layer import Map
from tables.state.input_plan import plans_of
from tables.state.journal import encode_entry
from tests.support.kafka_admin import make
from tests.support.servers import free_ports
from tests.support.worker_process import MAP

Told = dict[str, tuple[str, str]]


class Examined:
    """A map of its own, and how it is examined."""

    def __init__(self, brokers: str, folder: Path) -> None:
        self.brokers = brokers
        self.folder = folder
        self.name = f"d{uuid.uuid4().hex[:8]}"
        self.file = folder / "map.toml"
        self.file.write_text(MAP.format(name=self.name))

    @property
    def map(self) -> Map:
        """The map as its file is now."""
        return load_map(self.file)

    async def doctor(self, *more: str) -> tuple[int, list[dict[str, str]]]:
        """Return the exit code and all findings."""
        given = [
            "doctor", str(self.file), "--json", "--brokers", self.brokers,
            "--state-folder", str(self.folder), "--archive-folder", str(self.folder / "archive"),
        ]  # fmt: skip
        done = await asyncio.to_thread(
            CliRunner().invoke, group, [*given, *more], catch_exceptions=False
        )
        return done.exit_code, json.loads(done.stdout)

    async def told(self, *more: str) -> tuple[int, Told]:
        """Return the exit code, and level and text by subject, without the name of the map."""
        code, found = await self.doctor(*more)
        return code, {
            one["subject"].replace(self.name, "m"): (one["level"], one["text"]) for one in found
        }

    async def claim(self, themap: Map, partition: int) -> None:
        """Claim a partition of the source for a map, as a worker does."""
        plan = plans_of(themap)[f"{self.name}.raw"]
        async with AIOKafkaProducer(bootstrap_servers=self.brokers) as producer:
            entry = encode_entry(plan.claim(0))
            await producer.send_and_wait(plan.journal, entry, partition=partition)


@pytest.fixture
def examined(brokers: str, tmp_path: Path) -> Examined:
    """Give a map without topics."""
    return Examined(brokers, tmp_path)


async def test_topics_that_are_missing_fail_until_the_map_is_applied(examined: Examined) -> None:
    """Exit code 1, each topic with the command; then 0, and all are as they should be."""
    code, told = await examined.told()
    assert code == 1
    assert told["topic m.raw"] == ("fail", "missing; make it with `python -m app map apply`")
    await apply_topics(examined.brokers, examined.map)
    code, told = await examined.told()
    assert code == 0
    assert told["topics"] == ("ok", "all 6 are as the map wants them")
    assert told["revision"] == ("ok", "no worker has used this map yet")
    assert told["group treasure-map.m"] == ("ok", "no worker runs")
    assert told["kafka"][0] == told["version of kafka"][0] == "ok"


async def test_topics_that_differ_are_told_with_their_remedy(examined: Examined) -> None:
    """Workers refuse some; with others they run and lose something sooner or later."""
    text = examined.file.read_text()
    key = 'key = ["origin", "carrier"]'
    examined.file.write_text(text.replace(key, f'{key}\nallowed_lateness = "2d"'))
    brokers, name = examined.brokers, examined.name
    await make(brokers, f"{name}.raw", 2, {
        "cleanup.policy": "compact", "retention.ms": "86400000", "retention.bytes": "1000000",
        "message.timestamp.type": "CreateTime",
    })  # fmt: skip
    await make(brokers, f"{name}.layer.day", 7, {"max.message.bytes": "1000000"})
    await make(brokers, f"{name}.journal.{name}.raw", 2, {"retention.ms": "1000"})
    code, found = await examined.doctor()
    assert code == 1
    lines = [f"{one['level']} {one['subject']}: {one['text']}" for one in found]
    raw = f"warn topic {name}.raw: "
    for start, words in (
        (raw, "got cleanup.policy=compact; want delete; set it with `kafka-configs --alter"),
        (raw, "records go before the lateness of their layers, 2d, has passed; got retention.ms="),
        (raw, "--add-config retention.bytes=-1`"),
        (raw, "got message.timestamp.type=CreateTime; want LogAppendTime"),
        (f"warn topic {name}.layer.day: ", "got max.message.bytes=1000000; want 16777216"),
        (f"fail topic {name}.layer.day: ", "wrong number of partitions; got 7; want 2"),
        (f"fail topic {name}.journal.{name}.raw: ", "a journal must keep everything; got retent"),
        (f"fail topic {name}.dead: ", "missing"),
    ):
        assert [line for line in lines if line.startswith(start) and words in line], (start, words)


async def test_a_map_that_journals_would_refuse_fails(examined: Examined) -> None:
    """And one that some workers do not have yet is a warning."""
    await apply_topics(examined.brokers, examined.map)
    first = examined.map
    text = examined.file.read_text().replace("revision = 1", "revision = 2")
    newer = parse_map(text.replace('["count"]', '["count", "sum(delay)"]'), "newer")
    await examined.claim(first, 0)
    assert (await examined.told())[1]["revision"] == ("ok", "workers use 1, that of the map")
    await examined.claim(newer, 1)
    code, told = await examined.told()
    assert code == 1
    assert told["revision"][0] == "fail"
    assert "journals are at map revision 2; got 1" in told["revision"][1]
    examined.file.write_text(text.replace('["count"]', '["count", "sum(delay)"]'))
    code, told = await examined.told()
    assert code == 0
    assert told["revision"][0] == "warn"
    assert "workers have used 1 and 2; the map is 2" in told["revision"][1]


async def test_a_broker_that_is_away_is_one_finding(tmp_path: Path) -> None:
    """The other parts are examined all the same; faults of the map are findings too."""
    (port,) = free_ports(1)
    examined = Examined(f"127.0.0.1:{port}", tmp_path)
    code, told = await examined.told()
    assert code == 1
    assert told["kafka"][0] == "fail"
    assert "want at least one that answers" in told["kafka"][1]
    assert told["packages"][0] == "ok"
    examined.file.write_text(examined.file.read_text().replace('window = "1h"', 'window = "never"'))
    _, found = await examined.doctor()
    assert found[0]["level"] == "fail"
    assert found[0]["text"].startswith("layers.hour.window: ")


async def test_lines_are_for_people_and_no_map_is_needed(examined: Examined) -> None:
    """The level comes first."""
    words = ["doctor", "--brokers", examined.brokers]
    done = await asyncio.to_thread(CliRunner().invoke, group, words, catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines[:-1])
    assert lines[-1].startswith("no map was examined")


def test_an_append_time_ahead_of_this_host_shows_a_wrong_clock() -> None:
    """One in the past shows nothing."""
    assert _clock("raw", AHEAD_MS_MAX + 1).level == "warn"
    assert "synchronize both clocks" in _clock("raw", 60_000).text
    assert _clock("raw", AHEAD_MS_MAX).level == _clock("raw", -(10**12)).level == "ok"


@pytest.mark.kafka
async def test_append_times_are_read_from_the_last_records(kafka: str, tmp_path: Path) -> None:
    """A broker has appended one just now; a topic without records says nothing.

    The embedded broker keeps the times of producers.
    """
    examined = Examined(kafka, tmp_path)
    await apply_topics(kafka, examined.map)
    assert "clock at m.raw" not in (await examined.told())[1]
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        await producer.send_and_wait(f"{examined.name}.raw", b"{}", partition=1)
    _, told = await examined.told()
    assert told["clock at m.raw"] == ("ok", "no append time is ahead of this host")


@pytest.mark.cassandra
async def test_tables_and_keyspace_are_examined(
    brokers: str, tmp_path: Path, cassandra: tuple[str, int]
) -> None:
    """Missing ones fail until the map is applied."""
    examined = Examined(brokers, tmp_path)
    host, port = cassandra
    chosen: list[Any] = [
        "--archive", "cassandra", "--cassandra-hosts", host, "--cassandra-port", str(port),
        "--cassandra-keyspace", examined.name,
    ]  # fmt: skip
    code, told = await examined.told(*chosen)
    assert code == 1
    assert told["replication"][0] == told["tables"][0] == "fail"
    assert told["cassandra"][0] == told["clock of cassandra"][0] == "ok"
    inspection = pytest.importorskip("tables.archive.cassandra.inspection")
    settings = inspection.CassandraSettings(hosts=(host,), port=port, keyspace=examined.name)
    # Tests' nodes have the option of the compose file.
    found = await asyncio.to_thread(inspection.inspect, settings, None)
    assert found.commitlog_sync == "batch"
    words = ["map", "apply", str(examined.file), "--brokers", brokers, *chosen]
    await asyncio.to_thread(CliRunner().invoke, group, words, catch_exceptions=False)
    code, told = await examined.told(*chosen)
    assert code == 0
    assert told["tables"] == ("ok", f"keyspace {examined.name} has those of the map")
    assert told["replication"][0] == "warn"
