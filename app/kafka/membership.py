"""Membership: how this worker joins its group, and which other members it trusts.

A member that is not a worker gets nothing, and every worker logs its name and address. A plan that
no worker made ends this worker, with the same words: it cannot know which partitions it owns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import KafkaError, RebalanceInProgressError

from agents.supervised import supervised
from app.kafka.assignor import (
    NAME,
    STRANGER_CHARACTERS_MAX,
    Assignor,
    GroupMap,
    Member,
    Share,
    shares_of,
)
from app.kafka.group_proof import GroupProof, content_of
from app.kafka.group_protocol import Described, check_members, describe_group, joined_as
from app.kafka.transport_options import TransportError, TransportOptions

DESCRIBE_S = 3.0
"""How long the coordinator may take to describe the members."""

_DESCRIBE_AGAIN_S = 0.2

NAMED_MAX = 5
"""Strangers that a message names."""

JOIN_BYTES_MAX = 1 << 20
"""The largest join. Brokers keep all joins of a group in one record of their topic of
groups, whose size has this limit by default."""

JOIN_TOPICS_MAX = 4_096
"""The topics that a join may name: reading half a million takes seconds."""

MEND = "give Read on the group to workers only"

log = logging.getLogger(__name__)


class Strangers(NamedTuple):
    """Members of a group that are not workers: their total, and the first in words, by number."""

    total: int
    named: Mapping[str, str]


NOBODY = Strangers(0, {})


class Membership:
    """The group protocol of one worker.

    ``describe`` returns this worker's description of itself; ``fail`` ends it with a reason.

    Attributes:
        assignor: makes the joins of the consumer.
        refusal: why the group gives this worker nothing, empty while it does.
        strangers: the members that are not workers, as of the last plan.
    """

    def __init__(
        self,
        options: TransportOptions,
        group: GroupMap,
        describe: Callable[[], Member],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._options = options
        self._name, self._map = options.group, options.map_name
        self._group = group
        self._proof = GroupProof(options.group, options.peer_key)
        self._describe = describe
        self._fail = fail
        self._consumer: AIOKafkaConsumer | None = None
        self.strangers = NOBODY
        self._twins: dict[str, list[str]] = {}
        self._warning: asyncio.Task[None] | None = None
        self.refusal = ""
        self._ending: asyncio.Task[None] | None = None
        self.assignor = Assignor(
            describe, group.update, self._proof, lambda: joined_as(self._consumer)
        )

    def attach(self, consumer: AIOKafkaConsumer) -> None:
        """Check the bytes of members for a consumer that has started and not joined."""
        self._consumer = consumer
        check_members(consumer, self._joined, self._planned)

    def look(self) -> None:
        """Log members that are not workers, or share a URL, as of a new plan; each once.

        A worker that the group refuses waits before it ends: the member that it cannot be beside
        may be dead, and the group forgets that one within a session.
        """
        self._look_at_refusal()
        for url, nodes in self._group.twins.items():
            if self._twins.get(url) != nodes:
                log.warning(
                    "nodes %s of group %s name one URL, %s: a query there is answered by one of"
                    " them, and lacks the live cells of the others; give each worker a web_url of"
                    " its own", ", ".join(nodes), self._name, url,
                )  # fmt: skip
        self._twins = self._group.twins
        self.stop()
        if self._group.refused:
            self._warning = asyncio.create_task(supervised(self._warn(), self._fail))
        else:
            self.strangers = NOBODY

    def _look_at_refusal(self) -> None:
        options = self._options
        refusal = self._group.refused.get(options.boot, "")
        if not refusal and options.peer_key is None:
            # The others have a secret, and cannot know that this one is a worker.
            refusal = self._group.strangers.get((options.node, options.web_url), "")
        if refusal == self.refusal:
            return
        if self._ending is not None:
            self._ending.cancel()
        self.refusal = refusal
        if refusal:
            log.warning("group %s refuses this worker, which waits: %s", self._name, refusal)
            self._ending = asyncio.create_task(supervised(self._end(), self._fail))

    async def _end(self) -> None:
        await asyncio.sleep(self._options.session_timeout_ms / 1_000)
        raise TransportError(
            f"cannot share group {self._name}: {self.refusal}; "
            f"got nodes {', '.join(sorted(self._group.nodes))}"
        )

    def warnings(self) -> list[str]:
        """Return a sentence if the group has members that are not workers.

        Workers are ready all the same; otherwise whoever may join could end their service.
        """
        total, named = self.strangers
        if not total:
            return []
        them = "; ".join(named.values())
        more = f"; and {total - len(named):,} more" if total > len(named) else ""
        words = "members that are not workers of this map and get nothing"
        return [f"group {self._name} has {words}, {total:,} in all: {them}{more}; {MEND}"]

    def stop(self) -> None:
        """Log no more warnings."""
        if self._warning is not None:
            self._warning.cancel()

    def _joined(self, member: str, data: bytes) -> bytes:
        """Return a member's join, that of a stranger without the topics that it names."""
        if not self._why_stranger(member, data):
            return data
        # Nothing is passed on of bytes that cannot be read or are too long.
        return bytes(ConsumerProtocolMemberMetadata(0, [], _user_data(data)[0]).encode())

    def _why_stranger(self, member: str, data: bytes) -> str:
        said, why = _user_data(data)
        return why or self._proof.why_stranger(said, member)

    async def _planned(self, generation: int, data: bytes) -> bytes:
        """Return the leader's plan for this worker; empty if it must not be used."""
        try:
            found = ConsumerProtocolMemberAssignment.decode(data)
            found.partitions()
            why = self._proof.why_no_plan(found.user_data, generation)
            shares = [] if why else shares_of(found.user_data)
        except Exception:  # noqa: BLE001 - of bytes that anybody may have sent
            why = "the plan cannot be read"
        else:
            why = why or self._why_not_ours(found.assignment, shares)
        if not why:
            return data
        strangers = "; ".join((await self._found()).named.values()) or "none that shows"
        self._fail(
            TransportError(
                f"cannot share group {self._name}: its leader is not a worker: {why}; got members"
                f" that are not workers: {strangers}; {MEND}"
            )
        )
        return bytes(
            ConsumerProtocolMemberAssignment(0, [], self._proof.plan([], generation)).encode()
        )

    def _why_not_ours(self, mine: list[tuple[str, list[int]]], shares: list[Share]) -> str:
        """Return why a signed plan must not be used; empty if it may.

        The leader signs the shares of all. The partitions of each are beside them once more.
        """
        if self._options.peer_key is None:
            return ""
        me = self._describe()
        given = {topic: sorted(partitions) for topic, partitions in mine if partitions}
        for share in shares:
            sent = {topic: sorted(of) for topic, of in share.partitions.items() if of}
            if (share.node, share.boot) == (me.node, me.boot) and sent == given:
                return ""
        return "the plan gives this worker other partitions than it names to the others"

    async def _warn(self) -> None:
        found = await self._found()
        for member, words in found.named.items() if found.total else ():
            if member not in self.strangers.named:
                log.warning(
                    "group %s has a member that is not a worker of this map and gets nothing: %s;"
                    " %s",
                    self._name, words, MEND,
                )  # fmt: skip
        self.strangers = found

    async def _found(self) -> Strangers:
        """Return the members that are not workers."""
        assert self._consumer is not None
        try:
            async with asyncio.timeout(DESCRIBE_S):
                described = await self._described()
        except (KafkaError, TimeoutError) as error:
            named = {"": f"nobody says who: {error!r}"}
            return Strangers(len(self._group.strangers), named)
        found = [(one, why) for one in described if (why := self._why_no_worker(one))]
        return Strangers(
            len(found),
            {
                one.member: f"{one.member} from {one.host} {_claims(one.joined)}: {why}"
                for one, why in found[:NAMED_MAX]
            },
        )

    async def _described(self) -> list[Described]:
        while True:
            try:
                return await describe_group(self._consumer, self._name)
            except RebalanceInProgressError:
                await asyncio.sleep(_DESCRIBE_AGAIN_S)

    def _why_no_worker(self, one: Described) -> str:
        """Return why a member is not a worker of this map; empty if it is one."""
        if why := self._why_stranger(one.member, one.joined):
            return why
        said = _said(one.joined)
        if said is None or said.boot not in self._group.refused or said.map in ("", self._map):
            return ""
        name = said.map[:STRANGER_CHARACTERS_MAX]
        return f"it is a worker of map {name}; give each map a group of its own"


