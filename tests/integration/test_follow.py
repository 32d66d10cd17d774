"""Following a feed: from its beginning or from now, once each, with errors that name the cause."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import polars as pl
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from tables.model.layer import Layer
from tables.query.feed_records import feed_records
from tables.state.cell import cell_schema
from tests import ROOT
from tests.support.common import HOUR_MS, dataclasses_replace, small_map
from tests.support.servers import free_ports
from tests.support.waiting import until
from treasure_map import FeedCell, FollowFailedError, Unreadable, follow

HOUR = small_map().layer("hour")


class Feed:
    """A feed of two partitions at a broker, written by hand."""

    def __init__(self, brokers: str, producer: AIOKafkaProducer, map_name: str) -> None:
        self.brokers = brokers
        self.map_name = map_name
        self.topic = f"{map_name}.feed.hour"
        self._producer = producer

    async def publish(self, form: str, *cells: tuple[str, int, int]) -> None:
        """Write cells of origin, hour and version, one after the other."""
        layer: Layer = dataclasses_replace(HOUR, publish=form, partitions=2)
        for origin, hour, version in cells:
            row = (origin, "UA", hour * HOUR_MS, 1, 1, version, 1, 1, 1, 0, version)
            frame = pl.DataFrame([row], schema=cell_schema(layer), orient="row")
            for partition, key, value in feed_records(layer, 1, 0, frame):
                await self._producer.send_and_wait(self.topic, value, key, partition=partition)

    async def write(self, value: bytes | None, key: bytes | None = b"k") -> int:
        """Write any record into partition 1; return its offset."""
        sent = await self._producer.send_and_wait(self.topic, value, key, partition=1)
        return int(sent.offset)


@pytest.fixture
async def make(brokers: str) -> AsyncIterator[Callable[[], Feed]]:
    """Return a feed at the embedded broker, then at real Kafka."""
    map_name = f"m{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    await admin.create_topics([NewTopic(f"{map_name}.feed.hour", 2, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=brokers)
    await producer.start()
    yield lambda: Feed(brokers, producer, map_name)
    await producer.stop()


@pytest.fixture
def feed(make: Callable[[], Feed]) -> Feed:
    """Return one feed."""
    return make()


def told(cell: FeedCell) -> tuple[object, int, int]:
    """Return origin, hour and version of a cell, which is also its sum."""
    assert cell.measures["sum_delay"] == cell.version
    return cell.key["origin"], cell.window_start // HOUR_MS, cell.version


async def read(feed: Feed, **options: Any) -> list[tuple[object, int, int]]:
    """Return the cells of a feed to its end, sorted."""
    async with follow(
        "hour", feed.brokers, map_name=feed.map_name, to_end=True, **options
    ) as cells:
        return sorted([told(cell) async for cell in cells])


async def test_each_version_is_given_once_and_none_that_is_smaller(feed: Feed) -> None:
    """Whatever is repeated or comes late, in JSON and Arrow mixed, as after a new revision."""
    await feed.publish("json", ("JFK", 0, 5), ("LGA", 0, 6), ("JFK", 0, 5), ("JFK", 0, 9))
    await feed.publish("arrow", ("JFK", 0, 9), ("JFK", 0, 7), ("LGA", 1, 8), ("LGA", 0, 7))
    async with follow(feed.topic, feed.brokers, to_end=True) as cells:
        found = [told(cell) async for cell in cells]
        assert (cells.repeated, cells.unreadable, cells.versions.forgotten) == (3, 0, 0)
    assert sorted(found) == [
        ("JFK", 0, 5), ("JFK", 0, 9), ("LGA", 0, 6), ("LGA", 0, 7), ("LGA", 1, 8),
    ]  # fmt: skip
    # Of one key the order is kept.
    assert found.index(("JFK", 0, 5)) < found.index(("JFK", 0, 9))


async def test_what_follows_from_now_on_leaves_out_what_was(feed: Feed) -> None:
    """Now is when the with statement begins; cells come as they are published."""
    for version in (1, 2):
        await feed.publish("json", ("JFK", 0, version))
        await feed.publish("json", ("LGA", 0, version))
    async with follow(feed.topic, feed.brokers, from_beginning=False) as cells:
        await feed.publish("json", ("JFK", 1, 2), ("LGA", 1, 3))
        # The embedded broker reports the begin of a partition's last batch as its end.
        found = {told(await anext(cells)) for _ in range(2)}
        while not found >= {("JFK", 1, 2), ("LGA", 1, 3)}:
            found.add(told(await anext(cells)))
    assert found.isdisjoint({("JFK", 0, 1), ("LGA", 0, 1)})


async def test_a_program_without_an_event_loop_follows_too(feed: Feed) -> None:
    """A plain for statement does it, here in a process of its own that imports no worker."""
    await feed.publish("json", ("JFK", 0, 5), ("JFK", 0, 5), ("JFK", 2, 7))
    follows = f"follow('hour', {feed.brokers!r}, map_name={feed.map_name!r}, to_end=True)"
    program = (
        "import sys\n"
        "from treasure_map import follow\n"
        "assert 'aiokafka' not in sys.modules\n"
        f"with {follows} as cells:\n"
        "    for cell in cells:\n"
        "        print(cell.key['origin'], cell.window_start, cell.version)\n"
        "worker = [n for n in sys.modules if n.partition('.')[0] in ('app', 'agents', 'tables')]\n"
        "assert not worker, worker\n"
    )
    command = [sys.executable, "-c", program]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "JFK 0 5\nJFK 7200000 7\n"), done.stderr


async def test_memory_is_bounded(feed: Feed) -> None:
    """Past the bound the oldest windows are forgotten, and given as they come."""
    await feed.publish("json", *(("JFK", hour, 5) for hour in range(6)))
    await feed.publish("json", ("JFK", 0, 4), ("JFK", 5, 4))
    assert (await read(feed, cells_max=3))[:2] == [("JFK", 0, 4), ("JFK", 0, 5)]
    assert len(await read(feed, cells_max=3)) == 7
    assert len(await read(feed)) == 6


async def test_a_record_that_holds_no_cells_is_told_and_passed_over(
    feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning or a callback tells of it; later records are read. Tombstones say nothing."""
    offset = await feed.write(b"no cell")
    await feed.write(None)
    await feed.write(b"\xff\xff\xff\xff....")
    await feed.publish("json", ("JFK", 0, 1))

    def warnings() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "treasure_map.follow"]

    with caplog.at_level(logging.WARNING, "treasure_map.follow"):
        assert await read(feed) == [("JFK", 0, 1)]
    first, second = warnings()
    assert first.startswith(f"cannot read {feed.topic}[1] at offset {offset}: JSON is malformed")
    assert "got 7 bytes that begin with b'no cell'; want a cell as JSON" in first
    assert "no Arrow IPC stream" in second
    caplog.clear()
    seen: list[Unreadable] = []
    assert await read(feed, on_unreadable=seen.append) == [("JFK", 0, 1)]
    assert [(one.partition, one.offset) for one in seen] == [(1, offset), (1, offset + 2)]
    assert not warnings()


