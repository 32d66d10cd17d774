"""The assignor's plan and its wire form."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from app.kafka.assignor import Assignor, Candidate, Member, Share, by_topic, pairs, plan, refusals
from app.kafka.group_proof import content_of

TOPICS = {"raw": 16, "day": 8, "month": 5}


def member(
    node: str,
    owned: set[tuple[str, int]] | None = None,
    *,
    held: set[tuple[str, int]] | None = None,
    boot: int = 1,
    generation: int = 1,
    topics: frozenset[str] = frozenset(TOPICS),
    **more: Any,
) -> Candidate:
    """Return a member that reads ``topics``."""
    said = Member(
        node, boot, "", generation, by_topic(owned or set()), by_topic(held or set()), **more
    )
    return Candidate(said, topics)


def everything() -> set[tuple[str, int]]:
    """Return all partitions of TOPICS."""
    return pairs({topic: range(count) for topic, count in TOPICS.items()})


def given(planned: dict[str, set[tuple[str, int]]]) -> list[tuple[str, int]]:
    """Return all partitions that a plan gives, with repeats."""
    return [tp for tps in planned.values() for tp in tps]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 40])
def test_every_partition_goes_to_exactly_one_member_within_its_share(count: int) -> None:
    """No partition is left out or given twice, and no load is above ceil(P/n)."""
    planned = plan(TOPICS, {f"id{i}": member(f"n{i}") for i in range(count)})
    assert sorted(given(planned)) == sorted(everything())
    assert max(len(tps) for tps in planned.values()) <= -(-len(everything()) // count)


def test_a_fresh_group_spreads_each_topic_evenly() -> None:
    """Nobody owns anything, so evenness costs no move: each topic differs by one at most."""
    planned = plan(TOPICS, {f"id{i}": member(f"n{i}") for i in range(3)})
    for topic, partitions in TOPICS.items():
        counts = [sum(tp[0] == topic for tp in tps) for tps in planned.values()]
        assert max(counts) <= -(-partitions // 3)


def test_the_fewest_partitions_move_when_members_come_and_go() -> None:
    """Only homeless partitions, and those above a share, move through 300 random changes."""
    rng = random.Random(20)
    planned: dict[str, set[tuple[str, int]]] = {}
    nodes = {"n0"}
    for step in range(300):
        came = {f"n{rng.randrange(12)}" for _ in range(rng.randrange(3))}
        gone = {node for node in nodes if rng.random() < 0.2}
        nodes = (nodes - gone | came) or {"n0"}
        members = {node: member(node, planned.get(node), generation=step) for node in nodes}
        before = planned
        planned = plan(TOPICS, members)
        share = -(-len(everything()) // len(nodes))
        staying = {node: before.get(node, set()) for node in nodes}
        least = len(everything()) - sum(min(len(tps), share) for tps in staying.values())
        moved = sum(len(planned[node] - staying[node]) for node in nodes)
        assert sorted(given(planned)) == sorted(everything())
        assert max(map(len, planned.values())) <= share
        assert moved == least, f"seed 20, step {step}"


def test_the_plan_does_not_depend_on_the_order_of_members() -> None:
    """Two leaders that see the same group plan the same map."""
    members = {f"id{i}": member(f"n{i}", {("raw", i)}) for i in range(5)}
    backwards = dict(reversed(members.items()))
    assert plan(TOPICS, members) == plan(TOPICS, backwards)


def test_an_older_boot_of_a_node_gets_nothing_and_the_newer_keeps_its_partitions() -> None:
    """A quick restart leaves a dead member in the group until its session ends."""
    first = plan(TOPICS, {"old": member("a"), "b": member("b")})
    members = {
        "old": member("a", first["old"], boot=1),
        "new": member("a", boot=2, generation=-1),
        "b": member("b", first["b"]),
    }
    second = plan(TOPICS, members)
    assert second["old"] == set()
    assert second["new"] == first["old"]
    assert second["b"] == first["b"]


def test_a_worker_whose_node_is_taken_gets_nothing_and_the_one_before_keeps_all() -> None:
    """Two workers of one host and no name of their own, say: homes tell them apart."""
    before = member("a", everything(), home="one", boot=9, settled=True)
    members = {"late": member("a", home="two", boot=1, generation=-1), "before": before}
    refused = refusals(members)
    assert list(refused) == ["late"]
    assert refused["late"].startswith("node a is a worker at another address already; give each")
    assert plan(TOPICS, members) == {"before": everything(), "late": set()}


def test_an_older_start_of_a_home_that_lives_is_told() -> None:
    """It would own nothing from then on, without a word; a dead one does not mind."""
    members = {
        "old": member("a", everything(), home="one", boot=1, settled=True),
        "new": member("b", home="one", boot=2, generation=-1),
    }
    assert refusals(members) == {
        "old": "a worker of its home was started later, node b at another address; give each"
        " worker a state folder of its own"
    }


def test_a_restarted_worker_takes_its_home_over() -> None:
    """Its node may have another name now; the dead member of its home is not in its way."""
    dead = member("a", everything(), home="one", boot=1, settled=True)
    again = member("b", home="one", boot=2, generation=-1)
    assert plan(TOPICS, {"dead": dead, "again": again}) == {"dead": set(), "again": everything()}


@pytest.mark.parametrize(
    ("early", "late", "why"),
    [
        ({"map": "a"}, {"map": "b"}, "it is that of map a; got map b; give each map a group"),
        ({}, {"alone": "it is embedded"}, "it is embedded"),
        ({"alone": "it is embedded"}, {}, "it is embedded"),
    ],
    ids=["other map", "late one is alone", "early one is alone"],
)
def test_who_cannot_be_beside_an_earlier_member_goes(
    early: dict[str, Any], late: dict[str, Any], why: str
) -> None:
    """The later one: not yet settled, or started later; its topics are nobody's."""
    members = {
        "x": member("x", boot=5, topics=frozenset({"other"}), **late),
        "y": member("y", boot=9, settled=True, topics=frozenset({"raw"}), **early),
    }
    refused = refusals(members)
    assert list(refused) == ["x"]
    assert refused["x"].startswith(why)
    planned = plan({"raw": 16, "other": 3}, members)
    assert planned == {"x": set(), "y": pairs({"raw": range(16)})}
    both_new = {"x": member("x", boot=5, **late), "y": member("y", boot=9, **early)}
    assert list(refusals(both_new)) == ["y"]


