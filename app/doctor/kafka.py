"""Kafka: brokers, rights, topics, the workers' group, revisions, and clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import ApiVersionRequest

from app.cluster.admin import admin_of
from app.cluster.groups import members_of
from app.cluster.histories import Histories, read_histories, refusals
from app.cluster.rights import how_to_allow, rights_of
from app.cluster.rights_check import missing_rights
from app.cluster.topic_checks import configs_of, partitions_found, topic_problems, topic_warnings
from app.cluster.topic_specs import REPLICATION_MAX, TopicSpec, topics_of
from app.config.connections import kafka_options
from app.config.settings import Settings
from app.host.findings import Finding, of_problem
from app.kafka.brokers import answer_of_any, connect_error, has_idempotent_producer
from app.kafka.scan import Scan
from tables.called import called
from tables.model.layer import Map

CANNOT = "cannot connect to Kafka"
AHEAD_MS_MAX = 2_000
"""The difference of two clocks that is taken for an error of one of them."""

_FETCH = 1
_VERSIONS = ((18, "4.1"), (17, "3.9"), (16, "3.7"), (15, "3.5"), (13, "3.1"), (12, "2.7"))
"""The newest version of Fetch that a release of Kafka has, by the first release with it."""

_APPENDED = 1


async def kafka_findings(settings: Settings, themap: Map | None) -> list[Finding]:
    """Return the findings of brokers and, if there is a map, of all that it needs there.

    Raises:
        TreasureMapError: no broker answers, or one refuses.
    """
    options = kafka_options(settings)
    found = [*await _brokers(settings, options)]
    if themap is None:
        return found
    group = settings.group_of(themap.name)
    rights = await _rights(settings, themap, options, group)
    topics, partitions = await _topics(settings, themap, options)
    found += [*rights, *topics]
    if any(one.level == "fail" for one in rights):
        # Reading further would end with the first right that is missing.
        return found
    members = await members_of(settings.brokers, group, options)
    text = f"workers run: {', '.join(members)}" if members else "no worker runs"
    found.append(Finding("ok", f"group {group}", text))
    histories = await read_histories(settings.brokers, themap, options)
    found += _revisions(histories, themap)
    sources = {source.topic for source in themap.sources}
    found += await _clocks(
        settings, options, {name: n for name, n in partitions.items() if name in sources}
    )
    return found


async def _brokers(settings: Settings, options: dict[str, Any]) -> list[Finding]:
    async with admin_of(settings.brokers, options, CANNOT) as admin:
        cluster = await admin.describe_cluster()
    count = len(cluster["brokers"])
    text = f"{count} broker{'' if count == 1 else 's'} of cluster {cluster.get('cluster_id')}"
    return [
        Finding("ok", "kafka", text),
        await _version(settings, options),
        await _producers(settings, options),
    ]


async def _version(settings: Settings, options: dict[str, Any]) -> Finding:
    client = AIOKafkaClient(bootstrap_servers=settings.brokers, **options)
    try:
        await client.bootstrap()
        answer = await answer_of_any(client, ApiVersionRequest())
    except (KafkaError, OSError, TimeoutError) as error:
        raise await connect_error(error, CANNOT, settings.brokers, options) from error
    finally:
        await client.close()
    fetch = max((one[2] for one in answer.api_versions if one[0] == _FETCH), default=0)
    release = next((name for least, name in _VERSIONS if fetch >= least), None)
    if release is None:
        text = f"got Fetch up to version {fetch}; want 12 or more; upgrade to Kafka 2.7 or newer"
        return Finding("warn", "version of kafka", text)
    text = f"Fetch up to version {fetch}, as Kafka {release} has it"
    return Finding("ok", "version of kafka", text)


async def _producers(settings: Settings, options: dict[str, Any]) -> Finding:
    if await has_idempotent_producer(settings.brokers, options):
        return Finding("ok", "producers", "the brokers know idempotent ones")
    text = "the brokers know no idempotent ones; they are for trying; use a Kafka for more"
    return Finding("warn", "producers", text)


async def _rights(
    settings: Settings, themap: Map, options: dict[str, Any], group: str
) -> list[Finding]:
    wanted = rights_of(themap, "worker", group)
    try:
        lacking = await missing_rights(settings.brokers, options, wanted, may_lack=True)
    except (KafkaError, OSError, TimeoutError) as error:
        raise await connect_error(error, CANNOT, settings.brokers, options) from error
    if not lacking:
        return [Finding("ok", "rights", "this user has those of a worker")]
    advice = how_to_allow("worker", options)
    return [of_problem("fail", f"{line}; {advice}") for line in lacking]


async def _topics(
    settings: Settings, themap: Map, options: dict[str, Any]
) -> tuple[list[Finding], Mapping[str, int]]:
    """Return the findings of the map's topics, and the partitions of those that exist."""
    async with admin_of(settings.brokers, options, CANNOT) as admin:
        specs = topics_of(themap, replication=1)
        found = await partitions_found(admin)
        there = [spec for spec in specs if spec.name in found]
        configs, unknown = await configs_of(admin, [spec.name for spec in there])
        described = await admin.describe_topics()
        brokers = len((await admin.describe_cluster())["brokers"])
    apply = f"missing; make it with `{called('map apply')}`"
    findings = [
        Finding("fail", f"topic {one.name}", apply) for one in specs if one.name not in found
    ]
    problems, unchecked = topic_problems(there, found, configs, unknown)
    findings += [of_problem("fail", problem) for problem in problems]
    findings += [of_problem("warn", line) for line in topic_warnings(themap, there, configs)]
    for name, reason in unchecked.items():
        text = f"nobody knows that this journal keeps everything: {reason}; allow DescribeConfigs"
        findings.append(Finding("warn", f"topic {name}", text))
    findings += _few_copies(there, described, min(brokers, REPLICATION_MAX))
    if not findings:
        findings.append(Finding("ok", "topics", f"all {len(specs)} are as the map wants them"))
    return findings, {spec.name: found[spec.name] for spec in there}