async def test_a_feed_that_is_not_there_is_an_error_that_names_those_there_are(feed: Feed) -> None:
    """The error has the remedy too; nothing is made by asking."""
    for _ in range(2):
        with pytest.raises(
            FollowFailedError, match=r"no such topic; got feeds .*feed\.hour"
        ) as caught:
            async with follow("day", feed.brokers, map_name=feed.map_name):
                pass
        assert "map apply" in str(caught.value)
    (port,) = free_ports(1)
    with pytest.raises(FollowFailedError, match=f"got no answer from 127.0.0.1:{port}; want"):
        async with follow("day", f"127.0.0.1:{port}"):
            pass


@pytest.mark.kafka
async def test_records_deleted_before_they_were_read_are_an_error(kafka: str) -> None:
    """Nothing is left out in silence."""
    map_name = f"m{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await admin.start()
    await producer.start()
    topic = f"{map_name}.feed.hour"
    await admin.create_topics([NewTopic(topic, 2, 1)])
    feed = Feed(kafka, producer, map_name)
    async with follow(topic, kafka) as cells:
        await feed.publish("json", ("JFK", 0, 1))
        assert told(await anext(cells)) == ("JFK", 0, 1)
        reader = cells._reader
        assert reader is not None
        reader._consumer.pause(*reader._partitions)
        await feed.publish("json", *(("JFK", hour, 1) for hour in range(5)))
        for partition in range(2):
            place = TopicPartition(topic, partition)
            ends = await reader._consumer.end_offsets([place])
            await admin.delete_records({place: RecordsToDelete(before_offset=ends[place])})

        async def raised() -> bool:
            try:
                await reader.read()
            except FollowFailedError as error:
                assert "were deleted before they were read" in str(error)  # noqa: PT017
                return True
            return False

        reader._consumer.resume(*reader._partitions)
        await until(raised)
    await producer.stop()
    await admin.close()