def test_two_revisions_of_one_map_share_a_group() -> None:
    """Workers are restarted one after the other."""
    assert refusals({"x": member("x", map="a"), "y": member("y", map="a")}) == {}


def test_a_partition_without_owner_goes_where_its_store_is() -> None:
    """Reading a journal from its start costs more than opening a store."""
    held = {("raw", 3), ("raw", 4), ("day", 7)}
    planned = plan(TOPICS, {"a": member("a"), "b": member("b", held=held), "c": member("c")})
    assert held <= planned["b"]


def test_the_later_generation_wins_a_partition_claimed_twice() -> None:
    """A member that slept through a rebalance still claims its old partitions."""
    tp = ("raw", 0)
    members = {"a": member("a", {tp}, generation=4), "b": member("b", {tp}, generation=9)}
    assert tp in plan(TOPICS, members)["b"]


def test_a_member_gets_only_topics_it_reads() -> None:
    """Old members do not know the new topics while a new map rolls out."""
    old = frozenset({"raw"})
    planned = plan(TOPICS, {"a": member("a", topics=old), "b": member("b", topics=old)})
    assert {tp[0] for tp in given(planned)} == {"raw"}
    mixed = plan(TOPICS, {"a": member("a", topics=old), "b": member("b")})
    assert {tp[0] for tp in mixed["a"]} == {"raw"}
    assert sorted(given(mixed)) == sorted(everything())


def test_rendezvous_spreads_ties_over_nodes() -> None:
    """Which partition a newcomer gets is not always the first of the list."""
    takers = Counter(
        next(iter(plan({"t": 1}, {f"{seed}{n}": member(f"{seed}{n}", topics=frozenset("t"))
                                  for n in "ab"}.copy()).items()))[1] != set()
        for seed in range(64)
    )  # fmt: skip
    assert 10 < takers[True] < 54


class Cluster:
    """The broker's metadata, as far as the assignor asks."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return the partitions of a topic, None for an unknown one."""
        return set(range(TOPICS[topic])) if topic in TOPICS else None


def test_every_member_hears_the_whole_map() -> None:
    """Metadata and assignment go through aiokafka's own wire form and come back."""
    heard: dict[str, list[Share]] = {}
    assignors = {
        node: Assignor(
            lambda node=node: Member(node, 1, f"http://{node}", 1, {}, {}),  # type: ignore[misc]
            lambda shares, node=node: heard.update({node: shares}),  # type: ignore[misc]
        )
        for node in ("a", "b")
    }
    joined = {}
    for node, assignor in assignors.items():
        metadata = assignor.metadata({*TOPICS, "unknown"})
        joined[node] = type(metadata).decode(metadata.encode())
    assignments = assignors["a"].assign(Cluster(), joined)
    for node, assignment in assignments.items():
        received = type(assignment).decode(assignment.encode())
        assignors[node].on_assignment(received)
        mine = next(share for share in heard[node] if share.node == node)
        assert pairs(mine.partitions) == {(tp.topic, tp.partition) for tp in received.partitions()}
    assert heard["a"] == heard["b"]
    assert {share.url for share in heard["a"]} == {"http://a", "http://b"}
    assert sorted(tp for share in heard["a"] for tp in pairs(share.partitions)) == sorted(
        everything()
    )


@pytest.mark.parametrize("said", [b"\xff", b"", None])
def test_a_member_that_cannot_be_read_takes_part_as_a_new_node(said: bytes | None) -> None:
    """One strange member must not end the leader, and the next leader, and so on."""
    assignor = Assignor(lambda: Member("a", 1, "", 1, {}, {}), lambda _: None)
    metadata = assignor.metadata(TOPICS)
    strange = type(metadata)(0, sorted(TOPICS), said)
    assigned = assignor.assign(Cluster(), {"a": metadata, "strange": strange})
    assert all(assignment.partitions() for assignment in assigned.values())
    with pytest.raises(ValueError):  # noqa: PT011 - the words are those of a decoder
        content_of(strange.user_data, Member)
