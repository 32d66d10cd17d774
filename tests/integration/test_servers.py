"""The servers the other tests stand on: they start, serve, keep data over a restart, and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from click.testing import CliRunner

from tables.model.layer import Map
from tests import ROOT
from tests.servers import command
from tests.support import servers
from tests.support.commands import read_until
from tests.support.compose_file import (
    cassandra_fields,
    cassandra_jvm,
    environment,
    kafka_properties,
)
from tests.support.kafka_admin import make, partitions_at

pytest_plugins = ["pytester"]

MISSING = """
servers.why_missing = lambda name: f"cannot run {name}: java is not on PATH"
"""


@pytest.mark.kafka
async def test_a_broker_serves_and_keeps_records_over_a_restart(tmp_path: Path) -> None:
    """A record written before a restart is read after it, at the same address."""
    reason = servers.why_missing("kafka")
    if reason is not None:
        pytest.skip(reason)
    with servers.KafkaServer(tmp_path / "kafka") as server:
        admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("topic", num_partitions=1, replication_factor=1)])
        await admin.close()
        producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap, enable_idempotence=True)
        await producer.start()
        await producer.send_and_wait("topic", b"value", partition=0)
        await producer.stop()
        first = server.pid

        server.restart()

        assert server.pid != first
        consumer = AIOKafkaConsumer(
            bootstrap_servers=server.bootstrap, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition("topic", 0)])
            record = await consumer.getone()
        finally:
            await consumer.stop()
        assert record.value == b"value"


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_what_its_log_said(tmp_path: Path) -> None:
    """A bad setting ends in an error that holds the broker's own words."""
    reason = servers.why_missing("kafka")
    if reason is not None:
        pytest.skip(reason)
    server = servers.KafkaServer(tmp_path / "kafka", {"num.network.threads": "none"})
    with pytest.raises(servers.ServerError, match=r"num\.network\.threads"):
        server.start()


@pytest.mark.cassandra
def test_a_cassandra_node_answers_cql(cassandra: tuple[str, int]) -> None:
    """The driver connects and reads the node's release."""
    cluster_module = pytest.importorskip("cassandra.cluster")
    policies = pytest.importorskip("cassandra.policies")
    host, port = cassandra
    profile = cluster_module.ExecutionProfile(policies.DCAwareRoundRobinPolicy("datacenter1"))
    cluster = cluster_module.Cluster(
        [host],
        port=port,
        execution_profiles={cluster_module.EXEC_PROFILE_DEFAULT: profile},
        protocol_version=5,
    )
    try:
        row = cluster.connect().execute("SELECT release_version FROM system.local").one()
        assert row.release_version.startswith("5.0.")
    finally:
        cluster.shutdown()


def test_a_broker_runs_on_the_properties_of_the_compose_file(tmp_path: Path) -> None:
    """All of them but those that hold a host, a port or a folder."""
    here = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
    server = servers.KafkaServer(tmp_path)
    given = kafka_properties(environment("kafka"))
    assert len(given) > len(here)
    assert {name for name in given if server._properties[name] != given[name]} == here
    assert server._properties.keys() == given.keys()
    names = {listener.partition("://")[0] for listener in given["listeners"].split(",")}
    assert server.listeners.keys() == names
    assert len(set(server.listeners.values())) == len(names)


def test_a_node_runs_on_the_fields_of_the_compose_file(tmp_path: Path) -> None:
    """Its configuration has each of them once, and the JVM its heap and options."""
    variables = environment("cassandra")
    server = servers.CassandraServer(tmp_path)
    config = yaml.safe_load(server._yaml())
    fields = cassandra_fields(variables)
    assert set(fields) == {"cluster_name", "num_tokens", "endpoint_snitch"}
    assert {name: str(config[name]) for name in fields} == fields
    options = cassandra_jvm(variables)
    assert f"-Xmx{variables['MAX_HEAP_SIZE']}" in options
    extra = variables["JVM_EXTRA_OPTS"].split()
    assert "-Dcassandra.settings.commitlog_sync=batch" in extra
    assert options[-len(extra) :] == extra


def test_variables_become_properties_like_in_the_images() -> None:
    """Dots, dashes and underscores; a variable that an image would not read is refused."""
    given = {
        "KAFKA_A_B": "1",
        "KAFKA_A___B__C": "2",
        "KAFKA_HEAP_OPTS": "-Xmx1g",
        "CLUSTER_ID": "x",
    }
    assert kafka_properties(given) == {"a.b": "1", "a-b_c": "2"}
    assert cassandra_fields({"CASSANDRA_NUM_TOKENS": "4", "MAX_HEAP_SIZE": "1g"}) == {
        "num_tokens": "4"
    }
    with pytest.raises(ValueError, match="its image reads no CASSANDRA_AUTO_SNAPSHOT"):
        cassandra_fields({"CASSANDRA_AUTO_SNAPSHOT": "false"})


