"""Topics that exist, against the map: differences that workers refuse, and others to mend.

Functions that ask a broker raise KafkaError if it does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from agents.partition.claims import OTHER_PARTITIONS, START_OVER
from app.cluster.topic_specs import KEPT_FOR_EVER, TopicSpec
from tables.model.layer import Map
from tables.model.window import Window

Configs = Mapping[str, Mapping[str, str]]
"""The settings of topics by name, with Kafka's names; only those that a broker shows."""


async def partitions_found(admin: AIOKafkaAdminClient) -> dict[str, int]:
    """Return the number of partitions of every topic there is.

    All topics are asked for: brokers may create a topic that is asked for by name.
    """
    topics = await admin.describe_topics()
    return {topic["topic"]: len(topic["partitions"]) for topic in topics if topic["partitions"]}


async def configs_of(
    admin: AIOKafkaAdminClient, topics: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the settings of each topic, and why the other topics' settings are unknown.

    All settings are asked for: the embedded broker closes the connection when some are named.
    """
    if not topics:
        return {}, {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]
    try:
        answers = await admin.describe_configs(resources)
    except (KafkaError, TimeoutError) as error:
        reason = f"the broker does not show settings: {error or type(error).__name__}"
        return {}, dict.fromkeys(topics, reason)
    configs: dict[str, dict[str, str]] = {}
    unchecked: dict[str, str] = {}
    for code, message, _, name, entries in (one for answer in answers for one in answer.resources):
        if code:
            unchecked[name] = f"the broker does not show settings: {message or for_code(code)}"
        else:
            # Name and value come first in every version of the answer.
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs, unchecked


def is_strict(spec: TopicSpec) -> bool:
    """Return whether a topic with wrong settings loses state or stops workers."""
    return spec.kind == "journal" or _is_keyless(spec)


def _is_keyless(spec: TopicSpec) -> bool:
    return spec.kind == "feed" and "cleanup.policy" in spec.config


def topic_problems(
    specs: Sequence[TopicSpec],
    found: Mapping[str, int],
    configs: Configs,
    unknown: Mapping[str, str],
) -> tuple[list[str], dict[str, str]]:
    """Return why workers refuse topics that exist, and the journals that could not be checked.

    Args:
        specs: the topics of the map that exist.
        found: the partitions of each.
        configs: the settings of each strict one that a broker shows.
        unknown: why it does not show those of the others.
    """
    problems = [
        f"topic {spec.name}: wrong number of partitions; got {found[spec.name]}; want "
        f"{spec.partitions}; "
        + (OTHER_PARTITIONS if spec.kind == "source" else f"correct the map, or {START_OVER}")
        for spec in specs
        if found[spec.name] != spec.partitions
    ]
    unchecked = {}
    for spec in filter(is_strict, specs):
        name, config = spec.name, configs.get(spec.name)
        if _is_keyless(spec):
            policy = (config or {}).get("cleanup.policy", "delete")
            if policy != "delete":
                problems.append(
                    f"topic {name}: a feed of Arrow has no record keys and cannot be compacted; "
                    f"got cleanup.policy={policy}; want cleanup.policy=delete; set it with "
                    "kafka-configs, or publish the layer as JSON"
                )
        elif config is None:
            unchecked[name] = unknown[name]
        else:
            for option, want in KEPT_FOR_EVER.items():
                if option not in config:
                    unchecked[name] = f"the broker does not show {option}"
                elif config[option] != want:
                    problems.append(
                        f"topic {name}: a journal must keep everything; got "
                        f"{option}={config[option]}; want {option}={want}; set it with "
                        "kafka-configs if nothing was deleted yet, or give the map another name"
                    )
    return problems, unchecked


def topic_warnings(themap: Map, specs: Sequence[TopicSpec], configs: Configs) -> Iterator[str]:
    """Yield settings with which workers run, and that lose something sooner or later."""
    for spec in specs:
        config = configs.get(spec.name, {})
        if spec.kind in ("source", "layer"):
            yield from _kept(spec, config, _late_ms(themap, spec.name))
        for option, want in spec.config.items():
            got = config.get(option)
            if option == "max.message.bytes" and got is not None and int(got) < int(want):
                yield _setting(spec, option, got, want, "a larger record would stop workers")
            elif option == "message.timestamp.type" and got is not None and got != want:
                why = "clocks of producers decide which events are too far in the future"
                yield _setting(spec, option, got, want, why)


def _late_ms(themap: Map, topic: str) -> int:
    """Return how late an event of an input topic may be and is still counted."""
    fed = [
        layer
        for layer in themap.layers
        if themap.input_topic(layer) == topic
        or (layer.source is not None and themap.source(layer.source).topic == topic)
    ]
    lateness = [layer.max_out_of_orderness_ms + layer.allowed_lateness_ms for layer in fed]
    return max(lateness, default=0)


def _kept(spec: TopicSpec, config: Mapping[str, str], late_ms: int) -> Iterator[str]:
    policy = config.get("cleanup.policy", "delete")
    if policy != "delete":
        why = "compaction removes records before workers read them, and `verify` needs all"
        yield _setting(spec, "cleanup.policy", policy, "delete", why)
    kept_ms = int(config.get("retention.ms", "-1"))
    if 0 <= kept_ms < late_ms:
        why = f"records go before the lateness of their layers, {Window(late_ms)}, has passed"
        yield _setting(spec, "retention.ms", str(kept_ms), str(late_ms), why)
    size = int(config.get("retention.bytes", "-1"))
    if size >= 0:
        why = "records go by size, however long workers have been away"
        yield _setting(spec, "retention.bytes", str(size), "-1", why)


def _setting(spec: TopicSpec, option: str, got: str, want: str, why: str) -> str:
    return (
        f"topic {spec.name}: {why}; got {option}={got}; want {want}; set it with"
        f" `kafka-configs --alter --topic {spec.name} --add-config {option}={want}`"
    )
