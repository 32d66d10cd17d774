"""An error of a client's TLS or login is told with the setting to look at."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import client
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import KafkaConnectionError

from app.config.connections import kafka_options
from app.config.settings import load_settings
from app.kafka.connection_causes import cause_of
from app.kafka.logins import AGAIN_S, Logins
from tests import ROOT
from tests.support.secure_servers import MAP, SecureKafka

pytestmark = pytest.mark.kafka

WRONG = {
    "password": (
        "SECURE", {"kafka_password": "wrong"},
        "refuses the login of user worker by SCRAM-SHA-512; want .* kafka_password",
    ),
    "password, plain": (
        "SECURE", {"kafka_password": "wrong", "kafka_sasl_mechanism": "PLAIN"},
        "refuses the login of user worker by PLAIN; want .* kafka_password",
    ),
    "user": ("SECURE", {"kafka_username": "nobody"}, "refuses the login of user nobody"),
    "mechanism": (
        "SECURE", {"kafka_sasl_mechanism": "SCRAM-SHA-256"},
        "does not offer the login SCRAM-SHA-256; want PLAIN or SCRAM-SHA-512 in kafka_sasl_mech",
    ),
    "authority": ("FOREIGN", {}, "cannot be checked .*; want .* in kafka_ca_file"),
    "host": ("WRONG_HOST", {}, "is not for localhost; want .* setting brokers"),
    "expired": ("EXPIRED", {}, "has expired; want one that is valid"),
    "plain for TLS": (
        "SECURE", {"kafka_ca_file": ""}, "speaks TLS on this port; want kafka_tls or kafka_ca_file",
    ),
    "TLS for plain": (
        "CLEAR_LOGIN", {"kafka_tls": "true"},
        "speaks no TLS on this port; want .* neither kafka_tls",
    ),
    "no login": (
        "CLEAR_LOGIN",
        {"kafka_sasl_mechanism": "", "kafka_username": "", "kafka_password": ""},
        "closes the connection of a client without a login; want kafka_sasl_mechanism",
    ),
    "no login, TLS": (
        "SECURE",
        {"kafka_sasl_mechanism": "", "kafka_username": "", "kafka_password": ""},
        "closes the connection of a client without a login; want kafka_sasl_mechanism",
    ),
    "login without one": (
        "MUTUAL",
        {"kafka_sasl_mechanism": "PLAIN", "kafka_username": "worker", "kafka_password": "any"},
        "accepts no login on this port; want kafka_sasl_mechanism empty",
    ),
    "no certificate": (
        "MUTUAL", {"kafka_cert_file": "", "kafka_key_file": ""},
        "refuses .* or that it shows none .*; want in kafka_cert_file",
    ),
}  # fmt: skip
"""Name of the fault: its listener, the settings that make it, and the message."""


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_is_told_with_its_setting(secure_kafka: SecureKafka, what: str) -> None:
    """Within seconds, and as something that does not pass by itself."""
    listener, changes, told = WRONG[what]
    settings = load_settings(secure_kafka.login(listener, **changes, insecure="true"), {})
    began_s = time.monotonic()
    cause = await cause_of(settings.brokers, kafka_options(settings))
    print(f"{time.monotonic() - began_s:.1f} s: {cause}")  # noqa: T201 - shown where it fails
    assert cause is not None
    assert cause.is_final
    assert settings.brokers in str(cause)
    assert re.search(told, str(cause)), str(cause)


@pytest.mark.parametrize("client", ["expired", "stranger"])
async def test_a_certificate_that_brokers_refuse_is_told(
    secure_kafka: SecureKafka, client: str
) -> None:
    """The message has the setting that names it."""
    files = secure_kafka.clients[client]
    own = {"kafka_cert_file": str(files.cert_file), "kafka_key_file": str(files.key_file)}
    settings = load_settings(secure_kafka.login("MUTUAL", **own), {})
    cause = await cause_of(settings.brokers, kafka_options(settings))
    assert cause is not None
    assert cause.is_final
    assert "refuses the certificate of this client" in str(cause)
    assert "kafka_cert_file" in str(cause)


COLLECTED_LATE = """
import asyncio
del asyncio.StreamReaderProtocol.__del__
from app.__main__ import main
main()
"""
"""Runs a command. A protocol that is garbage reads the error of its connection, and in which order
garbage is collected nobody knows; here it comes too late."""


@pytest.mark.parametrize("arguments", ["map apply", "reset --yes", "deadletters count", "worker"])
def test_a_refused_certificate_is_the_last_word(
    secure_kafka: SecureKafka, tmp_path: Path, arguments: str
) -> None:
    """No word of asyncio comes after it, of an error that nobody read."""
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.replace("NAME", "refused"))
    files = secure_kafka.clients["stranger"]
    own = {"kafka_cert_file": str(files.cert_file), "kafka_key_file": str(files.key_file)}
    folders = {f"{name}_folder": str(tmp_path / name) for name in ("state", "archive")}
    settings = secure_kafka.login("MUTUAL", map_file=str(map_file), **folders, **own)
    command = arguments.split()
    if command[0] in ("map", "reset"):
        command.insert(len(command) if command[0] == "map" else 1, str(map_file))
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED_LATE, *command],
        check=False, capture_output=True, text=True, timeout=60, cwd=ROOT,
        env=os.environ | {f"TREASURE_MAP_{name.upper()}": of for name, of in settings.items()},
    )  # fmt: skip
    assert done.returncode == 1
    assert "refuses the certificate of this client" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("listener", ["SECURE", "MUTUAL", "CLEAR_LOGIN"])
async def test_what_is_right_has_no_cause(secure_kafka: SecureKafka, listener: str) -> None:
    """Whether by login or by certificate."""
    settings = load_settings(secure_kafka.login(listener, insecure="true"), {})
    assert await cause_of(settings.brokers, kafka_options(settings)) is None


async def test_a_login_that_is_refused_is_tried_ever_more_seldom(
    secure_kafka: SecureKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a client wants to connect; one that succeeds is forgotten."""
    now_s, tries = 0.0, []

    async def connect(*where: Any, **options: Any) -> AIOKafkaConnection:
        tries.append(now_s)
        return await create_conn(*where, **options)

    monkeypatch.setattr(client, "create_conn", Logins(connect, lambda: now_s).connect)
    wrong = load_settings(secure_kafka.login(kafka_password="wrong"), {})  # noqa: S106
    for tenth in range(3_000):
        now_s = tenth / 10
        kafka = client.AIOKafkaClient(bootstrap_servers=wrong.brokers, **kafka_options(wrong))
        with pytest.raises(KafkaConnectionError):
            await kafka.bootstrap()
        await kafka.close()
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.11)
    assert max(waits) <= AGAIN_S[1] + 0.11
    right = load_settings(secure_kafka.login(), {})
    now_s += AGAIN_S[1]
    for _ in range(2):
        kafka = client.AIOKafkaClient(bootstrap_servers=right.brokers, **kafka_options(right))
        await kafka.bootstrap()
        await kafka.close()
