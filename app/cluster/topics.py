"""The Kafka topics that follow from a map: their names and settings, and making them.

A topic that exists is never changed: if results depend on the difference (partitions; for a
journal, that nothing is ever deleted by time, size or compaction) it is refused.
Every function raises BrokersAwayError if a broker does not answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAuthorizationFailedError, for_code

from app.cluster.admin import Options, admin_of
from app.cluster.rights import Role, how_to_allow, rights_of
from app.cluster.rights_check import missing_rights
from app.cluster.topic_checks import configs_of, is_strict, partitions_found, topic_problems
from app.cluster.topic_specs import REPLICATION_MAX, TopicSpec, topics_of
from tables.model.errors import ProblemsError, TreasureMapError
from tables.model.layer import Map

log = logging.getLogger(__name__)

VISIBLE_DEADLINE_S = 30.0
_VISIBLE_POLL_S = 0.05
_ALREADY_EXISTS = 36
_UNKNOWN_TOPIC = 3


@dataclasses.dataclass(frozen=True, slots=True)
class TopicReport:
    """The outcome for each of a map's topics, by name.

    ``unchecked`` holds journals whose settings the broker would not show, with its answer: nobody
    but their maker can know that they are right.
    """

    created: list[str]
    existing: list[str]
    unchecked: dict[str, str]
    replication: int


class TopicsRefusedError(ProblemsError):
    """Topics that differ from the map's, or that the broker would not make.

    ``verb`` is the failed action; ``advice`` mends all problems, unless each has its own remedy.
    """

    def __init__(
        self, map_name: str, problems: list[str], verb: str = "apply", advice: str = ""
    ) -> None:
        also = f"; {advice}" if advice else ""
        super().__init__(
            f"cannot {verb} topics of map {map_name}: {len(problems)} problem(s){also}", problems
        )


async def apply_topics(
    brokers: str, themap: Map, replication: int | None = None, options: Options | None = None
) -> TopicReport:
    """Make the topics of a map that are missing; check those that exist, and change none.

    Nothing is made if something is refused beforehand. To apply a map again does nothing. Without
    ``replication`` a partition has as many copies as there are brokers, at most 3.

    Raises:
        TopicsRefusedError: topics differ from the map, or the broker refused to make some.
    """
    async with admin_of(brokers, options) as admin:
        if replication is None:
            cluster = await admin.describe_cluster()
            replication = min(REPLICATION_MAX, len(cluster["brokers"]))
        specs = topics_of(themap, replication)
        found = await partitions_found(admin)
        unchecked = await _check(admin, themap, specs, found)
        missing = [spec for spec in specs if spec.name not in found]
        if missing:
            await _create(admin, themap, missing, how_to_allow("apply", options or {}))
            # Workers must find them.
            found = await _wait(
                admin,
                lambda found: [spec.name for spec in specs if spec.name not in found],
                "cannot find topics after making them: {}; got none within {:.0f} s; want all;"
                " check the brokers' health and apply again",
            )
            # A topic may have been made by somebody else meanwhile, or otherwise than asked.
            unchecked = await _check(admin, themap, specs, found)
    return TopicReport(
        created=[spec.name for spec in missing],
        existing=[spec.name for spec in specs if spec not in missing],
        unchecked=unchecked,
        replication=replication,
    )


async def check_topics(
    brokers: str, themap: Map, options: Options | None = None, *, group: str
) -> str:
    """Check that a worker can use the topics of a map and its group; make and change none.

    They must be there, as the map needs them, and with the rights that a worker needs. A journal
    whose settings the broker does not show is warned of.

    Returns:
        The id of the Kafka cluster, empty if the brokers name none.

    Raises:
        TopicsRefusedError: topics are missing or differ from the map, or a right is missing.
    """
    options = options or {}
    async with admin_of(brokers, options, "cannot connect to Kafka") as admin:
        specs = topics_of(themap, replication=1)
        found = await partitions_found(admin)
        role: Role = "worker"
        wanted = rights_of(themap, role, group)
        lacking = await missing_rights(brokers, options, wanted, may_lack=True)
        reported = {line.partition(":")[0] for line in lacking}
        problems = [
            f"topic {spec.name}: missing, or this user may not Describe it; make it with"
            " `map apply`, or allow the rights of `map acl`"
            for spec in specs
            if spec.name not in found and f"topic {spec.name}" not in reported
        ]
        if problems or lacking:
            advice = how_to_allow(role, options) if lacking else ""
            raise TopicsRefusedError(themap.name, problems + lacking, "use", advice)
        for name, reason in (await _check(admin, themap, specs, found, "use")).items():
            log.warning("journal %s was not checked, %s: it must keep everything", name, reason)
        return (await admin.describe_cluster()).get("cluster_id") or ""


async def delete_topics(brokers: str, names: list[str], options: Options | None = None) -> None:
    """Delete topics; return when no broker shows them any more.

    Raises:
        TreasureMapError: a broker does not answer, or it keeps some.
    """
    async with admin_of(brokers, options) as admin:
        answer = await admin.delete_topics(names)
        refused = [
            f"{name} ({for_code(code).__name__})"
            for name, code in (one[:2] for one in answer.topic_error_codes)
            if code not in (0, _UNKNOWN_TOPIC)
        ]
        if refused:
            raise TreasureMapError(
                f"cannot delete topics: the broker refuses {', '.join(refused)}; see to its cause, "
                "delete.topic.enable and who may delete among them, then do it again"
            )
        await _wait(
            admin,
            lambda found: [name for name in names if name in found],
            "cannot delete topics: {} are still there after {:.0f} s; check the brokers' health and"
            " do it again",
        )


async def topics_found(brokers: str, options: Options | None = None) -> dict[str, int]:
    """Return the number of partitions of every topic there is."""
    async with admin_of(brokers, options) as admin:
        return await partitions_found(admin)


async def _check(
    admin: AIOKafkaAdminClient,
    themap: Map,
    specs: list[TopicSpec],
    found: Mapping[str, int],
    verb: str = "apply",
) -> dict[str, str]:
    """Raise if topics that exist differ; return the journals that could not be checked."""
    there = [spec for spec in specs if spec.name in found]
    configs, unknown = await configs_of(admin, [one.name for one in there if is_strict(one)])
    problems, unchecked = topic_problems(there, found, configs, unknown)
    if problems:
        raise TopicsRefusedError(themap.name, problems, verb)
    return unchecked


async def _create(
    admin: AIOKafkaAdminClient, themap: Map, missing: list[TopicSpec], how_to_allow: str
) -> None:
    answer = await admin.create_topics(
        [
            NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(spec.config))
            for spec in missing
        ]
    )
    problems, advice = [], ""
    for name, code, *rest in sorted(answer.topic_errors):
        if for_code(code) is TopicAuthorizationFailedError:
            advice = f"{how_to_allow}, or let another user apply the map"
            problems.append(f"topic {name}: this user may not Create it; allow it")
        elif code not in (0, _ALREADY_EXISTS):
            cause = (rest and rest[0]) or for_code(code).__name__
            problems.append(f"topic {name}: the broker does not make it: {cause}; see to its cause")
    if problems:
        raise TopicsRefusedError(themap.name, problems, advice=advice)


async def _wait(
    admin: AIOKafkaAdminClient, left: Callable[[Mapping[str, int]], list[str]], failed: str
) -> dict[str, int]:
    """Return the topics once there is nothing left to wait for among them."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + VISIBLE_DEADLINE_S
    while names := left(found := await partitions_found(admin)):
        if loop.time() > deadline:
            raise TreasureMapError(failed.format(", ".join(sorted(names)), VISIBLE_DEADLINE_S))
        await asyncio.sleep(_VISIBLE_POLL_S)
    return found
