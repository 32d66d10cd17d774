"""The topics of a map: which ones follow from it, and making them at real brokers."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from app.cluster.topic_specs import TopicSpec, topics_of
from app.cluster.topics import TopicsRefusedError, apply_topics, check_topics
from app.demo.embedded_broker import EmbeddedBroker
from app.kafka.brokers import BrokersAwayError, patiently
from app.mapfile.load import parse_map
from tables.model.errors import TreasureMapError
from tables.model.layer import Map
from tests.support.kafka_admin import admin_of, make, partitions_at
from tests.support.reset_proxy import ResetProxy
from tests.support.servers import free_ports
from tests.support.waiting import stays

TEXT = """
revision = 1
name = "{name}"
[sources.orders]
topic = "{name}.raw"
partitions = 3
time = "at"
type = "type"
keyed_by = ["store"]
[sources.orders.fields]
store = "string"
[layers.minute]
source = "orders"
events = ["order.*"]
key = ["store"]
window = "1m"
measures = ["count"]
[layers.hour]
from = "minute"
key = ["store"]
window = "1h"
partitions = 2
publish = true
"""


def fresh_map() -> Map:
    """Return a map with topics that no other test has."""
    return parse_map(TEXT.replace("{name}", f"shop_{uuid.uuid4().hex[:8]}"), "test")


def arrow_map() -> Map:
    """Return such a map with a feed of Arrow."""
    text = TEXT.replace("publish = true", 'publish = "arrow"')
    return parse_map(text.replace("{name}", f"shop_{uuid.uuid4().hex[:8]}"), "test")


def by_name(themap: Map, replication: int = 1) -> dict[str, TopicSpec]:
    """Return the map's topics by name, without the map's own name before them."""
    specs = topics_of(themap, replication)
    return {spec.name.removeprefix(f"{themap.name}."): spec for spec in specs}


def test_the_topics_of_a_map_follow_from_it() -> None:
    """Inputs with journals and feeds of as many partitions; side topics as wide as the sources."""
    themap = fresh_map()
    specs = by_name(themap)
    assert {name: (spec.kind, spec.partitions) for name, spec in specs.items()} == {
        "raw": ("source", 3),
        f"journal.{themap.name}.raw": ("journal", 3),
        "layer.hour": ("layer", 2),
        f"journal.{themap.name}.layer.hour": ("journal", 2),
        "feed.hour": ("feed", 2),
        "late": ("side", 3),
        "dead": ("side", 3),
    }


def test_a_journal_keeps_everything() -> None:
    """Neither time nor size nor compaction takes a record out of a journal."""
    for spec in topics_of(fresh_map(), 1):
        kept = {
            name: spec.config.get(name)
            for name in ("cleanup.policy", "retention.ms", "retention.bytes")
        }
        for_ever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        assert (kept == for_ever) is (spec.kind == "journal")


def test_how_long_a_feed_is_kept_is_left_to_others() -> None:
    """One of Arrow is not compacted. Both take records as large as the map's other topics."""
    large = {"max.message.bytes": str(16 << 20)}
    assert by_name(fresh_map())["feed.hour"].config == large
    assert by_name(arrow_map())["feed.hour"].config == large | {"cleanup.policy": "delete"}


async def test_a_feed_of_arrow_that_is_compacted_is_refused(brokers: str) -> None:
    """Brokers take no records without key there, which would stop workers; JSON has keys."""
    themap = arrow_map()
    await make(brokers, f"{themap.name}.feed.hour", 2, {"cleanup.policy": "compact,delete"})
    with pytest.raises(TopicsRefusedError) as caught:
        await apply_topics(brokers, themap)
    (problem,) = caught.value.problems
    assert "cannot be compacted; got cleanup.policy=compact,delete; want cleanup" in problem
    json = parse_map(TEXT.replace("{name}", themap.name), "test")
    assert f"{themap.name}.feed.hour" in (await apply_topics(brokers, json)).existing


def test_a_source_carries_the_time_of_the_broker() -> None:
    """Events too far in the future are measured against a clock that no producer sets."""
    assert by_name(fresh_map())["raw"].config == {"message.timestamp.type": "LogAppendTime"}


@pytest.mark.parametrize(("replication", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "4")])
def test_the_own_topics_need_all_copies_but_one(replication: int, in_sync: str | None) -> None:
    """An acknowledged record stands on at least two brokers if there are three copies or more."""
    specs = topics_of(fresh_map(), replication)
    assert {spec.replication for spec in specs} == {replication}
    own = [spec for spec in specs if spec.kind != "source"]
    assert {spec.config.get("min.insync.replicas") for spec in own} == {in_sync}


async def test_topics_that_are_missing_are_made(brokers: str) -> None:
    """All of them, with their partitions, and with one copy at one broker."""
    themap = fresh_map()
    report = await apply_topics(brokers, themap)
    wanted = {spec.name: spec.partitions for spec in topics_of(themap, 1)}
    assert await partitions_at(brokers, themap.name) == wanted
    assert report.created == list(wanted)
    assert (report.existing, report.unchecked, report.replication) == ([], {}, 1)


