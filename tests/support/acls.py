"""Rights on a Kafka broker, given and taken as an administrator does with its own tool."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable
from typing import Any, cast

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from app.cluster.rights import Resource, Right
from app.kafka.operations import Operation

_RESOURCES: dict[Resource, int] = {"topic": 2, "group": 3}
_OPERATIONS: dict[str, int] = {
    "Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8,
    "DescribeConfigs": 10,
}  # fmt: skip
_LITERAL, _ALLOW = 3, 3


def rules_of(commands: str) -> list[tuple[str, Right]]:
    """Return user and right of each rule that commands of ``kafka-acls`` would add."""
    found = []
    for command in commands.replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if not words or words[0] != "kafka-acls":
            continue
        pairs = list(itertools.pairwise(words))
        (principal,) = [value for name, value in pairs if name == "--allow-principal"]
        operations = tuple(
            cast("Operation", value) for name, value in pairs if name == "--operation"
        )
        user = principal.removeprefix("User:")
        found += [
            (user, Right(resource, value, operations))
            for resource in _RESOURCES
            for name, value in pairs
            if name == f"--{resource}"
        ]
    return found


async def allow(bootstrap: str, user: str, rights: Iterable[Right]) -> None:
    """Give a user rights, by a listener at which everybody is the administrator."""
    await _ask(bootstrap, CreateAclsRequest, user, rights)


async def forbid(bootstrap: str, user: str, rights: Iterable[Right]) -> None:
    """Take rights from a user."""
    await _ask(bootstrap, DeleteAclsRequest, user, rights)


async def _ask(bootstrap: str, request: Any, user: str, rights: Iterable[Right]) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
        for right in rights:
            for operation in right.operations:
                rule = (
                    _RESOURCES[right.resource], right.name, _LITERAL, f"User:{user}", "*",
                    _OPERATIONS[operation], _ALLOW,
                )  # fmt: skip
                answer = await client.send(client.get_random_node(), request(*rule))
                (outcome,) = answer.to_object().popitem()[1]
                assert outcome["error_code"] == 0, outcome
    finally:
        await client.close()
