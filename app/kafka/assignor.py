"""The assignor: which member of the group owns which partition, and how all members know it.

Every member describes itself in its join: node name, boot, web URL, partitions owned and
held on disk. The group's leader plans the whole map with :func:`plan` and sends it to each member,
so that any worker can ask the owner of a partition. Planning is pure: same members, same map.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

from app.kafka.group_proof import GroupProof, content_of
from tables.model.topic_partition import TopicPartition

log = logging.getLogger(__name__)

# Part of the group protocol: members with another name cannot join. A change of the formats below
# that older members cannot read needs a new name.
NAME = "treasure-map-2"
_PROTOCOL_VERSION = 0

STRANGER_CHARACTERS_MAX = 200
"""Most characters of the node and of the URL of a stranger; a worker's node has no more."""


class Member(msgspec.Struct, frozen=True):
    """A member's description of itself in its join.

    ``boot`` is greater for a later start of the same node. ``generation`` is the one in which
    ``owned`` was assigned: of two members that claim a partition, the later generation is right.
    ``home`` stays the same when a worker is started again: two boots of one home do not live
    at once. ``alone`` says why it cannot share the group, if it cannot; ``settled`` that the group
    has accepted it before.
    """

    node: str
    boot: int
    url: str
    generation: int
    owned: dict[str, list[int]]
    held: dict[str, list[int]]
    home: str = ""
    map: str = ""
    alone: str = ""
    settled: bool = False


class Share(msgspec.Struct, frozen=True):
    """The share of one member: its node, its web URL and its partitions by topic.

    ``refused`` says why it got nothing and must leave. It knows itself by ``boot``, which is 0 for
    a stranger, because that may have named any.
    """

    node: str
    url: str
    partitions: dict[str, list[int]]
    boot: int = 0
    refused: str = ""


class Candidate(msgspec.Struct, frozen=True):
    """A member as the planner sees it: its description of itself, and the topics it reads.

    ``stranger`` says why it is not a worker; then nothing that it says is believed. ``proved`` says
    that its description is its own, and not a copy of another member's.
    """

    member: Member
    topics: frozenset[str]
    stranger: str = ""
    proved: bool = False