async def test_journals_are_made_to_keep_everything(brokers: str) -> None:
    """The broker itself says so, not only the request."""
    themap = fresh_map()
    await apply_topics(brokers, themap)
    journal = themap.journal_topic(themap.input_topic(themap.layers[0]))
    async with admin_of(brokers) as admin:
        (answer,) = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, journal)]
        )
    config = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert config["cleanup.policy"] == "delete"
    assert (config["retention.ms"], config["retention.bytes"]) == ("-1", "-1")


async def test_applying_again_makes_nothing(brokers: str) -> None:
    """The second time all topics exist; a layer more brings its topics only."""
    themap = fresh_map()
    first = await apply_topics(brokers, themap)
    again = await apply_topics(brokers, themap)
    assert (again.created, again.existing) == ([], first.created)
    text = TEXT.replace("{name}", themap.name)
    text += '[layers.day]\nfrom = "hour"\nkey = ["store"]\nwindow = "day"\n'
    wider = parse_map(text, "test")
    more = await apply_topics(brokers, wider)
    assert more.created == [
        f"{themap.name}.layer.day",
        f"{themap.name}.journal.{themap.name}.layer.day",
    ]


async def test_all_topics_that_differ_are_refused_and_nothing_is_made(brokers: str) -> None:
    """Partitions of a source and retention of a journal in one error; the rest stays unmade."""
    themap = fresh_map()
    journal = f"{themap.name}.journal.{themap.name}.raw"
    await make(brokers, f"{themap.name}.raw", 5, {})
    await make(brokers, journal, 3, {"retention.ms": "1000", "cleanup.policy": "compact"})
    with pytest.raises(TopicsRefusedError) as caught:
        await apply_topics(brokers, themap)
    problems = caught.value.problems
    assert len(problems) == 3
    assert problems[0].startswith(
        f"topic {themap.name}.raw: wrong number of partitions; got 5; want 3; set partitions in"
    )
    assert "got cleanup.policy=compact; want cleanup.policy=delete" in problems[1]
    assert "got retention.ms=1000; want retention.ms=-1" in problems[2]
    assert set(await partitions_at(brokers, themap.name)) == {f"{themap.name}.raw", journal}


@pytest.mark.kafka
async def test_a_topic_that_the_broker_does_not_make_is_an_error(kafka: str) -> None:
    """More copies than brokers: each topic is named with the broker's reason."""
    themap = fresh_map()
    with pytest.raises(TopicsRefusedError, match="the broker does not make it") as caught:
        await apply_topics(kafka, themap, replication=2)
    assert len(caught.value.problems) == len(topics_of(themap, 2))
    assert await partitions_at(kafka, themap.name) == {}


async def test_no_broker_is_an_error_that_names_the_address() -> None:
    """Nobody listens: the message has the address and the setting to check."""
    (port,) = free_ports(1)
    with pytest.raises(
        TreasureMapError, match=f"got brokers 127.0.0.1:{port}; .*setting `brokers`"
    ):
        await apply_topics(f"127.0.0.1:{port}", fresh_map())


async def test_a_broker_that_the_cluster_names_is_waited_for() -> None:
    """One broker answers, but those that it names do not yet: a worker asks again."""
    (port,) = free_ports(1)
    themap = fresh_map()
    with EmbeddedBroker(advertised=port) as broker:
        to = int(broker.bootstrap.rpartition(":")[2])
        async with ResetProxy(port, to):
            await apply_topics(broker.bootstrap, themap)
        with pytest.raises(BrokersAwayError, match=r"cannot connect to Kafka: .* not ready"):
            await patiently(lambda: check_topics(broker.bootstrap, themap, group="g"), patience_s=0)
        waiting = asyncio.create_task(
            patiently(lambda: check_topics(broker.bootstrap, themap, group="g"))
        )
        await stays(lambda: not waiting.done(), 1)
        async with ResetProxy(port, to):
            assert await waiting


async def test_topics_that_are_missing_are_not_waited_for(brokers: str) -> None:
    """A fault that no waiting mends is told at once."""
    async with asyncio.timeout(30):
        with pytest.raises(TopicsRefusedError, match=r"missing, or .*; make it with `map apply`"):
            await patiently(lambda: check_topics(brokers, fresh_map(), group="g"), patience_s=3_600)


async def test_a_broker_that_does_not_tell_settings_leaves_journals_unchecked(
    embedded: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The report says which journals could not be checked, and why; so does a worker's log.

    The embedded broker closes the connection if settings are asked for by name, and asking so is
    how it is made not to tell.
    """
    themap = fresh_map()
    await apply_topics(embedded, themap)

    def by_name_only(kind: ConfigResourceType, name: str) -> ConfigResource:
        return ConfigResource(kind, name, {"retention.ms": None})

    monkeypatch.setattr("app.cluster.topic_checks.ConfigResource", by_name_only)
    report = await apply_topics(embedded, themap)
    journals = [spec.name for spec in topics_of(themap, 1) if spec.kind == "journal"]
    assert list(report.unchecked) == journals
    assert all("does not show settings: " in reason for reason in report.unchecked.values())
    assert await check_topics(embedded, themap, group="g")
    for name in journals:
        assert f"journal {name} was not checked, " in caplog.text
