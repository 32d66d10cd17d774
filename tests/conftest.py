"""Fixtures of all tests: real servers, one of each for the whole run."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.workermanage import WorkerController

from app.demo.embedded_broker import EmbeddedBroker
from tests.support import servers
from tests.support.kafka_cluster import KafkaCluster
from tests.support.pki import Authority
from tests.support.secure_servers import SecureCassandra, SecureKafka
from tests.support.worker_process import Process

REQUIRE = "TREASURE_MAP_REQUIRE_SERVERS"
# On a busy machine an example may take any time.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
# Taken out of the environment: it is not a setting, and workers refuse unknown settings.
REQUIRED = os.environ.pop(REQUIRE, "") == "1"


_SHARED = {"kafka", "kafka_server", "cassandra_server", "cassandra"}
_SECURE = {"secure_kafka", "secure_cassandra", "mutual_cassandra"}
_STARTED: list[servers.Server] = []
"""Shared servers of this process."""

_SERVERS = {"embedded", "broker", "brokers", "processes", "secure_cluster", *_SHARED, *_SECURE}
"""Fixtures of brokers and nodes, and of the workers that run beside them."""


@pytest.fixture(scope="session")
def _kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.KafkaServer]:
    _skip_where_missing("kafka")
    _only_here(tmp_path_factory, "kafka")
    with servers.KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        _STARTED.append(server)
        yield server


@pytest.fixture(scope="session")
def kafka(_kafka: servers.KafkaServer) -> str:
    """Run one Kafka broker; give its bootstrap address. Tests bring their own topics and groups."""
    return _kafka.bootstrap


@pytest.fixture
def kafka_server(_kafka: servers.KafkaServer) -> Iterator[servers.KafkaServer]:
    """Give the broker that all share to a test that stops or pauses it: one test runs at a time."""
    yield _kafka
    # A test that failed may have left it so.
    if _kafka.is_running:
        _kafka.resume()
    else:
        _kafka.start()


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """Run one Kafka broker with TLS, logins and rights. Tests bring their own topics and users."""
    _skip_where_missing("kafka")
    _only_here(tmp_path_factory, "secure_kafka")
    folder = tmp_path_factory.mktemp("secure_kafka")
    with SecureKafka(folder, Authority(folder / "certificates")) as server:
        _STARTED.append(server)
        yield server


@pytest.fixture
def secure_cluster(tmp_path: Path) -> Iterator[tuple[KafkaCluster, Authority]]:
    """Run three nodes whose every listener, those between them too, wants certificates."""
    _skip_where_missing("kafka")
    authority = Authority(tmp_path / "authority")
    cluster = KafkaCluster(tmp_path)
    for number, node in enumerate(cluster.nodes):
        node.configure(
            {
                "listener.security.protocol.map": ",".join(f"{n}:SSL" for n in node.listeners),
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(authority.issue(f"node{number}").store_file),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(authority.ca_file),
                "ssl.client.auth": "required",
            }
        )
    with cluster:
        yield cluster, authority


@pytest.fixture(scope="session")
def secure_cassandra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureCassandra]:
    """Run one Cassandra node with TLS, logins and rights, whose certificate is for localhost."""
    _skip_where_missing("cassandra")
    _only_here(tmp_path_factory, "secure_cassandra")
    folder = tmp_path_factory.mktemp("secure_cassandra")
    with SecureCassandra(folder, Authority(folder / "certificates"), "localhost") as server:
        _STARTED.append(server)
        yield server


@pytest.fixture(scope="session")
def mutual_cassandra(
    tmp_path_factory: pytest.TempPathFactory, secure_cassandra: SecureCassandra
) -> Iterator[SecureCassandra]:
    """Run another one, that wants certificates; its own is for a name that is not its host's."""
    folder = tmp_path_factory.mktemp("mutual_cassandra")
    authority = secure_cassandra.authority
    with SecureCassandra(folder, authority, "cassandra.example", mutual=True) as server:
        _STARTED.append(server)
        server.run("LIST ROLES", authority.issue("administrator"))
        yield server


@pytest.fixture(scope="session")
def cassandra_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.CassandraServer]:
    """Run one Cassandra node; who stops it starts it again."""
    _skip_where_missing("cassandra")
    _only_here(tmp_path_factory, "cassandra")
    with servers.CassandraServer(tmp_path_factory.mktemp("cassandra")) as server:
        _STARTED.append(server)
        yield server


@pytest.fixture(scope="session")
def cassandra(cassandra_server: servers.CassandraServer) -> tuple[str, int]:
    """Give host and port of the Cassandra node. Tests bring their own keyspaces."""
    return cassandra_server.host, cassandra_server.port


