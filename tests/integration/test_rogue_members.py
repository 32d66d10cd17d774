"""Strangers in a group of workers, on a real broker: they get nothing, and are logged."""

from __future__ import annotations

import logging
import re
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import RebalanceInProgressError

from app.cluster.rights import Right, rights_of
from app.cluster.topics import apply_topics
from app.config.connections import kafka_options
from app.config.settings import load_settings
from app.kafka.assignor import Member, Share
from app.kafka.group_protocol import describe_group
from app.kafka.transport_options import TransportError
from app.mapfile.load import load_map
from app.trust.proof import PeerKey
from app.trust.tokens import make_token
from tables.model.layer import Map
from tests.support import servers
from tests.support.acls import allow
from tests.support.common import flight
from tests.support.pki import PASSPHRASE, Authority
from tests.support.rogue import Rogue, assignment, joined, plan_nothing
from tests.support.secure_servers import SecureKafka
from tests.support.secured_workers import CELLS, ORIGINS, Asker, secured
from tests.support.transport_harness import Benches, Memory, TransportHarness
from tests.support.waiting import until
from tests.support.worker_process import Process

pytestmark = pytest.mark.kafka

SECRET = "secret-between-workers"  # noqa: S105 - no password of anything
LATER = 2**62
NOT_SIGNED = "is not signed by a worker of this group, with the same peer_secret or web_token"
UNSIGNED = f"its join {NOT_SIGNED}"
MEND = "give Read on the group to workers only"


def options_of(server: SecureKafka, user: str) -> dict[str, Any]:
    """Return the security options of a user's clients."""
    return kafka_options(load_settings(server.login(user=user), {}))


def claims(worker: Process, themap: Map, url: str) -> dict[str, bytes]:
    """Return metadata with which strangers claim a worker's share, by the words of the warning."""
    everything = {topic: list(range(count)) for topic, count in themap.inputs().items()}
    home = f"{socket.gethostname()}:{Path(worker.settings['state_folder'])}:{themap.name}"
    return {
        f"says that it is node n1 at {url}: {UNSIGNED}": joined(
            Member("n1", 0, url, 9, everything, {}, home="x", map=themap.name, settled=True),
            sorted(everything),
        ),
        f"says that it is node n9 at {url}: {UNSIGNED}": joined(
            Member("n9", LATER, url, 9, everything, {}, home=home, map=themap.name),
            [*everything, "a topic that there is not"],
        ),
        "says nothing of itself: its join cannot be read": b"\xff",
    }


async def warns(worker: Process, words: str, reader: Asker, admin: Asker) -> bool:
    """Return whether a worker warns of one stranger, or of nobody, and is as ready as before."""
    _, state = await reader.ask(worker, "/readyz")
    # There is no archive.
    if not all(reason.startswith("the archive ") for reason in state["reasons"]):
        return False
    _, metrics = await admin.ask(worker, "/metrics")
    total = float(re.findall(r"(?m)^treasure_map_group_strangers (\S+)", metrics)[0])
    # Keys and passwords of tests may be read by all, and its events are of 1970.
    warnings = [text for text in state["warnings"] if text.endswith(MEND)]
    if not words:
        return warnings == [] and total == 0
    (warning,) = warnings or [""]
    return words in warning and "1 in all" in warning and total == 1


@pytest.mark.slow
async def test_workers_go_on_beside_members_that_are_none(
    secure_kafka: SecureKafka, processes: Callable[..., Process], tmp_path: Path
) -> None:
    """Whatever they say: a worker's node, its home with a later start, or nothing readable.

    Answers stay whole, and both workers say who it is, as which node, and from which address.
    """
    pytest.importorskip("cassandra")
    authority = Authority(tmp_path)
    (tmp_path / "password").write_text(PASSPHRASE)

    def make(**settings: str) -> Process:
        return processes(**(settings | secure_kafka.login()))

    one, two = secured(make, tmp_path, authority, [authority.issue("one"), authority.issue("two")])
    themap, group = load_map(one.map_file), one.settings["group"]
    await apply_topics(secure_kafka.bootstrap, themap)
    await allow(secure_kafka.bootstrap, "worker", rights_of(themap, "worker", group))
    await allow(secure_kafka.bootstrap, "reader", [Right("group", group, ("Read",))])
    reader = Asker(authority, make_token(tmp_path / "tokens.json", "reader", ["read"]))
    admin = Asker(authority, make_token(tmp_path / "tokens.json", "admin", ["admin"]))
    for worker, node in ((one, "n1"), (two, "n2")):
        worker.settings["node"] = node
        worker.start()

    async def is_whole(worker: Process) -> bool:
        status, page = await reader.ask(worker, CELLS)
        return status == 200 and not page["partial"] and len(page["cells"]) == len(ORIGINS)

    async def shared(worker: Process) -> bool:
        _, found = await reader.ask(worker, "/v1/cluster")
        return found is not None and len(found["workers"]) == 2

    for worker in (one, two):
        await until(lambda worker=worker: shared(worker), 90)
    one.settings["brokers"] = secure_kafka.bootstrap
    raw = f"{one.map_name}.raw"
    await one.send(raw, *((number % 2, flight(1, at, "UA")) for number, at in enumerate(ORIGINS)))
    for worker in (one, two):
        await until(lambda worker=worker: is_whole(worker), 60)
    url = f"https://127.0.0.1:{servers.free_ports(1)[0]}"
    said = claims(one, themap, url)
    for words, data in said.items():
        rogue = Rogue(
            secure_kafka.at["SECURE"], options_of(secure_kafka, "reader"), group,
            lambda _, data=data: data,  # type: ignore[misc]
        )  # fmt: skip
        async with rogue:
            for worker in (one, two):
                await worker.says(f" from 127.0.0.1 {words}; {MEND}")
                await until(lambda worker=worker: is_whole(worker), 30)
                told = f" from 127.0.0.1 {words}; {MEND}"
                await until(lambda worker=worker, told=told: warns(worker, told, reader, admin), 30)
            assert rogue.given
        assert not any(rogue.given)
    for worker in (one, two):
        await until(lambda worker=worker: warns(worker, "", reader, admin), 30)
        assert worker.running.poll() is None
        assert f"worker {url}" not in worker.log(), "it was asked"
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log()