def _few_copies(
    specs: list[TopicSpec], described: list[dict[str, Any]], wanted: int
) -> Iterator[Finding]:
    """Yield the topics whose partitions have fewer copies than there could be."""
    names = {spec.name for spec in specs}
    for topic in described:
        if topic["topic"] not in names:
            continue
        copies = min((len(one["replicas"]) for one in topic["partitions"]), default=wanted)
        if copies < wanted:
            text = (
                f"a partition is lost with {copies} disk{'' if copies == 1 else 's'}; got {copies}"
                f" copies; want {wanted}; add some with kafka-reassign-partitions"
            )
            yield Finding("warn", f"topic {topic['topic']}", text)


def _revisions(histories: Histories, themap: Map) -> list[Finding]:
    """Return whether journals accept the map, and whether all workers have used its revision."""
    subject = "revision"
    if wrong := refusals(histories, themap):
        return [Finding("fail", subject, text) for text in wrong]
    used = sorted({meta.revision for meta in histories.values()})
    if not used:
        return [Finding("ok", subject, "no worker has used this map yet")]
    if used == [themap.revision]:
        return [Finding("ok", subject, f"workers use {themap.revision}, that of the map")]
    text = (
        f"workers have used {' and '.join(map(str, used))}; the map is {themap.revision}; run"
        f" `{called('map apply')}`, then restart every worker with it"
    )
    return [Finding("warn", subject, text)]


async def _clocks(
    settings: Settings, options: dict[str, Any], partitions: Mapping[str, int]
) -> list[Finding]:
    """Return how the latest append times of brokers compare with this host's clock.

    A record that was appended in the future shows a difference; a time in the past shows none.
    """
    times: dict[str, int] = {}
    async with Scan(settings.brokers, options, "cannot read the last records") as scan:
        firsts = await scan.starts(partitions)
        ends = await scan.ends(firsts)
        starts = {tp: max(first, ends[tp] - 1) for tp, first in firsts.items()}
        async for (topic, _), records in scan.read(starts, ends):
            appended = [one.timestamp for one in records if one.timestamp_type == _APPENDED]
            times[topic] = max([times.get(topic, 0), *appended])
    return [_clock(topic, at - time.time_ns() // 1_000_000) for topic, at in times.items() if at]


def _clock(topic: str, ahead_ms: int) -> Finding:
    subject = f"clock at {topic}"
    if ahead_ms > AHEAD_MS_MAX:
        text = (
            f"a broker's append time is {ahead_ms / 1_000:.1f} s ahead of this host; want at most"
            f" {AHEAD_MS_MAX / 1_000:.0f} s; synchronize both clocks (chrony)"
        )
        return Finding("warn", subject, text)
    return Finding("ok", subject, "no append time is ahead of this host")