@pytest.fixture(scope="session")
def _spare_cassandra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.CassandraServer]:
    server = servers.CassandraServer(tmp_path_factory.mktemp("spare_cassandra"))
    yield server
    server.stop()


@pytest.fixture
def spare_cassandra(
    _spare_cassandra: servers.CassandraServer,
) -> Iterator[servers.CassandraServer]:
    """Give a Cassandra node that a test may stop and kill: nobody else uses it meanwhile.

    Tests bring their own keyspaces.
    """
    _skip_where_missing("cassandra")
    if not _spare_cassandra.is_running:
        _spare_cassandra.start()
        _STARTED.append(_spare_cassandra)
    yield _spare_cassandra
    if _spare_cassandra.is_running:
        # A test that failed may have left it paused.
        _spare_cassandra.resume()


@pytest.fixture
def schema_registry(tmp_path: Path) -> Iterator[servers.ApicurioServer]:
    """Run a schema registry that the test may stop."""
    _skip_where_missing("apicurio")
    with servers.ApicurioServer(tmp_path / "apicurio") as server:
        yield server


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    """Run one embedded broker for the module."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def brokers(request: pytest.FixtureRequest) -> str:
    """Give the embedded broker, then real Kafka."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
async def processes(embedded: str, tmp_path: Path) -> AsyncIterator[Callable[..., Process]]:
    """Make processes; those that still run are ended with the test."""
    made: list[Process] = []

    def make(brokers: str = embedded, **settings: str) -> Process:
        made.append(Process(brokers, tmp_path / str(len(made)), **settings))
        return made[-1]

    yield make
    await asyncio.gather(*(asyncio.to_thread(process.close) for process in made))


@pytest.fixture
def broker() -> Iterator[str]:
    """Run an embedded broker of its own; give its bootstrap address."""
    with EmbeddedBroker() as running:
        yield running.bootstrap


def _skip_where_missing(name: servers.ServerName) -> None:
    reason = servers.why_missing(name)
    if reason is not None:
        pytest.skip(reason)


def _only_here(factory: pytest.TempPathFactory, name: str) -> None:
    """Fail if another process of the same run has started this server: groups do not hold.

    pytest-xdist 3.8 writes a group into a name that pytest 9.2 no longer goes by.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        mark = factory.getbasetemp().parent / f"{name}.started"
        assert not mark.exists(), f"two processes of this run want {name}"
        mark.touch()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Let one process run all tests of some servers, so that one server of each runs.

    Another one runs those that start servers of their own. Marks are there before tests are chosen
    by them. Long tests come first, in any order, so that no process waits for one at the end.
    """
    for item in items:
        if not _SERVERS.isdisjoint(getattr(item, "fixturenames", ())) or _needs_server(item):
            item.add_marker("server")
        shared = _shared_servers(item)
        if shared or _needs_server(item):
            item.add_marker(pytest.mark.xdist_group(shared or "servers of its own"))
    yield
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Leave imported modules and collected tests out of the collection of garbage: they stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the shared servers after their last test: they would take time to the end of the run.

    A process is given all tests of a group, one after the other.
    """
    group = item.get_closest_marker("xdist_group")
    if "PYTEST_XDIST_WORKER" not in os.environ or group is None:
        return
    following = nextitem and nextitem.get_closest_marker("xdist_group")
    if following != group:
        for server in _STARTED:
            server.stop()
        _STARTED.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Give a process of tests the variable that was taken out of its environment."""
    node.workerinput[REQUIRE] = REQUIRED


def _needs_server(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("kafka", "cassandra", "apicurio"))


def _shared_servers(item: pytest.Item) -> str:
    """Return which of the shared servers a test uses; empty for none."""
    callspec = getattr(item, "callspec", None)
    chosen = (
        {value for value in callspec.params.values() if isinstance(value, str)}
        if callspec
        else set()
    )
    names = {*getattr(item, "fixturenames", ()), *chosen}
    if not names.isdisjoint(_SECURE):
        return "secure servers"
    return "" if names.isdisjoint(_SHARED) else "servers"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test of a server a failed test if servers are required."""
    del call
    report = yield
    required = getattr(item.config, "workerinput", {}).get(REQUIRE, REQUIRED)
    if report.skipped and _needs_server(item) and required:
        report.outcome = "failed"
        report.longrepr = f"cannot skip {item.nodeid}: {REQUIRE}=1 is set; {report.longrepr}"
    return report
