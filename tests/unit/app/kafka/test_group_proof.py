"""Joins and plans of a group are believed if a worker of it has signed them."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

from app.kafka.assignor import Assignor, GroupMap, Member, Share, pairs, shares_of
from app.kafka.group_proof import GroupProof, content_of
from app.kafka.group_protocol import Described
from app.kafka.membership import (
    JOIN_BYTES_MAX,
    JOIN_TOPICS_MAX,
    NAMED_MAX,
    Membership,
    why_too_much,
)
from app.kafka.transport_options import TransportOptions
from app.trust.proof import PeerKey
from tests.support.waiting import until

SECRET = "secret-between-workers"  # noqa: S105 - no password of anything
UNSIGNED = "is not signed by a worker of this group, with the same peer_secret or web_token"
TOPICS = {"raw": 4}
EVERYTHING = {"raw": [0, 1, 2, 3]}
ANYONE = GroupProof("flights")


def proof(group: str = "flights", secret: str = SECRET) -> GroupProof:
    """Return the proof that a worker signs with."""
    return GroupProof(group, PeerKey(secret, "https://worker-1:6066"))


def member(node: str, boot: int = 1, home: str = "", owned: bool = False) -> Member:
    """Return a worker's description of itself."""
    return Member(node, boot, f"https://{node}", 1, EVERYTHING if owned else {}, {}, home=home)


class Cluster:
    """The broker's metadata, as far as the assignor asks."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return the partitions of a topic, None for an unknown one."""
        return set(range(TOPICS[topic])) if topic in TOPICS else None


def planned(joined: dict[str, bytes]) -> tuple[dict[str, int], GroupMap]:
    """Return how many partitions each member gets from a leader that is a worker, and the map."""
    group = GroupMap()
    leader = Assignor(lambda: member("n1"), group.update, proof(), lambda: ("m1", 7))
    given = leader.assign(
        Cluster(),
        {n: ConsumerProtocolMemberMetadata(0, ["raw"], data) for n, data in joined.items()},
    )
    leader.on_assignment(next(iter(given.values())))
    counts = {n: sum(len(of) for _, of in one.assignment) for n, one in given.items()}
    return counts, group


def test_a_join_is_proved_for_one_member_of_one_group() -> None:
    """A proof has no member number before the member has one."""
    said = member("n1")
    for number in ("m1", ""):
        assert proof().why_stranger(proof().join(said, number), "m1") == ""
    assert proof().is_joined(proof().join(said, "m1"), "m1")
    assert not proof().is_joined(proof().join(said, ""), "m1")
    for data in (
        proof().join(said, "m2"),
        proof("ships").join(said, "m1"),
        proof("flights", "another").join(said, "m1"),
        ANYONE.join(said, "m1"),
        msgspec.msgpack.encode(said),
        msgspec.msgpack.encode([msgspec.msgpack.encode(said), "\u00e9" * 64]),
        b"\x92\xc4\x01\x80\xd9\x40" + b"\xff" * 64,
        proof().plan([Share("n1", "", {})], 1),
        b"", b"\xff", b"\x90", msgspec.msgpack.encode([1]), b"\x91" * 100_000,
        b"\x92" * 100_000, b"\x93\xc4\x00\xa0" + b"\x91" * 100_000,
    ):  # fmt: skip
        why = proof().why_stranger(data, "m1")
        assert why == f"its join {UNSIGNED}"
        assert ANYONE.why_stranger(data, "m1") == ""