def why_too_much(data: bytes) -> str:
    """Return why a member's join is larger than a worker's; empty if it is not."""
    if len(data) > JOIN_BYTES_MAX:
        return f"it joined with {len(data):,} bytes; want at most {JOIN_BYTES_MAX:,}"
    # Version, and how many topics follow.
    topics = int.from_bytes(data[2:6])
    if topics > JOIN_TOPICS_MAX:
        return f"it joined with {topics:,} topics; want at most {JOIN_TOPICS_MAX:,}"
    return ""


def _user_data(data: bytes) -> tuple[bytes, str]:
    """Return a member's description of itself in its join, or no bytes and why not."""
    if why := why_too_much(data):
        return b"", why
    try:
        return ConsumerProtocolMemberMetadata.decode(data).user_data or b"", ""
    except Exception:  # noqa: BLE001 - of bytes that anybody may have sent
        return b"", "its join cannot be read"


def _said(data: bytes) -> Member | None:
    """Return a member's description of itself; None if it cannot be read."""
    try:
        return content_of(_user_data(data)[0], Member)
    except ValueError:
        return None


def _claims(data: bytes) -> str:
    """Return the name and address that a member gives itself."""
    said = _said(data)
    if said is None:
        return "says nothing of itself"
    node, url = said.node[:STRANGER_CHARACTERS_MAX], said.url[:STRANGER_CHARACTERS_MAX]
    return f"says that it is node {node} at {url or 'no address'}"


def protocol_error(group: str) -> str:
    """Return the sentence about members of a group that have no protocol in common."""
    return (
        f"cannot share group {group}: its members do not speak {NAME}, so they are not workers of"
        f" this version; end them, or give this map a group of its own; {MEND}"
    )