def plan(
    partitions: Mapping[str, int], candidates: Mapping[str, Candidate]
) -> dict[str, set[TopicPartition]]:
    """Return the partitions of each member: as few moves as bring every load to at most ceil(P/n).

    A partition stays with its owner unless that one has more than its share. An owner with too
    many gives up those of its most crowded topic. A partition without owner goes to a member that
    has less than its share of the topic, then one that holds it on disk, has the fewest of the
    topic, has the fewest in all; a rendezvous hash of the node's name breaks ties. An older boot of
    a home gets nothing: its partitions belong to the latest boot. A refused member
    (:func:`refusals`) gets nothing. ``partitions`` are counts by topic; candidates are by their id
    in the group.
    """
    refused = refusals(candidates)
    living = {
        member: candidate
        for member, candidate in _latest_boots(candidates).items()
        if member not in refused
    }
    planned: dict[str, set[TopicPartition]] = {member: set() for member in candidates}
    if not living:
        return planned
    wanted = sorted(pairs({topic: range(count) for topic, count in partitions.items()}))
    share = -(-len(wanted) // len(living))
    planner = _Planner(partitions, living, share)
    owners = _owners(candidates, living)
    homeless = []
    for tp in wanted:
        owner = owners.get(tp)
        if owner is None or tp[0] not in living[owner].topics:
            homeless.append(tp)
        else:
            planner.give(owner, tp)
    for member in sorted(living):
        homeless += planner.shed(member)
    for tp in sorted(homeless):
        planner.assign(tp)
    return planned | planner.planned


def refusals(candidates: Mapping[str, Candidate]) -> dict[str, str]:
    """Return why members must leave, by their id in the group: always the later ones.

    Earlier are those that the group has accepted before, then those that were started earlier. An
    older boot of a home and a stranger must leave, whatever they say.
    """
    living = _latest_boots(candidates)
    refused = {member: one.stranger for member, one in candidates.items() if one.stranger}
    latest = {_home(candidate): candidate.member for candidate in living.values()}
    for member, candidate in candidates.items():
        if member not in living and member not in refused:
            later = latest[_home(candidate)]
            refused[member] = (
                f"a worker of its home was started later, node {later.node} at"
                f" {later.url or 'another address'}; give each worker a state folder of its own"
            )
    taken: list[Member] = []

    def age(member: str) -> tuple[bool, int, str]:
        said = living[member].member
        return (not said.settled, said.boot, member)

    for member in sorted(living, key=age):
        said = living[member].member
        reason = next(filter(None, (_why_not_beside(said, other) for other in taken)), "")
        if reason:
            refused[member] = reason
        else:
            taken.append(said)
    return refused


def _why_not_beside(late: Member, early: Member) -> str:
    """Return why a member cannot be in the group beside an earlier one, empty if it can."""
    if late.map and early.map and late.map != early.map:
        return (
            f"it is that of map {early.map}; got map {late.map}; give each map a group of its own"
        )
    if late.node == early.node:
        return (
            f"node {late.node} is a worker at {early.url or 'another address'} already; give each "
            "worker a node of its own"
        )
    return late.alone or early.alone


class _Planner:
    """A plan in the making: each member's partitions, and their numbers in all and by topic."""

    def __init__(
        self, partitions: Mapping[str, int], living: Mapping[str, Candidate], share: int
    ) -> None:
        self.planned: dict[str, set[TopicPartition]] = {member: set() for member in living}
        self._living = living
        self._share = share
        self._topic_share = {topic: -(-count // len(living)) for topic, count in partitions.items()}
        self._counts = {member: Counter[str]() for member in living}
        self._held = {member: pairs(candidate.member.held) for member, candidate in living.items()}

    def give(self, member: str, tp: TopicPartition) -> None:
        """Give a partition to a member."""
        self.planned[member].add(tp)
        self._counts[member][tp[0]] += 1

    def shed(self, member: str) -> list[TopicPartition]:
        """Take from a member the partitions above its share; return them."""
        mine, counts, node = self.planned[member], self._counts[member], self._node(member)
        gone = []
        while len(mine) > self._share:
            tp = max(
                mine,
                key=lambda tp: (counts[tp[0]] - self._topic_share[tp[0]], -_weight(node, tp), tp),
            )
            mine.remove(tp)
            counts[tp[0]] -= 1
            gone.append(tp)
        return gone

    def assign(self, tp: TopicPartition) -> None:
        """Give a partition without owner to the member it suits best, if any reads its topic."""
        topic = tp[0]
        readers = [member for member in self._living if topic in self._living[member].topics]
        if not readers:
            return
        # If members read different topics the share may not suffice; the least loaded gets it.
        free = [member for member in readers if len(self.planned[member]) < self._share]
        pool = free or sorted(readers, key=lambda member: len(self.planned[member]))[:1]
        best = min(
            pool,
            key=lambda member: (
                self._counts[member][topic] >= self._topic_share[topic],
                tp not in self._held[member],
                self._counts[member][topic],
                len(self.planned[member]),
                -_weight(self._node(member), tp),
            ),
        )
        self.give(best, tp)

    def _node(self, member: str) -> str:
        return self._living[member].member.node


def _latest_boots(candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Return the latest boot of each home, and of equal ones the one that is proved to be it."""
    latest: dict[str, str] = {}

    def age(member: str) -> tuple[int, bool, str]:
        return candidates[member].member.boot, candidates[member].proved, member

    for member in sorted(candidates, key=age):
        if not candidates[member].stranger:
            latest[_home(candidates[member])] = member
    return {member: candidates[member] for member in sorted(latest.values())}


def _owners(
    candidates: Mapping[str, Candidate], living: Mapping[str, Candidate]
) -> dict[TopicPartition, str]:
    """Return the living member whose home owned each partition last."""
    by_home = {_home(candidate): member for member, candidate in living.items()}
    owners: dict[TopicPartition, str] = {}
    ordered = sorted(candidates.values(), key=lambda one: (one.member.generation, one.member.node))
    for candidate in ordered:
        for tp in () if candidate.stranger else pairs(candidate.member.owned):
            if (owner := by_home.get(_home(candidate))) is not None:
                owners[tp] = owner
    return owners


def _home(candidate: Candidate) -> str:
    """Return the home of a member; older releases name none, and the node's name counts."""
    return candidate.member.home or candidate.member.node


def _weight(node: str, tp: TopicPartition) -> int:
    """Return the rendezvous weight (Thaler, Ravishankar 1998): the same in every process."""
    text = f"{node}\0{tp[0]}\0{tp[1]}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def pairs(partitions: Mapping[str, Iterable[int]]) -> set[TopicPartition]:
    """Return partitions by topic as a set of pairs."""
    return {(topic, number) for topic, numbers in partitions.items() for number in numbers}


def by_topic(partitions: Iterable[TopicPartition]) -> dict[str, list[int]]:
    """Return a set of pairs as sorted partitions by topic."""
    found: dict[str, list[int]] = {}
    for topic, number in sorted(partitions):
        found.setdefault(topic, []).append(number)
    return found


class GroupMap:
    """The assignor's map, which comes with every assignment, to every member.

    Attributes:
        urls: the endpoint of each partition's owner.
        nodes: the endpoint of each node.
        refused: why a member must leave, by its boot.
        strangers: why members are not workers, by the node and URL that each names.
        twins: the nodes of each endpoint that several of them name.
    """

    def __init__(self) -> None:
        self.urls: dict[TopicPartition, str] = {}
        self.nodes: dict[str, str] = {}
        self.refused: dict[int, str] = {}
        self.strangers: dict[tuple[str, str], str] = {}
        self.twins: dict[str, list[str]] = {}

    def update(self, shares: Sequence[Share]) -> None:
        """Use a new map."""
        self.urls = {tp: share.url for share in shares for tp in pairs(share.partitions)}
        self.refused = {share.boot: share.refused for share in shares if share.refused}
        self.strangers = {
            (share.node, share.url): share.refused
            for share in shares
            if share.refused and not share.boot
        }
        believed = [share for share in shares if share.boot or not share.refused]
        self.nodes = {share.node: share.url for share in believed}
        at: dict[str, list[str]] = {}
        for share in shares:
            if share.url and not share.refused:
                at.setdefault(share.url, []).append(share.node)
        self.twins = {url: sorted(nodes) for url, nodes in at.items() if len(nodes) > 1}


@dataclasses.dataclass(eq=False)
class Assignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka comes without types here
    """aiokafka's assignor, as an object per consumer: aiokafka never asks whether it is a class.

    ``describe`` returns this member's description of itself, for every join; ``on_shares`` gets the
    partitions of every member, as of an assignment; ``joined_as`` returns this member's number in
    the group, empty at first, and the generation.
    """

    name = NAME

    describe: Callable[[], Member]
    on_shares: Callable[[list[Share]], None]
    proof: GroupProof = GroupProof("")  # noqa: RUF009 - it never changes
    joined_as: Callable[[], tuple[str, int]] = lambda: ("", -1)

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return the metadata of this member's join."""
        number, _ = self.joined_as()
        data = self.proof.join(self.describe(), number)
        return ConsumerProtocolMemberMetadata(_PROTOCOL_VERSION, sorted(topics), data)

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Plan for the whole group, as its leader; every member gets the whole map."""
        candidates = {member: self._candidate(member, data) for member, data in members.items()}
        refused = refusals(candidates)
        latest = _latest_boots(candidates)
        for member, reason in sorted(refused.items()):
            said = candidates[member].member
            # A member that was restarted stays in the group for a session, as expected.
            is_dead = member not in latest and not candidates[member].stranger
            log.log(
                logging.INFO if is_dead else logging.WARNING,
                "member %s gets nothing, it says that it is node %s at %s: %s",
                member, said.node, said.url or "no address", reason,
            )  # fmt: skip
        taken = [one for member, one in candidates.items() if member not in refused]
        topics = sorted({topic for one in taken for topic in one.topics})
        partitions = {}
        for topic in topics:
            found = cluster.partitions_for_topic(topic)
            if found:
                partitions[topic] = len(found)
            else:
                log.warning("cannot assign partitions of a topic: the brokers know none: %s", topic)
        planned = plan(partitions, candidates)
        shares = [
            Share(
                (said := candidates[member].member).node,
                said.url,
                by_topic(tps),
                0 if candidates[member].stranger else said.boot,
                refused.get(member, ""),
            )
            for member, tps in planned.items()
        ]
        data = self.proof.plan(shares, self.joined_as()[1])
        return {
            member: ConsumerProtocolMemberAssignment(
                _PROTOCOL_VERSION, list(by_topic(tps).items()), data
            )
            for member, tps in planned.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Pass on the leader's map. aiokafka calls this after it has set the partitions."""
        self.on_shares(shares_of(assignment.user_data))

    def _candidate(self, member: str, data: ConsumerProtocolMemberMetadata) -> Candidate:
        said, topics = data.user_data, frozenset(data.subscription)
        stranger = self.proof.why_stranger(said, member)
        if not topics and not stranger:
            stranger = "it does not say which topics it reads"
        proved = not stranger and self.proof.is_joined(said, member)
        described = _decoded(member, said)
        if stranger:
            described = _cut(described)
        return Candidate(described, topics, stranger, proved)


def shares_of(data: bytes) -> list[Share]:
    """Return a leader's plan.

    Raises:
        ValueError: it is not one.
    """
    return content_of(data, list[Share])


def _cut(stranger: Member) -> Member:
    """Return a stranger's description, cut for the plan, whose length brokers bound."""
    node, url = stranger.node[:STRANGER_CHARACTERS_MAX], stranger.url[:STRANGER_CHARACTERS_MAX]
    return msgspec.structs.replace(stranger, node=node, url=url)


def _decoded(member: str, data: bytes) -> Member:
    """Return a member's description of itself; one that cannot be read counts as a new node."""
    try:
        return content_of(data, Member)
    except ValueError as error:
        log.warning("cannot read the join of group member %s: %s", member, error)
        return Member(member, 0, "", -1, {}, {})
