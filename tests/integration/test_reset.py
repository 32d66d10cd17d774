"""Resets: all that a map has made goes, nothing else; and not while workers run."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from click.testing import CliRunner, Result

from app.__main__ import INTERRUPTED, group
from app.cluster.groups import group_exists
from app.cluster.topics import topics_found
from app.demo.embedded_broker import EmbeddedBroker
from app.kafka.aiokafka_close import stop
from tables.archive.embedded import extent as archive_extent
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.identity import History
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveError, TreasureMapError
from tables.model.layer import Map
from tests.support.cassandra_rows import LAYER, rows, settings_of, times
from tests.support.kafka_admin import make

MAP = """
revision = 1
name = "{name}"
[sources.one]
topic = "{name}.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["k"]
[sources.one.fields]
k = "string"
[layers.hour]
source = "one"
events = ["**"]
key = ["k"]
window = "1h"
measures = ["count"]
[layers.day]
from = "hour"
key = ["k"]
window = "1d"
"""


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Run an embedded broker; give its bootstrap address."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


class Begun:
    """A map with topics and an archive of its own."""

    def __init__(self, folder: Path, brokers: str) -> None:
        self.brokers = brokers
        self.name = f"m{uuid.uuid4().hex[:8]}"
        self.file = folder / "map.toml"
        self.file.write_text(MAP.format(name=self.name))
        self.archive = folder / "archive"
        self.state = folder / "state"

    async def run(self, *arguments: str, typed: str | None = None) -> Result:
        """Run a command, which has a loop of its own, and raise its exception."""
        return await asyncio.to_thread(self._run, *arguments, typed=typed)

    def _run(self, *arguments: str, typed: str | None) -> Result:
        options = ["--brokers", self.brokers, "--archive-folder", str(self.archive)]
        options += ["--state-folder", str(self.state), "--group", self.name]
        given = [*arguments[0].split(), str(self.file), *options, *arguments[1:]]
        return CliRunner().invoke(group, given, input=typed, catch_exceptions=False)

    async def begin_archive(self, name: str = "") -> str:
        """Open the archive as a worker of the map, or of another one, does; return its id."""
        archive = EmbeddedArchive(self.archive)
        await archive.open(Map(1, name or self.name, (), (LAYER,), ""))
        await archive.remember("raw", 0, History("before"))
        drawn = archive.id
        await archive.close()
        return drawn


@pytest.fixture
async def begun(tmp_path: Path, brokers: str) -> Begun:
    """Give a map that has topics."""
    begun = Begun(tmp_path, brokers)
    assert (await begun.run("map apply")).exit_code == 0
    return begun


async def test_topics_and_archive_go_and_the_source_stays(begun: Begun) -> None:
    """After it a worker begins with a new archive; done again, it finds nothing to delete."""
    before = await begun.begin_archive()
    (begun.archive / "mine").write_text("of somebody else")
    done = await begun.run("reset", "--yes")
    assert done.exit_code == 0
    own = [f"{begun.name}.{rest}" for rest in ("layer.day", "late", "dead")]
    journals = [f"{begun.name}.journal.{topic}" for topic in (f"{begun.name}.raw", own[0])]
    for name in (*own, *journals):
        assert f"  topic {name}\n" in done.output
    lost, kept = done.output.split("it does not touch:")
    assert f"topic {begun.name}.raw" not in lost
    assert f"  source topic {begun.name}.raw, which other programs write\n" in kept
    assert f"  the archive in folder {begun.archive}\n" in done.output
    assert {path.name for path in begun.archive.iterdir()} - {archive_extent.NAME} == {"mine"}
    again = await begun.run("map apply")
    assert f"topics: {len(own) + len(journals)} created" in again.output
    assert "1 existed" in again.output
    assert await begun.begin_archive() != before


async def test_nothing_goes_unless_somebody_says_so(begun: Begun) -> None:
    """Without the flag it asks, and anything but yes is no."""
    before = await begun.begin_archive()
    done = await begun.run("reset", typed="n\n")
    assert done.exit_code == INTERRUPTED
    assert "Delete all of the first list? [y/N]: n" in done.output
    assert "topics: 0 created" in (await begun.run("map apply")).output
    assert await begun.begin_archive() == before


@contextlib.asynccontextmanager
async def member(begun: Begun) -> AsyncIterator[None]:
    """Have a member in the group of the map, which has committed positions."""
    consumer = AIOKafkaConsumer(
        f"{begun.name}.raw", bootstrap_servers=begun.brokers, group_id=begun.name, client_id="w1",
        enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=100)
        # The embedded broker forgets an empty group that has committed nothing.
        await consumer.commit(dict.fromkeys(consumer.assignment(), 0))
        yield
    finally:
        await stop(consumer)


async def test_it_is_refused_while_workers_run(begun: Begun) -> None:
    """They would write to deleted topics and tables; the refusal names them."""
    async with member(begun):
        with pytest.raises(TreasureMapError, match=rf"of group {begun.name} run; got w1.*; want n"):
            await begun.run("reset", "--yes")
    assert "topics: 0 created" in (await begun.run("map apply")).output


async def test_group_and_local_stores_go(begun: Begun) -> None:
    """Stores of other maps stay; done again, there is neither group nor store to list."""
    async with member(begun):
        pass
    for name in (begun.name, "other"):
        (begun.state / name / "raw" / "0").mkdir(parents=True)
    assert await group_exists(begun.brokers, begun.name)
    done = await begun.run("reset", "--yes")
    assert f"  consumer group {begun.name}\n" in done.output
    assert f"  the local stores in {begun.state / begun.name}\n" in done.output
    assert not await group_exists(begun.brokers, begun.name)
    assert [path.name for path in begun.state.iterdir()] == ["other"]
    again = (await begun.run("reset", "--yes")).output
    assert "consumer group" not in again
    assert "the archive in" not in done.output
    assert "stores in" not in again


async def test_topics_of_earlier_revisions_go_too(begun: Begun) -> None:
    """Their journals would refuse the new beginning; a topic that only looks alike stays."""
    text = begun.file.read_text()
    wider = text + '[layers.month]\nfrom = "day"\nkey = ["k"]\nwindow = "month"\npublish = true\n'
    begun.file.write_text(wider)
    await begun.run("map apply")
    await make(begun.brokers, f"{begun.name}.layer.alike", 1, {})
    begun.file.write_text(text)
    done = (await begun.run("reset", "--yes")).output
    lost, _ = done.split("it does not touch:")
    month = f"{begun.name}.layer.month"
    assert f"  topic {month}\n" in lost
    assert f"  topic {begun.name}.journal.{month}\n" in lost
    assert f"topic {begun.name}.feed.month: no layer of this map is published there" in done
    left = {f"{begun.name}.{rest}" for rest in ("raw", "layer.alike", "feed.month")}
    assert {n for n in await topics_found(begun.brokers) if n.startswith(begun.name)} == left


async def test_a_topic_with_a_name_of_the_map_s_may_be_another_program_s(begun: Begun) -> None:
    """Names like `orders.journal.entries` and `orders.dead` are in use elsewhere too."""
    entries = f"{begun.name}.journal.entries"
    await make(begun.brokers, entries, 1, {})
    lost, kept = (await begun.run("reset", "--yes")).output.split("it does not touch:")
    assert entries not in lost
    assert f"  topic {entries}: it has not the settings of `map apply`" in kept
    dead = f"{begun.name}.dead"
    await make(begun.brokers, dead, 2, {"retention.ms": "-1"})
    with pytest.raises(TreasureMapError, match=rf"be another program's; got {dead}; want max\.m"):
        await begun.run("reset", "--yes")
    assert {entries, dead} <= (await topics_found(begun.brokers)).keys()


async def test_another_map_s_archive_is_not_deleted(begun: Begun) -> None:
    """The folder may be given by mistake; the topics stay too."""
    before = await begun.begin_archive("other")
    with pytest.raises(ArchiveError, match="it has the rows of another map; got map other"):
        await begun.run("reset", "--yes")
    assert await begun.begin_archive("other") == before
    assert f"{begun.name}.dead" in await topics_found(begun.brokers)


async def test_stores_behind_a_link_are_left_to_people(begun: Begun) -> None:
    """Its target may have other things; nothing else is deleted either."""
    (begun.state / "elsewhere").mkdir(parents=True)
    (begun.state / begun.name).symlink_to(begun.state / "elsewhere")
    with pytest.raises(TreasureMapError, match=r"got the symbolic link .*; want a folder"):
        await begun.run("reset", "--yes")
    assert "topics: 0 created" in (await begun.run("map apply")).output


@pytest.mark.cassandra
async def test_a_map_s_tables_go_and_those_of_others_stay(cassandra: Any) -> None:
    """Its id goes too; names that begin alike are other maps."""
    from tables.archive.cassandra.archive import CassandraArchive  # noqa: PLC0415 (an extra)
    from tables.archive.cassandra.register import wipe_keyspace  # noqa: PLC0415 (an extra)

    settings = settings_of(cassandra, "wiped")
    ids: dict[str, list[str]] = {"a": [], "a_b": []}
    for after in (False, True):
        for name, found in ids.items():
            archive = CassandraArchive(settings)
            await archive.open(Map(1, name, (), (LAYER,), ""))
            found.append(archive.id)
            got = await archive.read(LAYER, CellRange(0, 1))
            assert got.height == (1 if after and name == "a_b" else 0)
            if not after:
                await archive.write(LAYER, frame := rows(["x"], [0]), times(frame))
                await archive.remember("raw", 0, History("before"))
            elif name == "a":
                assert await archive.history("raw", 0) is None
            await archive.close()
        if not after:
            wipe_keyspace(settings, "a")
    assert ids["a"][0] != ids["a"][1]
    assert ids["a_b"][0] == ids["a_b"][1]
