"""A member of a group that is not a worker: its user may read the group, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Self

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.group import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    SyncGroupRequest,
)

from app.kafka.assignor import NAME, Member, Share
from app.kafka.group_proof import GroupProof
from tests.support.waiting import beats

Partitions = Mapping[str, list[int]]
SESSION_MS = 6_000
UNSIGNED = GroupProof("")


def joined(said: Member, topics: list[str]) -> bytes:
    """Return the metadata that a member joins with."""
    data = UNSIGNED.join(said, "")
    return bytes(ConsumerProtocolMemberMetadata(0, topics, data).encode())


def assignment(mine: Partitions, shares: list[Share]) -> bytes:
    """Return the assignment that a leader gives a member."""
    data = UNSIGNED.plan(shares, 0)
    return bytes(ConsumerProtocolMemberAssignment(0, list(mine.items()), data).encode())


def plan_nothing(members: list[str]) -> dict[str, bytes]:
    """Give no member anything that it could read."""
    return dict.fromkeys(members, b"")


class Rogue:
    """Joins a group again and again, and leads it if it may.

    Args:
        brokers: the brokers of the group.
        options: security options of aiokafka's clients.
        group: the group.
        metadata: returns the metadata it joins with, given its number in the group, empty at first.
        lead: returns the assignment of each member, by its number; called if this one leads.

    Attributes:
        given: the partitions that it was given in each generation.
        leads: whether it leads.
    """

    def __init__(
        self,
        brokers: str,
        options: Mapping[str, Any],
        group: str,
        metadata: Callable[[str], bytes],
        lead: Callable[[list[str]], Mapping[str, bytes]] = plan_nothing,
    ) -> None:
        self._client = AIOKafkaClient(bootstrap_servers=brokers, **options)
        self._group, self._metadata, self._lead = group, metadata, lead
        self._task: asyncio.Task[None] | None = None
        self._member = ""
        self._node = 0
        self.given: list[set[tuple[str, int]]] = []
        self.leads = False

    async def __aenter__(self) -> Self:
        """Connect, and join."""
        await self._client.bootstrap()
        self._task = asyncio.create_task(self._stay())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._send(LeaveGroupRequest(self._group, self._member))
        await self._client.close()
        assert self._task.cancelled(), self._task.exception()

    async def _send(self, request: Any) -> Any:
        # The first group of a broker has no coordinator until its topic is there.
        async with asyncio.timeout(30):
            async for _ in beats(0.1):
                if self._node:
                    break
                with contextlib.suppress(GroupCoordinatorNotAvailableError):
                    self._node = await self._client.coordinator_lookup(
                        CoordinationType.GROUP, self._group
                    )
        return await self._client.send(self._node, request)

    async def _stay(self) -> None:
        async for _ in beats(0.1):
            protocols = [(NAME, self._metadata(self._member))]
            join = await self._send(
                JoinGroupRequest(
                    self._group, SESSION_MS, 10_000, self._member, None, "consumer", protocols
                )
            )
            self._member = join.member_id if join.error_code in (0, 79) else ""
            if join.error_code:
                continue
            self.leads = join.leader_id == self._member
            members = [row[0] for row in join.members]
            parts = list(self._lead(members).items()) if self.leads else []
            sync = await self._send(
                SyncGroupRequest(self._group, join.generation_id, self._member, None, parts)
            )
            if sync.error_code == 0:
                self.given.append(_partitions(sync.member_assignment))
                await self._beat(join.generation_id)

    async def _beat(self, generation: int) -> None:
        """Be heard of until the group moves on."""
        async for _ in beats(0.3):
            beat = await self._send(HeartbeatRequest(self._group, generation, self._member))
            if beat.error_code:
                return


def _partitions(data: bytes) -> set[tuple[str, int]]:
    if not data:
        return set()
    found = ConsumerProtocolMemberAssignment.decode(data).partitions()
    return {(tp.topic, tp.partition) for tp in found}
