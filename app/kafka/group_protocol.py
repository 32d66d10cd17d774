"""The bytes that aiokafka's group coordinator passes on, checked before aiokafka decodes them.

aiokafka trusts the bytes of other members of a group. A member whose bytes it cannot read ends the
leader; a leader whose plan it cannot read ends every member. Neither error names the sender.
``tests/contract/test_aiokafka_private.py`` fails when an upgrade changes a name used here.
"""

# ruff: noqa: SLF001 - this file is for private names

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import RebalanceInProgressError
from aiokafka.protocol.admin import DescribeGroupsRequest

_STABLE = "Stable"
"""The state of a group whose members have their assignments."""


class Described(NamedTuple):
    """A member of a group, as its coordinator describes it: number, address and join."""

    member: str
    host: str
    joined: bytes


def check_members(
    consumer: AIOKafkaConsumer,
    joined: Callable[[str, bytes], bytes],
    planned: Callable[[int, bytes], Awaitable[bytes]],
) -> None:
    """Have a started consumer check the bytes of other members before it uses them.

    Both functions return the bytes to use: ``joined`` is called as the leader with number and bytes
    of each member, ``planned`` with the generation and the leader's plan.
    """
    coordinator = consumer._coordinator
    perform, complete = coordinator._perform_assignment, coordinator._on_join_complete

    async def performed(response: Any) -> Any:
        response.members = [(*row[:-1], joined(row[0], row[-1])) for row in response.members]
        return await perform(response)

    async def completed(generation: int, member: str, protocol: str, data: bytes) -> None:
        await complete(generation, member, protocol, await planned(generation, data))

    coordinator._perform_assignment = performed
    coordinator._on_join_complete = completed


def joined_as(consumer: AIOKafkaConsumer) -> tuple[str, int]:
    """Return the number of this member, empty before its first join, and the generation."""
    return str(consumer._coordinator.member_id), int(consumer._coordinator.generation)


async def describe_group(consumer: AIOKafkaConsumer, group: str) -> list[Described]:
    """Return the members of the group; whoever may read it may ask for them.

    Raises:
        RebalanceInProgressError: it is being planned anew; until then the coordinator does not
            have the joins of members.
        KafkaError: the coordinator does not answer.
    """
    answer = await consumer._coordinator._send_req(DescribeGroupsRequest([group]))
    if any(found[2] != _STABLE for found in answer.groups):
        raise RebalanceInProgressError
    return [
        Described(row[0], row[2].lstrip("/"), row[-2])
        for found in answer.groups
        for row in found[5]
    ]