def test_free_ports_are_distinct_and_below_the_outgoing_range() -> None:
    """Ports of servers do not collide with one another or with clients' own ports."""
    # So many that some are drawn twice: with 500 of 12,000, all but surely.
    ports = servers.free_ports(500)
    assert all(20_000 <= port < 32_000 for port in ports)
    assert len(set(ports)) == 500


@pytest.mark.parametrize(
    ("required", "outcome", "processes"), [("0", "skipped", 0), ("1", "failed", 1)]
)
def test_a_missing_server_skips_unless_servers_are_required(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    required: str,
    outcome: str,
    processes: int,
) -> None:
    """Without Java a test of Kafka is skipped with the reason, or fails if CI requires it."""
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    pytester.makeconftest(conftest + MISSING)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.kafka
        def test_needs_kafka(kafka):
            assert kafka
        """
    )
    pytester.makeini("[pytest]\nmarkers =\n  kafka: x\n  server: x\n")
    monkeypatch.setenv("TREASURE_MAP_REQUIRE_SERVERS", required)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    without = ("-p", "no:randomly", "-p", "no:schemathesis")
    result = pytester.runpytest_subprocess("-rs", *without, "-n", str(processes))
    counts = result.parseoutcomes()
    # A skip in a fixture is reported in the setup phase, where a failure counts as an error.
    assert counts == {"errors" if outcome == "failed" else outcome: 1}
    result.stdout.fnmatch_lines(["*java is not on PATH*"])


@contextlib.contextmanager
def developing(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the program of ``make servers``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers", *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
async def test_servers_to_develop_with_keep_their_data(tmp_path: Path) -> None:
    """`make servers`: both ports answer; the next time topic and keyspace are there again."""
    for name in ("kafka", "cassandra"):
        if reason := servers.why_missing(name):
            pytest.skip(reason)
    inspect = pytest.importorskip("tables.archive.cassandra.inspection").inspect
    module = pytest.importorskip("tables.archive.cassandra.archive")
    kafka, cassandra = servers.free_ports(2)
    node = module.CassandraSettings(port=cassandra, keyspace="kept", replication=1)
    words = [
        "--kafka-port", str(kafka), "--cassandra-port", str(cassandra), "--folder", str(tmp_path),
    ]  # fmt: skip
    for is_known in (False, True):
        with developing(words) as process:
            said = await asyncio.to_thread(read_until, process.stdout, "Ctrl-C ends them")
            assert f"TREASURE_MAP_BROKERS=127.0.0.1:{kafka}\n" in said
            assert f"TREASURE_MAP_CASSANDRA_PORT={cassandra}\n" in said
            found = await partitions_at(f"127.0.0.1:{kafka}", "kept")
            assert found == ({"kept": 3} if is_known else {})
            assert (inspect(node, None).copies is not None) is is_known
            if not is_known:
                await make(f"127.0.0.1:{kafka}", "kept", 3, {})
                archive = module.CassandraArchive(node)
                await archive.open(Map(1, "kept", (), (), ""))
                await archive.close()
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 60) == 130
    assert not servers.listens(kafka)
    assert not servers.listens(cassandra)


def test_servers_to_develop_with_need_free_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing starts; the message has the variable of another port. So it has why Java lacks."""
    monkeypatch.setattr(servers, "why_missing", lambda _: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["--cassandra-port", str(port), "--kafka-port", str(servers.free_ports(1)[0])]
        done = CliRunner().invoke(command, [*words, "--folder", str(tmp_path / "data")])
    assert done.exit_code == 1
    assert f"cannot start cassandra: a program listens on port {port}" in done.output
    assert "give CASSANDRA_PORT=" in done.output
    monkeypatch.setattr(servers, "why_missing", lambda name: f"cannot run {name}: no java")
    done = CliRunner().invoke(command, [*words, "--folder", str(tmp_path / "data")])
    assert done.exit_code == 1
    assert "error: cannot run kafka: no java" in done.output
    assert not (tmp_path / "data").exists()


MAVEN = """#!/bin/sh
for argument; do
  case $argument in -DoutputDirectory=*) folder=${argument#*=} ;; esac
done
mkdir -p "$folder" && echo fetched >> "$folder/some.jar"
exit "$MAVEN_EXITS"
"""


def test_checkouts_with_other_versions_leave_each_others_jars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may share one cache; servers of the other run from it. Half a fetch does not count."""
    (tmp_path / "mvn").write_text(MAVEN)
    (tmp_path / "mvn").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(servers, "JARS", tmp_path / "jars")
    found: list[Path] = []
    for content in ("one", "other", "one"):
        pom = tmp_path / "pom.xml"
        pom.write_text(content)
        monkeypatch.setattr(servers, "POM", pom)
        if len(found) == 1:
            monkeypatch.setenv("MAVEN_EXITS", "1")
            with pytest.raises(servers.ServerError, match="mvn exited with 1"):
                servers.jars("kafka")
        monkeypatch.setenv("MAVEN_EXITS", "0")
        found.append(servers.jars("kafka"))
    assert found[0] == found[2] != found[1]
    assert [(folder / "some.jar").read_text() for folder in found] == ["fetched\n"] * 3