@pytest.mark.parametrize(
    "begin",
    [b"\xdd", b"\x81\xa1a\xdd", b"\xdf", b"\x93\xc4\x00\xa0\xdd"],
    ids=["list", "field", "map", "more"],
)
def test_a_join_of_many_small_things_takes_no_memory(begin: bytes) -> None:
    """A stranger could else end the leader with ten megabytes, and the next one."""
    data = begin + (1_000_000).to_bytes(4) + b"\x80" * 1_000_000
    tracemalloc.start()
    try:
        assert proof().why_stranger(data, "m1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_join_that_is_more_than_a_worker_says_is_not_read() -> None:
    """Reading it would take the time in which the leader has to show that it lives."""
    of = ConsumerProtocolMemberMetadata
    said = proof().join(member("n1"), "")
    assert why_too_much(of(0, ["raw"] * JOIN_TOPICS_MAX, said).encode()) == ""
    assert why_too_much(b"") == ""
    topics, size = JOIN_TOPICS_MAX + 1, JOIN_BYTES_MAX + 1
    assert why_too_much(of(0, [""] * topics, said).encode()) == (
        f"it joined with {topics:,} topics; want at most {JOIN_TOPICS_MAX:,}"
    )
    assert why_too_much(b"\0" * size) == (
        f"it joined with {size:,} bytes; want at most {JOIN_BYTES_MAX:,}"
    )


def test_of_a_stranger_no_long_name_is_told() -> None:
    """The plan goes to every member, and each worker logs it."""
    said = Member("n" * 100_000, 0, "https://n9/" + "u" * 100_000, 9, EVERYTHING, {})
    data = {"m1": proof().join(member("n1"), "m1"), "m9": ANYONE.join(said, "m9")}
    ((node, url),) = planned(data)[1].strangers
    assert (node, url) == (said.node[:200], said.url[:200])


def test_a_join_is_proved_to_its_last_byte() -> None:
    """A reader of the group could else change a word of a worker."""
    data = proof().join(member("n1", home="home", owned=True), "m1")
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert not proof().is_joined(changed, "m1"), at


def test_what_a_later_version_says_besides_is_signed_too() -> None:
    """A worker reads the fields that it knows; nobody can change the rest."""

    class LaterMember(Member, frozen=True):
        zone: str = ""

    later = LaterMember("n1", 1, "", 1, {}, {}, zone="a")
    data = proof().join(later, "m1")
    assert proof().is_joined(data, "m1")
    assert content_of(data, Member).node == "n1"
    assert not proof().is_joined(data.replace(b"\xa4zone\xa1a", b"\xa4zone\xa1b"), "m1")


@pytest.mark.parametrize(
    "said",
    [
        member("n1", boot=2**62, home="home", owned=True),
        Member("n1", 0, "https://n9", 9, EVERYTHING, {}, home="other", settled=True),
        member("n9", owned=True),
    ],
    ids=["later start of a home", "node", "owner"],
)
def test_a_stranger_gets_nothing_whatever_it_says(said: Member) -> None:
    """The worker that it would be taken for keeps all, and is not refused in its place."""
    worker = member("n1", boot=5, home="home", owned=True)
    counts, group = planned({"m1": proof().join(worker, "m1"), "m9": ANYONE.join(said, "m9")})
    assert counts == {"m1": 4, "m9": 0}
    assert group.nodes == {"n1": "https://n1"}
    assert set(group.urls.values()) == {"https://n1"}
    assert group.strangers == {
        (said.node, said.url): f"its join {UNSIGNED}",
    }
    assert list(group.refused) == [0]


def test_who_repeats_a_first_join_does_not_replace_its_worker() -> None:
    """It was told without a number; the worker has joined again with its own since."""
    worker = member("n1", boot=5, home="home", owned=True)
    first, again = proof().join(worker, ""), proof().join(worker, "m1")
    for other in ("m0", "m9"):
        assert planned({"m1": again, other: first})[0] == {"m1": 4, other: 0}
        assert planned({"m1": again, other: again})[0] == {"m1": 4, other: 0}


def test_a_plan_is_for_one_generation() -> None:
    """A leader without the secret cannot use a plan of another time either."""
    shares = [Share("n1", "https://n1", EVERYTHING, 1), Share("n2", "", {}, 2)]
    data = proof().plan(shares, 7)
    assert shares_of(data) == shares
    assert proof().why_no_plan(data, 7) == ""
    worker = proof().join(member("n1"), "m1")
    for other in (proof().plan(shares, 8), proof("ships").plan(shares, 7), ANYONE.plan(shares, 7),
                  msgspec.msgpack.encode(shares), worker):  # fmt: skip
        why = proof().why_no_plan(other, 7)
        assert why == f"the plan {UNSIGNED}"
        assert ANYONE.why_no_plan(other, 7) == ""
    assert pairs(shares_of(data)[0].partitions) == pairs(EVERYTHING)


def test_bytes_that_are_no_plan_are_told() -> None:
    """Any bytes may come."""
    for data in (b"", b"\xff", b"\x91" * 100_000, msgspec.msgpack.encode([b"", ""]),
                 msgspec.msgpack.encode([b"\x91" * 100_000, ""]),
                 ANYONE.plan([member("n1")], 1)):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - the words are those of a decoder
            shares_of(data)


async def test_a_plan_gives_a_worker_what_it_tells_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leader may repeat shares that a worker signed, with other partitions beside them."""

    async def nobody(*_: object) -> list[object]:
        return []

    monkeypatch.setattr("app.kafka.membership.describe_group", nobody)
    failed: list[BaseException] = []
    key = PeerKey(SECRET, "https://n2")
    options = TransportOptions(brokers="", group="flights", node="n2", boot=1, peer_key=key)
    membership = Membership(options, GroupMap(), lambda: member("n2"), failed.append)
    monkeypatch.setattr(membership, "_consumer", object())
    leader = Assignor(lambda: member("n1"), GroupMap().update, proof(), lambda: ("m1", 7))
    joined = {number: proof().join(member(f"n{number[1]}"), number) for number in ("m1", "m2")}
    given = leader.assign(
        Cluster(),
        {n: ConsumerProtocolMemberMetadata(0, ["raw"], data) for n, data in joined.items()},
    )["m2"]
    data = bytes(given.encode())
    assert await membership._planned(7, data) == data
    assert failed == []
    every = list(EVERYTHING.items())
    for plan in (given.user_data, proof().plan([], 7)):
        other = bytes(ConsumerProtocolMemberAssignment(0, every, plan).encode())
        taken = ConsumerProtocolMemberAssignment.decode(await membership._planned(7, other))
        assert (taken.assignment, shares_of(taken.user_data)) == ([], [])
        assert "other partitions than it names to the others" in str(failed.pop())


async def test_strangers_are_counted_and_the_first_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has the address that each joined from, until a plan is without them.

    A worker of another map that gets nothing is one too; an earlier start of a worker is not.
    """
    of = ConsumerProtocolMemberMetadata
    other = Member("n7", 7, "https://n7", 1, {}, {}, map="ships")
    old = Member("n1", 1, "https://n1", 1, {}, {}, map="flights")
    there = [(f"m{n}", of(0, ["raw"], proof().join(said, f"m{n}")).encode())
             for n, said in enumerate([member("n0"), old, other])]  # fmt: skip
    there += [(f"m{n}", b"\xff") for n in range(3, 8)]

    async def described(*_: object) -> list[Described]:
        return [Described(number, "10.0.0.9", data) for number, data in there]

    monkeypatch.setattr("app.kafka.membership.describe_group", described)
    options = TransportOptions(
        brokers="",
        group="flights",
        node="n0",
        boot=9,
        map_name="flights",
        peer_key=PeerKey(SECRET, ""),
    )
    group = GroupMap()
    membership = Membership(
        options, group, lambda: member("n0"), lambda error: pytest.fail(str(error))
    )
    monkeypatch.setattr(membership, "_consumer", object())
    gone = [
        Share("n1", "", {}, 1, "later"),
        Share("n7", "", {}, 7, "another map"),
        Share("", "", {}, 0, "no"),
    ]
    group.update([Share("n0", "", EVERYTHING, 9), *gone])

    membership.look()
    await until(lambda: bool(membership.warnings()))
    assert membership.strangers.total == 6
    (warning,) = membership.warnings()
    named = [f"m{n} from 10.0.0.9 says nothing of itself: its join cannot be read"
             for n in range(3, 7)]  # fmt: skip
    assert warning == (
        "group flights has members that are not workers of this map and get nothing, 6 in all: m2"
        " from 10.0.0.9 says that it is node n7 at https://n7: it is a worker of map ships; give"
        f" each map a group of its own; {'; '.join(named)}; and 1 more; give Read on the group to"
        " workers only"
    )
    assert len(caplog.records) == NAMED_MAX
    group.update([Share("n0", "", EVERYTHING, 9)])
    membership.look()
    assert membership.warnings() == []
    assert membership.strangers.total == 0
