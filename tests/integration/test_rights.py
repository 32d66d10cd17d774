"""Rights on a real broker: each that is missing is told by its name, before anything begins."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.cluster.rights import ROLES, Right, RightsError, Role, rights_of
from app.cluster.topic_specs import topics_of
from app.cluster.topics import TopicsRefusedError, apply_topics, check_topics
from app.config.connections import kafka_options
from app.config.settings import Settings, load_settings
from app.deadletters.replay import DeadLetters
from app.kafka.batch_producer import BatchProducer
from app.kafka.brokers import NotAllowedError
from app.kafka.log import KafkaLog
from app.mapfile.load import parse_map
from app.verify import verify
from tables.model.errors import OutcomeUnknownError, TreasureMapError
from tables.model.layer import Map
from tests import ROOT
from tests.support.acls import allow, forbid
from tests.support.secure_servers import MAP, SecureKafka
from tests.support.waiting import until

SECONDS_MAX = 20.0
"""How long a command may take to name a missing right, on a busy machine."""


def new_map() -> tuple[str, Map]:
    """Return a map of a name of its own, as a file has it and read."""
    text = MAP.replace("NAME", f"m{uuid.uuid4().hex[:8]}")
    return text, parse_map(text, "map.toml")


def settings_of(server: SecureKafka, user: str) -> Settings:
    """Return the settings of a user."""
    return load_settings(server.login(user=user), {})


async def refused(
    attempt: Callable[[], Awaitable[object]], kind: type[TreasureMapError]
) -> tuple[str, float]:
    """Return the refusal of an attempt, once the broker knows of it, and how long it took."""
    found: list[tuple[str, float]] = []

    async def is_refused() -> bool:
        began_s = time.monotonic()
        try:
            await attempt()
        except kind as error:
            found.append((str(error), time.monotonic() - began_s))
        return bool(found)

    await until(is_refused, 30)
    return found[0]


async def allowed(attempt: Callable[[], Awaitable[object]]) -> None:
    """Wait until the broker knows that an attempt is allowed."""

    async def is_allowed() -> bool:
        try:
            await attempt()
        except TreasureMapError:
            return False
        return True

    await until(is_allowed, 30)


@pytest.mark.kafka
async def test_each_right_that_a_worker_lacks_is_told(secure_kafka: SecureKafka) -> None:
    """The error names topic or group and operation, before anything is claimed."""
    _, themap = new_map()
    bootstrap, settings = secure_kafka.bootstrap, settings_of(secure_kafka, "worker")
    await apply_topics(bootstrap, themap)
    rights = rights_of(themap, "worker", themap.name)

    async def check() -> str:
        options = kafka_options(settings)
        return await check_topics(settings.brokers, themap, options, group=themap.name)

    words, _ = await refused(check, TopicsRefusedError)
    assert words.count("this user may not") == 8
    assert f"topic {themap.name}.raw: this user may not Read; allow it" in words
    assert f"group {themap.name}: this user may not Read" in words
    assert "map acl FILE --for worker --user worker` and give its output to" in words
    await allow(bootstrap, "worker", rights)
    await allowed(check)
    for right in rights:
        for operation in right.operations:
            part = [dataclasses.replace(right, operations=(operation,))]
            await forbid(bootstrap, "worker", part)
            words, seconds = await refused(check, TopicsRefusedError)
            assert seconds < SECONDS_MAX
            told = f"{right.resource} {right.name}: this user may not {operation}; allow it"
            assert told in words
            assert "1 problem(s)" in words
            await allow(bootstrap, "worker", part)
            await allowed(check)


@pytest.mark.kafka
async def test_what_commands_lack_is_told_at_once(secure_kafka: SecureKafka) -> None:
    """The error names the topic, and comes within seconds."""
    _, themap = new_map()
    bootstrap = secure_kafka.bootstrap
    await apply_topics(bootstrap, themap)

    settings = settings_of(secure_kafka, "deadletters")
    letters = DeadLetters(settings.brokers, themap, "dead", kafka_options(settings))

    async def replay() -> None:
        await letters.replay(lambda _: True)

    async def list_() -> None:
        async for _ in letters.letters(lambda _: True):
            pass

    words, seconds = await refused(list_, RightsError)
    assert seconds < SECONDS_MAX
    assert f"cannot use letters of {themap.name}.dead: 1 right(s) are missing" in words
    topics = [f"{themap.name}.dead", f"{themap.name}.raw"]
    await allow(bootstrap, "deadletters", [Right("topic", name, ("Read",)) for name in topics])
    await allowed(list_)
    words, seconds = await refused(replay, RightsError)
    assert seconds < SECONDS_MAX
    assert f"topic {themap.name}.dead: this user may not Write; allow it" in words
    assert f"topic {themap.name}.raw: this user may not Write; allow it" in words


@pytest.mark.kafka
async def test_verify_tells_what_it_lacks_at_once(
    secure_kafka: SecureKafka, tmp_path: Path
) -> None:
    """Before it asks any worker."""
    text, themap = new_map()
    await apply_topics(secure_kafka.bootstrap, themap)
    file = tmp_path / "map.toml"
    file.write_text(text)
    given = secure_kafka.login(user="verify", map_file=str(file))
    settings = load_settings(given, {})

    async def attempt() -> None:
        await verify(settings, deadline_s=5, rows=1, archive=False)

    words, seconds = await refused(attempt, RightsError)
    assert seconds < SECONDS_MAX
    for name in ("raw", "layer.hour", "dead", "late"):
        assert f"topic {themap.name}.{name}: this user may not Read; allow it" in words


COMMANDS: dict[Role, tuple[str, ...]] = {
    "worker": ("worker",),
    "apply": ("map", "apply", "MAP"),
    "reset": ("reset", "MAP", "--yes"),
    "producer": ("generate", "--map", "MAP", "--source", "orders", "--manifest", "MANIFEST"),
    "verify": ("verify", "--no-archive"),
    "deadletters": ("deadletters", "count"),
}


@pytest.mark.kafka
@pytest.mark.parametrize("are_made", [True, False])
async def test_a_user_without_rights_is_told_all_of_them(
    secure_kafka: SecureKafka, tmp_path: Path, are_made: bool
) -> None:
    """Each command names its topics, its group, its role and its user, and no class of an error."""
    text, themap = new_map()
    if are_made:
        await apply_topics(secure_kafka.bootstrap, themap)
    file, manifest = tmp_path / "map.toml", str(tmp_path / "manifest.json")
    file.write_text(text)
    own = {name: value for name, value in os.environ.items() if "TREASURE_MAP" not in name}
    for role, words in COMMANDS.items():
        given = secure_kafka.login(
            user=role, map_file=str(file),
            state_folder=str(tmp_path / "state"),
        )  # fmt: skip
        arguments = [{"MAP": str(file), "MANIFEST": manifest}.get(one, one) for one in words]
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "app", *arguments], cwd=ROOT, check=False,
            env=own | {f"TREASURE_MAP_{name.upper()}": value for name, value in given.items()},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == (2 if role == "verify" else 1), done
        told = done.stderr.rpartition("error: ")[2]
        assert f"map acl FILE --for {role} --user {given['kafka_username']}`" in told
        assert "AuthorizationFailedError" not in told
        lines = [line for line in told.splitlines() if line.startswith("  - ")]
        for right in rights_of(themap, role, f"treasure-map.{themap.name}"):
            if role == "deadletters" and right.name != f"{themap.name}.dead":
                continue
            (line,) = [one for one in lines if f" {right.resource} {right.name}: " in one]
            assert "this user may not" in line


@pytest.mark.kafka
async def test_a_producer_that_may_not_write_is_told(secure_kafka: SecureKafka) -> None:
    """Who may only read is told that too."""
    _, themap = new_map()
    topic = f"{themap.name}.raw"
    await apply_topics(secure_kafka.bootstrap, themap)
    settings = settings_of(secure_kafka, "producer")

    async def write() -> None:
        async with BatchProducer(settings.brokers, topic, options=kafka_options(settings)):
            pass

    words, _ = await refused(write, TreasureMapError)
    assert topic in words
    assert "this user lacks a right" in words or "it is not there" in words
    await allow(secure_kafka.bootstrap, "producer", [Right("topic", topic, ("Write",))])
    await allowed(write)


@pytest.mark.kafka
async def test_topics_are_made_by_who_may_create(secure_kafka: SecureKafka) -> None:
    """Each that this user may not create is told; with the printed rights all are made."""
    _, themap = new_map()
    settings = settings_of(secure_kafka, "apply")

    async def apply() -> None:
        await apply_topics(settings.brokers, themap, options=kafka_options(settings))

    words, seconds = await refused(apply, TopicsRefusedError)
    assert seconds < SECONDS_MAX
    assert words.count("this user may not Create it; allow it\n") == 6
    lines = [line for line in words.splitlines() if line.startswith("  - ")]
    assert lines == sorted(lines)
    assert len(lines) == 7
    assert "--for apply --user apply` and give its output to an administrator, or let" in words
    await allow(secure_kafka.bootstrap, "apply", rights_of(themap, "apply", themap.name))
    await allowed(apply)


@pytest.mark.kafka
async def test_a_right_that_is_taken_meanwhile_ends_what_cannot_go_on(
    secure_kafka: SecureKafka,
) -> None:
    """Reads and appends are refused with topic and right, not tried again for ever."""
    _, themap = new_map()
    bootstrap, settings = secure_kafka.bootstrap, settings_of(secure_kafka, "worker")
    await apply_topics(bootstrap, themap)
    journal = f"{themap.name}.journal.{themap.name}.raw"
    rights = [Right("topic", journal, ("Read", "Write", "Delete"))]
    await allow(bootstrap, "worker", rights)
    log = KafkaLog(
        settings.brokers, 1 << 20, kafka_options(settings), repeatable={journal}, read_deadline_s=9
    )

    async def started() -> None:
        await log.start()
        await log.append(journal, 0, b"entry", ())

    await allowed(started)
    try:
        assert [one.value for one in await log.read(journal, 0, 0, 1)] == [b"entry"]
        await forbid(bootstrap, "worker", [Right("topic", journal, ("Delete",))])
        words, _ = await refused(lambda: log.truncate(journal, 0, 1), OutcomeUnknownError)
        assert "this user may not Delete it" in words
        await forbid(bootstrap, "worker", [Right("topic", journal, ("Write",))])
        words, _ = await refused(lambda: log.append(journal, 0, b"entry", ()), NotAllowedError)
        assert f"cannot append to {journal}[0]: this user may not Write it" in words
        await forbid(bootstrap, "worker", [Right("topic", journal, ("Read",))])
        words, _ = await refused(lambda: log.read(journal, 0, 0, 1), NotAllowedError)
        assert f"cannot read offsets of {journal}[0]" in words
        assert "this user may not Read it" in words
    finally:
        await log.stop()


@pytest.mark.parametrize("role", ["verify", "deadletters", "producer", "reader", "reset"])
def test_roles_need_nothing_of_the_cluster(role: Role) -> None:
    """Nor of transactions: the rights name topics and one group."""
    _, themap = new_map()
    for right in rights_of(themap, role, "a group"):
        assert right.resource in ("topic", "group")
        assert right.operations


def test_a_worker_writes_heartbeats_into_the_sources_that_want_them() -> None:
    """Nobody else does; without the right its silent partitions would stay open."""
    text, themap = new_map()
    idle = parse_map(text.replace('type = "type"', 'type = "type"\nidle_heartbeat = "1m"'), "idle")
    (source,) = themap.sources
    for role in ROLES:
        before, after = (rights_of(one, role, "a group") for one in (themap, idle))
        if role == "worker":
            assert Right("topic", source.topic, ("Read", "Write")) in after
            after = [
                dataclasses.replace(one, operations=("Read",)) if one.name == source.topic else one
                for one in after
            ]
        assert after == before


def test_the_page_has_all_rights() -> None:
    """The printed rights are those of docs/DEPLOYING.md."""
    page = (ROOT / "docs" / "DEPLOYING.md").read_text("utf-8")
    _, themap = new_map()
    kinds = {spec.name: spec.kind for spec in topics_of(themap, replication=1)}
    columns = ("source", "journal", "layer", "feed", "side", "group")
    for role, words in ROLES.items():
        cells = dict.fromkeys(columns, "-")
        for right in rights_of(themap, role, "the group"):
            kind = "group" if right.resource == "group" else kinds[right.name]
            cells[kind] = " ".join(right.operations)
        assert f"| `{role}`: {words} | {' | '.join(cells.values())} | " in page