async def test_a_stranger_makes_no_worker_unready(
    secure_kafka: SecureKafka, processes: Callable[..., Process]
) -> None:
    """Whoever may read the group could else end its service; ``/readyz`` warns of it."""
    worker = processes(**secure_kafka.login())
    themap, group = load_map(worker.map_file), worker.settings["group"]
    await apply_topics(secure_kafka.bootstrap, themap)
    await allow(secure_kafka.bootstrap, "worker", rights_of(themap, "worker", group))
    await allow(secure_kafka.bootstrap, "reader", [Right("group", group, ("Read",))])
    worker.start()
    await worker.ready()
    rogue = Rogue(
        secure_kafka.at["SECURE"], options_of(secure_kafka, "reader"), group, lambda _: b"\xff"
    )
    async with rogue:

        async def is_ready_and_warns() -> bool:
            status, state = await worker.get("/readyz")
            warned = "its join cannot be read" in " ".join(state["warnings"])
            return status == 200 and state["reasons"] == [] and warned

        await until(is_ready_and_warns, 60)
    assert await worker.stop() == 0


async def bench_of(
    server: SecureKafka, start: Callable[..., Awaitable[TransportHarness]], group: str, **more: Any
) -> TransportHarness:
    """Start the transport of a worker, in a group with a topic of its own."""
    return await start(
        server.at["SECURE"], {"ingest": group}, Memory(), group=group, map_name="a",
        client_options=options_of(server, "worker"), **more,
    )  # fmt: skip


async def new_group(server: SecureKafka) -> str:
    """Make a group and a topic of one name, which a worker may read; a reader may the group."""
    name = f"g{uuid.uuid4().hex[:8]}"
    await server_topic(server, name)
    readable = [Right("topic", name, ("Read",)), Right("group", name, ("Read",))]
    await allow(server.bootstrap, "worker", readable)
    await allow(server.bootstrap, "reader", readable[1:])
    return name


async def server_topic(server: SecureKafka, name: str) -> None:
    """Make a topic of two partitions."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # noqa: PLC0415

    admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, 2, 1)])
    await admin.close()


@pytest.mark.parametrize("key", [PeerKey(SECRET, ""), None], ids=["secret", "no secret"])
async def test_a_member_that_nobody_can_read_ends_no_leader(
    secure_kafka: SecureKafka, benches: Benches, key: PeerKey | None
) -> None:
    """Nor the next leader, and so on; the worker keeps all partitions, with or without a secret."""
    group = await new_group(secure_kafka)
    bench = await bench_of(secure_kafka, benches, group, peer_key=key)

    async def has_all() -> bool:
        return len(bench.transport.ready) == 2

    await until(has_all, 60)
    for data in (b"\xff", b""):
        rogue = Rogue(
            secure_kafka.at["SECURE"], options_of(secure_kafka, "reader"), group,
            lambda _, data=data: data,  # type: ignore[misc]
        )  # fmt: skip
        async with rogue:

            async def is_given(rogue: Rogue = rogue) -> bool:
                return bool(rogue.given)

            await until(is_given, 60)
            await until(has_all, 60)
        assert not any(rogue.given)
    assert bench.transport.failure is None


async def test_a_group_that_is_planned_anew_tells_of_nobody(
    secure_kafka: SecureKafka, benches: Benches
) -> None:
    """Its coordinator leaves out the members' metadata; workers would be taken for strangers."""
    group = await new_group(secure_kafka)
    bench = await bench_of(secure_kafka, benches, group, peer_key=PeerKey(SECRET, ""))

    await until(lambda: len(bench.transport.ready) == 2, 60)
    rogue = Rogue(
        secure_kafka.at["SECURE"], options_of(secure_kafka, "reader"), group, lambda _: b"\xff"
    )
    planned_anew = 0

    async def is_given() -> bool:
        nonlocal planned_anew
        try:
            found = await describe_group(bench.transport._consumer, group)
        except RebalanceInProgressError:
            planned_anew += 1
        else:
            assert b"" not in [one.joined for one in found]
        return bool(rogue.given)

    async with rogue:
        await until(is_given, 60)
    assert planned_anew


