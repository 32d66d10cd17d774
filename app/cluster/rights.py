"""Rights: the least that each part of the product must be allowed on Kafka; archives say their own.

Kafka's operations imply Describe, without which a topic is not even shown. Nothing needs a right on
the cluster or on transactional ids.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from app.cluster.topic_specs import TopicKind, topics_of
from app.kafka.operations import Operation
from tables.called import called
from tables.model.errors import ProblemsError
from tables.model.layer import Map

Role = Literal["worker", "apply", "reset", "verify", "deadletters", "producer", "reader"]
Resource = Literal["topic", "group"]

ROLES: dict[Role, str] = {
    "worker": "a worker",
    "apply": "`map apply`",
    "reset": "`reset`",
    "verify": "`verify`",
    "deadletters": "`deadletters`, replays among them",
    "producer": "`generate`; `produce`, `replay` and producers of your own need Write alone",
    "reader": "programs that follow feeds",
}
"""The holders of rights, in words."""

_TOPICS: dict[Role, dict[TopicKind, tuple[Operation, ...]]] = {
    "worker": {
        "source": ("Read",),
        "journal": ("Read", "Write", "Delete"),
        "layer": ("Read", "Write"),
        "feed": ("Write",),
        "side": ("Write",),
    },
    "apply": {
        "source": ("Create", "Describe"),
        "journal": ("Create", "Describe", "DescribeConfigs", "Read"),
        "layer": ("Create", "Describe"),
        "feed": ("Create", "Describe", "DescribeConfigs"),
        "side": ("Create", "Describe"),
    },
    "reset": dict.fromkeys(("journal", "layer", "feed", "side"), ("Delete", "DescribeConfigs")),
    "verify": dict.fromkeys(("source", "layer", "side"), ("Read",)),
    "deadletters": dict.fromkeys(("source", "side"), ("Read", "Write")),
    "producer": {"source": ("Read", "Write")},
    "reader": {"feed": ("Read",)},
}

_CHECKED: dict[Role, tuple[TopicKind, ...]] = {"worker": ("journal", "feed")}
"""Topics whose settings are checked, if that is allowed; a worker that may not warns of it."""

_GROUP: dict[Role, tuple[Operation, ...]] = {"worker": ("Read",), "reset": ("Describe", "Delete")}


@dataclasses.dataclass(frozen=True, slots=True)
class Right:
    """The operations that must be allowed on one topic or group."""

    resource: Resource
    name: str
    operations: tuple[Operation, ...]


def rights_of(themap: Map, role: Role, group: str) -> list[Right]:
    """Return the rights that a role must have on Kafka; ``group`` is that of the map's workers."""
    wanted = _TOPICS[role]
    # Owners write heartbeats into silent partitions.
    written = {one.topic for one in themap.sources if one.idle_heartbeat_ms and role == "worker"}
    found = [
        Right(
            "topic",
            spec.name,
            wanted[spec.kind] + (("Write",) if spec.name in written else ()),
        )
        for spec in topics_of(themap, replication=1)
        if spec.kind in wanted
    ]
    if role in _GROUP:
        found.append(Right("group", group, _GROUP[role]))
    return found


def checks_of(themap: Map, role: Role) -> list[Right]:
    """Return the further rights that a role should have, so that it need not warn."""
    kinds = _CHECKED.get(role, ())
    specs = topics_of(themap, replication=1)
    return [Right("topic", one.name, ("DescribeConfigs",)) for one in specs if one.kind in kinds]


def kafka_commands(rights: Iterable[Right], user: str, brokers: str) -> Iterator[str]:
    """Yield commands of Kafka's own tool that give a user rights, one for equal operations."""
    servers = ",".join(server.strip() for server in brokers.split(","))
    alike: dict[tuple[Operation, ...], list[Right]] = {}
    for right in rights:
        alike.setdefault(right.operations, []).append(right)
    for operations, some in alike.items():
        words = [f"kafka-acls --bootstrap-server {shlex.quote(servers)} --add"]
        words += [f"--allow-principal {quoted(f'User:{user}')}"]
        words += [f"--operation {operation}" for operation in operations]
        names = (f"--{right.resource} {shlex.quote(right.name)}" for right in some)
        words = [" ".join(words), *names]
        yield " \\\n  ".join(words)


def quoted(text: str) -> str:
    """Return a word quoted for a shell, in single quotes."""
    inner = text.replace("'", "'\"'\"'")
    return f"'{inner}'"


def how_to_allow(role: Role, options: Mapping[str, Any]) -> str:
    """Return the advice to a user who lacks rights, as a part of a sentence."""
    user = options.get("sasl_plain_username")
    command = f"map acl FILE --for {role} --user {shlex.quote(user) if user else 'NAME'}"
    return f"run `{called(command)}` and give its output to an administrator"


class RightsError(ProblemsError):
    """A user lacks rights; ``cannot`` is the failed action, as the beginning of a sentence."""

    def __init__(
        self, cannot: str, role: Role, problems: list[str], options: Mapping[str, Any]
    ) -> None:
        super().__init__(
            f"{cannot}: {len(problems)} right(s) are missing; want those of {ROLES[role]};"
            f" {how_to_allow(role, options)}",
            problems,
        )
