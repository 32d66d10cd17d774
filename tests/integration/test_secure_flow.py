"""A whole job over TLS with logins and the least rights; secrets that nothing shows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.cluster.rights import ROLES, Right, Role
from app.cluster.topics import apply_topics
from app.config.connections import kafka_options
from app.config.settings import load_settings
from app.demo.flights import events
from app.host.children import start_child, stop_child
from app.mapfile.load import load_map
from tests import ROOT
from tests.support import manifests, servers
from tests.support.acls import allow, forbid, rules_of
from tests.support.pki import Authority
from tests.support.secure_servers import MAP, PASSWORDS, SecureCassandra, SecureKafka
from tests.support.waiting import until
from treasure_map import Cell
from treasure_map.follow import follow
from treasure_map.query import QueryClient, QueryFailedError

pytestmark = [pytest.mark.kafka, pytest.mark.cassandra, pytest.mark.slow]

CASSANDRA_PASSWORD = "a password with ; and = signs"  # noqa: S105 - of a node that lives for tests
TOKEN = "the-token-of-every-reader"  # noqa: S105 - of a worker that lives for a test
WORKERS = 2
ENDED_S_MAX = 60.0
"""How long a command may take to report a fault, its start included, on a busy machine."""


class Lab:
    """A map of its own on a secure broker, and commands that run as its users.

    Attributes:
        outputs: all that commands and workers have printed, one file each.
    """

    def __init__(self, server: SecureKafka, cassandra: SecureCassandra, folder: Path) -> None:
        self.server = server
        self.cassandra = cassandra
        self.name = f"m{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.map_file = folder / "map.toml"
        self.map_file.write_text(MAP.replace("NAME", self.name))
        self.ports = servers.free_ports(WORKERS)
        self.urls = [f"https://localhost:{port}" for port in self.ports]
        self.authority = Authority(folder / "endpoints", "endpoints")
        self.endpoint = self.authority.issue("worker", "localhost")
        self.outputs: list[Path] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def archive(self, user: str) -> dict[str, str]:
        """Return the settings of a user's archive, in a keyspace of its own."""
        return {
            "archive": "cassandra", "cassandra_hosts": "localhost",
            "cassandra_port": str(self.cassandra.port), "cassandra_keyspace": self.name,
            "cassandra_ca_file": str(self.cassandra.authority.ca_file),
            "cassandra_username": f"{self.name}_{user}", "cassandra_password": CASSANDRA_PASSWORD,
        }  # fmt: skip

    def environment(self, user: str, **changes: str) -> dict[str, str]:
        """Return the environment of a user's process."""
        settings = self.server.login(user=user, map_file=str(self.map_file), **changes)
        settings |= {
            "web_token": TOKEN, "web_ca_file": str(self.authority.ca_file),
            "web_cert_file": str(self.endpoint.cert_file),
            "web_key_file": str(self.endpoint.key_file),
        } | self.archive(user)  # fmt: skip
        own = {name: value for name, value in os.environ.items() if "TREASURE_MAP" not in name}
        return own | {f"TREASURE_MAP_{name.upper()}": value for name, value in settings.items()}

    def run(self, user: str, *arguments: str, **changes: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and its output."""
        done = subprocess.run(
            [sys.executable, "-m", "app", *arguments], env=self.environment(user, **changes),
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        self.outputs.append(self.folder / f"output-{len(self.outputs)}")
        self.outputs[-1].write_text(done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr

    async def succeeds(self, user: str, *arguments: str) -> str:
        """Run a command that must end well; return its output."""
        code, text = await asyncio.to_thread(self.run, user, *arguments)
        assert code == 0, text
        return text

    def start(self, number: int, *flags: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        self.outputs.append(self.folder / f"output-{len(self.outputs)}")
        own = {
            "web_port": str(self.ports[number]), "web_url": self.urls[number],
            "state_folder": str(self.folder / f"state{number}"),
        }  # fmt: skip
        with self.outputs[-1].open("wb") as log:
            command = [sys.executable, "-m", "app", "worker", *flags]
            worker = start_child(command, log, self.environment("worker", **changes, **own), ROOT)
        self._workers.append(worker)
        return worker

    def client(self, number: int) -> QueryClient:
        """Return a reader of a worker."""
        ca_file = str(self.authority.ca_file)
        return QueryClient(self.urls[number], token=TOKEN, ca_file=ca_file)

    def close(self) -> None:
        """End workers that still run."""
        for worker in self._workers:
            stop_child(worker, 30)


@pytest.fixture
async def lab(
    secure_kafka: SecureKafka, secure_cassandra: SecureCassandra, tmp_path: Path
) -> AsyncIterator[Lab]:
    """Give a map of its own, without any right yet."""
    made = Lab(secure_kafka, secure_cassandra, tmp_path)
    yield made
    await asyncio.to_thread(made.close)


async def give_rights(lab: Lab, *roles: Role) -> None:
    """Give each user exactly the rights printed for its role, on Kafka and Cassandra."""
    for role in roles:
        name = f"{lab.name}_{role}"
        create = f"CREATE ROLE \"{name}\" WITH PASSWORD = '{CASSANDRA_PASSWORD}' AND LOGIN = true"
        await asyncio.to_thread(lab.cassandra.run, create)
        words = ("map", "acl", str(lab.map_file), "--for", role, "--user")
        rules = rules_of(await lab.succeeds(role, *words, role))
        assert rules
        for user, right in rules:
            await allow(lab.server.bootstrap, user, [right])
        for line in (await lab.succeeds(role, *words, name)).splitlines():
            if line.startswith("GRANT "):
                await asyncio.to_thread(lab.cassandra.run, line)


async def applied(lab: Lab, manifest: Path) -> None:
    """Wait until the workers have applied a load, each a part of it."""
    load = json.loads(await asyncio.to_thread(manifest.read_text))

    def ledgers() -> list[dict[str, Any]]:
        found = []
        for number in range(WORKERS):
            with lab.client(number) as client:
                found.append(client.ledger())
        return found

    async def enough() -> bool:
        try:
            found = await asyncio.to_thread(ledgers)
        except (QueryFailedError, OSError, KeyError):
            return False
        each = all(ledger["layers"]["minute"]["folded"] for ledger in found)
        return each and manifests.is_applied(load, found)

    await until(enough, 120)


def answers(lab: Lab) -> list[list[Cell]]:
    """Return all hours as each worker tells them; each has the other's partitions from it."""
    found = []
    for number in range(WORKERS):
        with lab.client(number) as client:
            found.append(client.cells("hour", {}, 0, "2100-01-01").cells)
    return found


async def test_a_job_runs_on_exactly_the_printed_rights(lab: Lab) -> None:
    """Map, load, two workers, verification, letters, feed and the end, each by its own user.

    One worker logs all that it can; no output and no file has a secret.
    """
    replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    keyspace = f"CREATE KEYSPACE {lab.name} WITH replication = {replication}"
    await asyncio.to_thread(lab.cassandra.run, keyspace)
    await give_rights(lab, "apply")
    text = await lab.succeeds("apply", "map", "apply", str(lab.map_file))
    assert "2 tables" in text
    await give_rights(lab, *(role for role in ROLES if role != "apply"))
    assert "7 created" in text
    workers = [lab.start(0, "-l", "debug", kafka_sasl_mechanism="PLAIN"), lab.start(1)]
    manifest = lab.folder / "manifest.json"
    await lab.succeeds(
        "producer", "generate", "--source", "orders", "--manifest", str(manifest),
        "--rate", "2000", "--seconds", "2", "--speed", "600", "--bad", "0.05", "--types", "3",
        "--processes", "1", "--map", str(lab.map_file),
    )  # fmt: skip
    await applied(lab, manifest)

    async def alike() -> bool:
        # Contributions to the coarser layer may be on their way between two questions.
        first, second = await asyncio.to_thread(answers, lab)
        return bool(first) and first == second

    await until(alike, 60)
    urls = [word for url in lab.urls for word in ("--url", url)]
    assert "all equal" in await lab.succeeds("verify", "verify", *urls)
    text = await lab.succeeds("deadletters", "deadletters", "count")
    assert f"{lab.name}.raw" in text
    await lab.succeeds("deadletters", "deadletters", "list", "--limit", "5")
    text = await lab.succeeds("deadletters", "deadletters", "replay")
    assert re.search(r"replayed [1-9]", text)
    settings = load_settings(lab.server.login(user="reader"), {})
    async with follow(
        "minute", settings.brokers, map_name=lab.name, to_end=True,
        client_options=kafka_options(settings),
    ) as cells:  # fmt: skip
        assert [cell async for cell in cells]
    for worker in workers:
        assert await asyncio.to_thread(stop_child, worker, 30) == 0
    text = await lab.succeeds("reset", "reset", str(lab.map_file), "--yes")
    assert "deleted" in text
    assert nothing_shows(lab, [*PASSWORDS.values(), TOKEN, CASSANDRA_PASSWORD]) == []


async def test_a_replay_runs_on_the_right_to_write_alone(lab: Lab) -> None:
    """Without it, it says so before it begins; the role of producers has it."""
    text = events.MAP_FILE.read_text("utf-8").replace('name = "flights"', f'name = "{lab.name}"')
    lab.map_file.write_text(text.replace("flights.raw", f"{lab.name}.raw"))
    topic = f"{lab.name}.raw"
    await apply_topics(lab.server.bootstrap, load_map(lab.map_file))
    words = ("replay", "flights", "--seconds", "0", "--map", str(lab.map_file))
    may_read, may_write = (Right("topic", topic, (one,)) for one in ("Read", "Write"))
    await allow(lab.server.bootstrap, "producer", [may_read])
    code, text = await asyncio.to_thread(lab.run, "producer", *words)
    assert code == 1
    assert f"cannot replay events into {topic}: 1 right(s) are missing" in text
    assert f"topic {topic}: this user may not Write; allow it" in text
    await forbid(lab.server.bootstrap, "producer", [may_read])
    await allow(lab.server.bootstrap, "producer", [may_write])
    assert "wrote 1,0" in await lab.succeeds("producer", *words)
    acl = await lab.succeeds(
        "producer", "map", "acl", str(lab.map_file), "--for", "producer", "--user", "producer"
    )
    assert ("producer", Right("topic", topic, ("Read", "Write"))) in rules_of(acl)


def nothing_shows(lab: Lab, secrets: list[str]) -> list[str]:
    """Return which files have a secret, in any form that it is likely to be in."""
    found = []
    for path in lab.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for secret in secrets:
            forms = [secret.encode(), repr(secret.encode())[2:-1].encode()]
            found += [f"{path.name}: {secret}" for form in forms if form in content]
    return found


COMMANDS = {
    "worker": ("worker",),
    "apply": ("map", "apply", "MAP"),
    "verify": ("verify",),
    "deadletters": ("deadletters", "count"),
    "reader": ("replay", "flights", "--map", "FLIGHTS"),
    "producer": ("generate", "--map", "MAP", "--source", "orders", "--manifest", "MANIFEST"),
}
WRONG = {
    "password": ({"kafka_password": "not the password"}, "refuses the login of user"),
    "authority": ({"kafka_ca_file": "FOREIGN"}, "want the authority that signed it"),
    "plain": ({"kafka_ca_file": ""}, "speaks TLS on this port"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_each_command_says_why_it_cannot_connect(lab: Lab, what: str) -> None:
    """The reason is its last line, without a traceback, with its exit code, and soon."""
    changes, told = WRONG[what]
    foreign = lab.server.folder / "foreign" / "another.pem"
    changes = {name: value.replace("FOREIGN", str(foreign)) for name, value in changes.items()}
    for user, words in COMMANDS.items():
        arguments = [
            one.replace("MANIFEST", str(lab.folder / "manifest"))
            .replace("MAP", str(lab.map_file))
            .replace("FLIGHTS", str(events.MAP_FILE))
            for one in words
        ]
        began_s = time.monotonic()
        code, text = await asyncio.to_thread(lab.run, user, *arguments, insecure="true", **changes)
        print(f"{user}: {time.monotonic() - began_s:.1f} s, {code}")  # noqa: T201 - if it fails
        assert code == (2 if user == "verify" else 1), text
        assert time.monotonic() - began_s < ENDED_S_MAX
        assert told in text.rstrip().rpartition("error: ")[2]
        assert "Traceback" not in text
    assert nothing_shows(lab, list(PASSWORDS.values())) == []