@pytest.mark.parametrize(
    ("secret", "readable"),
    # Without a secret a plan that can be read is believed, whoever made it.
    [(True, True), (True, False), (False, False)],
    ids=["a plan", "no plan", "no plan and no secret"],
)
async def test_a_worker_that_is_led_by_none_ends_with_its_reason(
    secure_kafka: SecureKafka, benches: Benches, caplog: pytest.LogCaptureFixture,
    secret: bool, readable: bool,
) -> None:  # fmt: skip
    """It reads nothing that such a leader gives it, and names the leader and its address."""
    group = await new_group(secure_kafka)
    both = {group: [0, 1]}

    def lead(members: list[str]) -> dict[str, bytes]:
        shares = [Share(one, "https://rogue", both) for one in members]
        return {one: assignment(both, shares) for one in members}

    said = Member("n9", LATER, "https://rogue", -1, {}, {})
    rogue = Rogue(
        secure_kafka.at["SECURE"], options_of(secure_kafka, "reader"), group,
        lambda _: joined(said, [group]), lead if readable else plan_nothing,
    )  # fmt: skip
    async with rogue:

        async def leads() -> bool:
            return rogue.leads

        await until(leads, 60)
        key = PeerKey(SECRET, "") if secret else None
        bench = await bench_of(secure_kafka, benches, group, peer_key=key)

        async def has_failed() -> bool:
            return bench.transport.failure is not None

        await until(has_failed, 60)
    failure = bench.transport.failure
    assert isinstance(failure, TransportError)
    why = NOT_SIGNED if readable else "cannot be read"
    words = str(failure)
    assert words.startswith(
        f"cannot share group {group}: its leader is not a worker: the plan {why};"
    )
    if secret:
        assert f" from 127.0.0.1 says that it is node n9 at https://rogue: {UNSIGNED}" in words
    assert MEND in words
    assert bench.transport.ready == {}
    assert isinstance(bench.owners, Memory)
    assert [call for call in bench.owners.calls if call[0] == "restore"] == []
    loud = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert [one for one in loud if one.name.startswith("aiokafka")] == []


@pytest.mark.parametrize("secret", ["", "another secret"], ids=["no secret", "another secret"])
async def test_a_worker_that_has_not_the_secret_of_the_others_ends_with_that_reason(
    secure_kafka: SecureKafka, benches: Benches, secret: str
) -> None:
    """The others go on; it would have nothing, and not know why."""
    group = await new_group(secure_kafka)
    leader = await bench_of(secure_kafka, benches, group, node="n1", peer_key=PeerKey(SECRET, ""))

    async def has_all() -> bool:
        return len(leader.transport.ready) == 2

    await until(has_all, 60)
    key = PeerKey(secret, "") if secret else None
    late = await bench_of(secure_kafka, benches, group, node="n2", peer_key=key)

    async def has_failed() -> bool:
        return late.transport.failure is not None

    await until(has_failed, 60)
    assert NOT_SIGNED in str(late.transport.failure)
    assert str(late.transport.failure).startswith(f"cannot share group {group}: ")
    assert isinstance(late.owners, Memory)
    assert [call for call in late.owners.calls if call[0] == "restore"] == []
    await until(has_all, 60)
    assert leader.transport.failure is None


async def test_workers_that_name_one_url_are_told(
    secure_kafka: SecureKafka, benches: Benches, caplog: pytest.LogCaptureFixture
) -> None:
    """Once by each; both are workers, and go on."""
    group, key = await new_group(secure_kafka), PeerKey(SECRET, "")
    made = [
        await bench_of(
            secure_kafka, benches, group, node=node, peer_key=key, web_url="https://one:1"
        )
        for node in ("n1", "n2")
    ]

    async def have_one_each() -> bool:
        return [len(bench.transport.ready) for bench in made] == [1, 1]

    await until(have_one_each, 60)
    told = [one.getMessage() for one in caplog.records if "name one URL" in one.getMessage()]
    assert len(told) == 2
    assert told[0].startswith(f"nodes n1, n2 of group {group} name one URL, https://one:1: ")
