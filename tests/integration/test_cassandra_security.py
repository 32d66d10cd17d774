"""Cassandra with TLS, logins and rights: a worker's needs, and how it ends without them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.config.settings import Settings
from app.verify import archive as archive_of_verify
from tables.archive.identity import History
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveAwayError, ArchiveError
from tables.model.layer import Accumulator
from tests import ROOT
from tests.support import servers
from tests.support.cassandra_rows import LAYER, map_of, rows, times
from tests.support.common import flight
from tests.support.pki import Authority, Certificate
from tests.support.reset_proxy import ResetProxy
from tests.support.secure_servers import SecureCassandra, checks
from tests.support.waiting import stays, until
from tests.support.worker_process import HOUR_MS, SECONDS_MAX, Process, apply, last_words, unready

archive_cassandra = pytest.importorskip("tables.archive.cassandra.archive")
register = pytest.importorskip("tables.archive.cassandra.register")

log = logging.getLogger(__name__)

PASSWORD = "the password of a role"  # noqa: S105 - of roles that live for a test
NAME = "cassandra.example"
ROLES = ("worker", "maker", "reader")
END_S_MAX = 15.0
"""Time within which a fault that no waiting mends ends a worker, on a busy machine too."""


@pytest.fixture(scope="module")
def authority(secure_cassandra: SecureCassandra) -> Authority:
    """Give the authority that signs the nodes and clients."""
    return secure_cassandra.authority


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that nobody here trusts."""
    return Authority(tmp_path_factory.mktemp("foreign"), "another")


@pytest.fixture(scope="module")
def node(secure_cassandra: SecureCassandra) -> SecureCassandra:
    """Give the node whose certificate has its name alone, with a role for each of ``ROLES``."""
    for role in ROLES:
        secure_cassandra.run(
            f"CREATE ROLE IF NOT EXISTS {role} WITH PASSWORD = '{PASSWORD}' AND LOGIN = true",
        )
    secure_cassandra.run("CREATE ROLE IF NOT EXISTS locked WITH PASSWORD = 'x' AND LOGIN = false")
    secure_cassandra.run("GRANT CREATE ON ALL KEYSPACES TO maker")
    return secure_cassandra


def settings_of(node: SecureCassandra, authority: Authority, **changes: Any) -> Any:
    """Return how a worker reaches a node: by its name, in a keyspace of its own."""
    settings = archive_cassandra.CassandraSettings(
        hosts=("localhost",),
        port=node.port,
        keyspace=f"k{uuid.uuid4().hex[:12]}",
        replication=1,
        username="worker",
        password=PASSWORD,
        tls=checks(authority),
        request_timeout_s=60,
    )
    return dataclasses.replace(settings, **changes)


async def refusal(settings: Any, themap: Any = None) -> str:
    """Return why an archive cannot be opened, which is told for good and soon."""
    archive = archive_cassandra.CassandraArchive(settings)
    began_s = time.monotonic()
    try:
        with pytest.raises(ArchiveError) as caught:
            await archive.open(themap or map_of(LAYER))
    finally:
        await archive.close()
    took_s = time.monotonic() - began_s
    log.info("%.1f s: %s", took_s, caught.value)
    assert not isinstance(caught.value, ArchiveAwayError), "it would be tried for ever"
    assert took_s < END_S_MAX
    return str(caught.value)


async def opened(settings: Any, themap: Any = None) -> Any:
    """Return an open archive."""
    archive = archive_cassandra.CassandraArchive(settings)
    try:
        await archive.open(themap or map_of(LAYER))
    except BaseException:
        await archive.close()
        raise
    return archive


async def works(archive: Any) -> None:
    """Write, read, and remember a journal."""
    frame = rows(["JFK"], [0])
    await archive.write(LAYER, frame, times(frame))
    assert (await archive.read(LAYER, CellRange(0, HOUR_MS))).height == 1
    mine = History("0123456789abcdef")
    assert await archive.remember("raw", 0, mine) == mine
    assert await archive.history("raw", 0) == mine


def grant(node: SecureCassandra, rights: str, keyspace: str, role: str = "worker") -> None:
    """Give a role rights on a keyspace."""
    for right in rights.split():
        node.run(f"GRANT {right} ON KEYSPACE {keyspace} TO {role}")


def revoke(node: SecureCassandra, right: str, keyspace: str) -> None:
    """Take a right on a keyspace from the worker."""
    node.run(f"REVOKE {right} ON KEYSPACE {keyspace} FROM worker")


# Names and certificates.


@pytest.mark.cassandra
async def test_a_node_is_checked_against_the_host_that_was_given(
    node: SecureCassandra, authority: Authority
) -> None:
    """Its certificate lacks the address that it gossips, as those of a cluster manager do."""
    settings = settings_of(node, authority, username="maker")
    archive = await opened(settings)
    await works(archive)
    await archive.close()
    with archive_of_verify.CassandraRows(verifying(settings, authority)) as found:
        frames = await asyncio.to_thread(lambda: list(found.frames(map_of(LAYER), LAYER)))
    assert [frame["key_origin"].to_list() for frame in frames] == [["JFK"]]


def verifying(settings: Any, authority: Authority) -> Settings:
    """Return the settings of a command for those of an archive."""
    return Settings(
        archive="cassandra",
        cassandra_hosts=settings.hosts,
        cassandra_port=settings.port,
        cassandra_keyspace=settings.keyspace,
        cassandra_ca_file=str(authority.ca_file),
        cassandra_username=settings.username,
        cassandra_password=settings.password,
    )


@pytest.mark.cassandra
async def test_a_node_s_certificate_must_have_the_name_that_is_set(
    node: SecureCassandra, authority: Authority
) -> None:
    """Whatever hosts are given; another name than the certificate's is refused, and told."""
    settings = settings_of(
        node, authority, hosts=("127.0.0.1",), username="maker", tls_name="localhost"
    )
    archive = await opened(settings)
    await archive.close()
    words = await refusal(dataclasses.replace(settings, hosts=("localhost",), tls_name=NAME))
    assert f"the certificate of 127.0.0.1 is not for {NAME}; got one for localhost; " in words
    words = await refusal(dataclasses.replace(settings, tls_name=""))
    assert (
        "is not for 127.0.0.1; got one for localhost; want such a name in cassandra_hosts" in words
    )
    assert "or in cassandra_tls_name if all nodes have it" in words


@pytest.mark.cassandra
@pytest.mark.parametrize("name", ["", "localhost"])
async def test_a_node_that_others_gossip_is_checked_too(
    node: SecureCassandra, authority: Authority, name: str
) -> None:
    """Against its address, which the certificate lacks, or the name of all nodes."""
    (port,) = servers.free_ports(1)
    settings = settings_of(node, authority, username="maker", tls_name=name)
    # A change of the schema waits for all nodes, also for one that nobody reaches.
    await (await opened(settings)).close()
    (version,) = node.run("SELECT schema_version FROM system.local")[0]
    values = (
        f"'127.0.0.2', {port}, 'datacenter1', 'rack1', {uuid.uuid4()}, '127.0.0.2', {port}, "
        f"'5.0.4', {version}, {{'17'}}"
    )
    node.run(
        "INSERT INTO system.peers_v2 (peer, peer_port, data_center, rack, host_id, native_address,"  # noqa: S608 - names of this test
        f" native_port, release_version, schema_version, tokens) VALUES ({values})",
    )
    archive = archive_cassandra.CassandraArchive(settings)
    try:
        async with ResetProxy(port, node.port, "127.0.0.2") as proxy:
            await archive.open(map_of(LAYER))

            async def decided() -> bool:
                return "127.0.0.2" in pools(archive) if name else proxy.connections > 1

            await until(decided, SECONDS_MAX)
            assert ("127.0.0.2" in pools(archive)) is bool(name)
    finally:
        await archive.close()
        gone = f"peer = '127.0.0.2' AND peer_port = {port}"
        node.run(f"DELETE FROM system.peers_v2 WHERE {gone}")  # noqa: S608 - likewise


def pools(archive: Any) -> set[str]:
    """Return the addresses of the nodes that an archive has connections to."""
    return {host.endpoint.address for host in archive._session.get_pool_state()}


@pytest.mark.cassandra
async def test_a_node_of_another_authority_ends_it(
    node: SecureCassandra, authority: Authority, foreign: Authority
) -> None:
    """The setting to look at is named; so it is if the system's authorities are used."""
    for trusted in (foreign, None):
        words = await refusal(settings_of(node, authority, tls=checks(trusted)))
        assert "is not signed by an authority that this client trusts" in words
        assert "set cassandra_ca_file" in words


async def test_an_expired_certificate_ends_it(authority: Authority, tmp_path: Path) -> None:
    """The handshake ends with it, before anything of Cassandra's is said."""
    certificate = authority.issue(f"expired-{tmp_path.name}", expired=True)
    with tls_listener(certificate) as port:
        settings = archive_cassandra.CassandraSettings(
            hosts=("localhost",), port=port, tls=checks(authority)
        )
        words = await refusal(settings)
    assert "the certificate of 127.0.0.1 has expired; renew it on the node" in words


@contextlib.contextmanager
def tls_listener(certificate: Certificate) -> Iterator[int]:
    """Show a certificate to whoever comes; give the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert_file, certificate.key_file)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, contextlib.suppress(OSError):
                        context.wrap_socket(client, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.cassandra
async def test_a_client_without_tls_at_a_node_with_it_ends(
    node: SecureCassandra, mutual_cassandra: SecureCassandra, authority: Authority
) -> None:
    """The node closes the connection without a word."""
    for one in (node, mutual_cassandra):
        words = await refusal(settings_of(one, authority, tls=None))
        assert f"port {one.port} of 127.0.0.1 speaks TLS and this client does not" in words
        assert "set cassandra_tls, or cassandra_ca_file" in words


@pytest.mark.cassandra
async def test_a_client_with_tls_at_a_node_without_it_ends(
    cassandra_server: servers.CassandraServer, foreign: Authority
) -> None:
    """It is told that the port speaks no TLS."""
    settings = archive_cassandra.CassandraSettings(
        hosts=("localhost",), port=cassandra_server.port, tls=checks(foreign)
    )
    words = await refusal(settings)
    assert f"port {cassandra_server.port} of 127.0.0.1 speaks no TLS; set cassandra_port" in words


@pytest.mark.cassandra
async def test_a_node_that_wants_certificates_gets_one_it_knows_or_ends_it(
    mutual_cassandra: SecureCassandra, authority: Authority, foreign: Authority
) -> None:
    """None, one of another authority, and a good one; and never under another name."""
    settings = settings_of(
        mutual_cassandra, authority, tls_name=NAME, username="cassandra",
        password="cassandra",  # noqa: S106 - as Cassandra is shipped
    )  # fmt: skip
    for changes, told in (
        ({}, "127.0.0.1 wants a certificate of this client"),
        (
            with_certificate(authority, foreign.issue("client")),
            "127.0.0.1 refuses the certificate of this",
        ),
    ):
        words = await refusal(dataclasses.replace(settings, **changes))
        assert told in words
        assert "set cassandra_cert_file and cassandra_key_file to one that" in words
    settings = dataclasses.replace(
        settings, **with_certificate(authority, authority.issue("client"))
    )
    archive = await opened(settings)
    await works(archive)
    await archive.close()
    words = await refusal(dataclasses.replace(settings, tls_name=""))
    assert f"is not for localhost; got one for {NAME}; " in words


def with_certificate(authority: Authority, own: Certificate) -> dict[str, Any]:
    """Return the options with which a client shows a certificate."""
    return {"tls": checks(authority, own), "tls_shows_certificate": True}


# Logins.


@pytest.mark.cassandra
@pytest.mark.parametrize(
    ("username", "password", "told"),
    [
        ("worker", "another", "refuses the login of user worker: "),
        ("nobody", PASSWORD, "refuses the login of user nobody: "),
        ("locked", "x", "refuses the login of user locked: "),
        (None, None, "wants a login and none is set; set cassandra_username"),
    ],
)
async def test_a_login_that_is_refused_ends_it(
    node: SecureCassandra, authority: Authority, username: Any, password: Any, told: str
) -> None:
    """The user and the settings are named, the password is not."""
    words = await refusal(settings_of(node, authority, username=username, password=password))
    assert f"Cassandra {told}" in words
    assert "cassandra_username and " in words
    assert password is None or password == "x" or password not in words  # noqa: S105


# Rights.


@pytest.mark.cassandra
async def test_select_and_modify_are_all_that_a_worker_needs(
    node: SecureCassandra, authority: Authority
) -> None:
    """Another role makes keyspace and tables; the worker owns none of them."""
    settings = settings_of(node, authority)
    await (await opened(dataclasses.replace(settings, username="maker"))).close()
    grant(node, "SELECT MODIFY", settings.keyspace)
    archive = await opened(settings)
    await works(archive)
    await archive.close()
    listed = node.run("LIST ALL PERMISSIONS OF worker")
    has = {row.permission for row in listed if settings.keyspace in row.resource}
    assert has == {"SELECT", "MODIFY"}


@pytest.mark.cassandra
async def test_what_is_missing_is_told_with_the_right_to_make_it(
    node: SecureCassandra, authority: Authority
) -> None:
    """A keyspace, a table, a column, in this order; map apply by another role makes each."""
    settings = settings_of(node, authority)
    maker = dataclasses.replace(settings, username="maker")
    space = settings.keyspace
    words = await refusal(settings)
    assert (
        f"keyspace {space} must be made, and Cassandra refuses: user worker has no CREATE" in words
    )
    assert "on <all keyspaces>" in words
    assert (
        "run `python -m app map apply` with the cassandra_username of a role that has it" in words
    )

    node.run(
        f"CREATE KEYSPACE {space} WITH replication ="
        " {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}",
    )
    grant(node, "SELECT MODIFY", space)
    words = await refusal(settings)
    assert f"table {space}.flights_hours must be made" in words
    assert f"user worker has no CREATE permission on <all tables in {space}>" in words

    grant(node, "SELECT MODIFY", space, "maker")
    await (await opened(maker)).close()
    await (await opened(settings)).close()

    more = (*LAYER.accumulators, Accumulator("max", "delay", "int"))
    wider = map_of(msgspec.structs.replace(LAYER, accumulators=more))
    words = await refusal(settings, wider)
    assert f"columns max_delay of table {space}.flights_hours must be made" in words
    assert "user worker has no ALTER permission" in words
    await (await opened(maker, wider)).close()
    await (await opened(settings, wider)).close()
    await (await opened(settings)).close()


@pytest.mark.cassandra
async def test_a_right_that_is_taken_away_is_named_with_its_table(
    node: SecureCassandra, authority: Authority
) -> None:
    """Writes, reads and deletion are refused, and work again with the right."""
    settings = settings_of(node, authority)
    space = settings.keyspace
    await (await opened(dataclasses.replace(settings, username="maker"))).close()
    grant(node, "SELECT MODIFY", space)
    archive = await opened(settings)
    await works(archive)
    frame, cells = rows(["JFK"], [0]), CellRange(0, HOUR_MS)
    for right, ask in (
        ("MODIFY", lambda: archive.write(LAYER, frame, times(frame))),
        ("SELECT", lambda: archive.read(LAYER, cells)),
    ):
        revoke(node, right, space)
        error = await changed(ask, fails=True)
        assert not isinstance(error, ArchiveAwayError)
        told = f"Cassandra refuses: user worker has no {right} permission on <table {space}."
        assert told in str(error)
        grant(node, right, space)
        await changed(ask, fails=False)
    await archive.close()
    with pytest.raises(ArchiveError, match="user worker has no DROP permission on <table"):
        await asyncio.to_thread(register.wipe_keyspace, settings, "flights")


async def changed(ask: Callable[[], Awaitable[Any]], *, fails: bool) -> ArchiveError | None:
    """Ask until that fails, or no longer does, as nodes remember rights; return the last error."""
    errors: list[ArchiveError | None] = []

    async def has_changed() -> bool:
        try:
            await ask()
            errors.append(None)
        except ArchiveError as error:
            errors.append(error)
        return bool(errors[-1]) is fails

    await until(has_changed)
    return errors[-1]


# Workers.


def worker_settings(settings: Any, authority: Authority) -> dict[str, str]:
    """Return the settings of a worker for those of its archive."""
    return {
        "archive": "cassandra",
        "cassandra_hosts": ",".join(settings.hosts),
        "cassandra_port": str(settings.port),
        "cassandra_keyspace": settings.keyspace,
        "cassandra_replication": "1",
        "cassandra_ca_file": str(authority.ca_file),
        "cassandra_username": settings.username,
        "cassandra_password": settings.password,
    }


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_worker_that_is_refused_ends_with_the_cause(
    node: SecureCassandra,
    authority: Authority,
    foreign: Authority,
    processes: Callable[..., Process],
) -> None:
    """Its last words are all that an operator needs, and no traceback is among the others."""
    good = worker_settings(settings_of(node, authority), authority)
    for changes, told in (
        ({"cassandra_ca_file": str(foreign.ca_file)}, "set cassandra_ca_file"),
        ({"cassandra_tls_name": NAME}, "or in cassandra_tls_name if all nodes have it"),
        ({"cassandra_password": "another"}, "refuses the login of user worker"),
        ({}, "must be made, and Cassandra refuses: user worker has no CREATE permission"),
    ):
        worker = processes(**(good | changes))
        await apply(worker)
        began_s = time.monotonic()
        worker.start()
        assert await worker.ended() == 1
        log.info("%.1f s: %s", time.monotonic() - began_s, last_words(worker))
        assert told in last_words(worker)
        assert PASSWORD not in worker.log()


def map_apply(worker: Process, username: str) -> None:
    """Make a worker's topics and tables as another role."""
    settings = worker.settings | {"cassandra_username": username}
    environment = {k: v for k, v in os.environ.items() if "TREASURE_MAP" not in k}
    environment |= {f"TREASURE_MAP_{k.upper()}": v for k, v in settings.items()}
    made = subprocess.run(
        [sys.executable, "-m", "app", "map", "apply", str(worker.map_file)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "archive: 2 tables in keyspace" in made.stdout


def archived(worker: Process, layer: str) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the archive has taken cells of a layer."""

    async def there() -> bool:
        _, found = await worker.get("/v1/layers")
        return any(row["name"] == layer and row["archived_cells"] for row in found["layers"])

    return there


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_worker_without_rights_on_a_new_table_is_not_ready(
    node: SecureCassandra, authority: Authority, processes: Callable[..., Process]
) -> None:
    """The grants of a revision were not run, and nothing is written to its table yet."""
    settings = settings_of(node, authority)
    space = settings.keyspace
    worker = processes(**worker_settings(settings, authority))
    await asyncio.to_thread(map_apply, worker, "maker")
    for right in ("SELECT", "MODIFY"):
        for name in (f"{worker.map_name}_hour", "archives"):
            node.run(f"GRANT {right} ON TABLE {space}.{name} TO worker")
    worker.start()
    refused = unready(worker, "the archive refuses since ")

    async def told() -> bool:
        with contextlib.suppress(ConnectionError):
            return await refused()
        return False

    await until(told, SECONDS_MAX)
    await stays(refused, 5)
    _, state = await worker.get("/readyz")
    (reason,) = (r for r in state["reasons"] if r.startswith("the archive refuses since "))
    table = f"<table {space}.{worker.map_name}_day>"
    assert f"Cassandra refuses: user worker has no SELECT permission on {table}" in reason
    assert "the archive refuses; closed cells wait in tables and journal: " in worker.log()
    node.run(f"GRANT SELECT ON TABLE {space}.{worker.map_name}_day TO worker")
    await worker.ready()

    # The right to write shows at the first write. Refused ones, side by side, end without a trace.
    places = [(p, day, str(n)) for p in (0, 1) for day in range(8) for n in range(20)]
    sent = ((p, flight(day * 24 * HOUR_MS, "JFK", carrier)) for p, day, carrier in places)
    await worker.send(f"{worker.map_name}.raw", *sent)
    await until(refused, SECONDS_MAX)
    _, state = await worker.get("/readyz")
    assert f"user worker has no MODIFY permission on {table}" in str(state["reasons"])
    assert await worker.stop() == 0
    assert "never retrieved" not in worker.log()


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_worker_is_not_ready_while_its_writes_are_refused(
    node: SecureCassandra, authority: Authority, processes: Callable[..., Process]
) -> None:
    """Its reason names the right and the table until the grant; reads have words of their own.

    Neither emissions that have nothing to write nor another table's rows say that all is well.
    """
    settings = settings_of(node, authority)
    space = settings.keyspace
    worker = processes(**worker_settings(settings, authority), early_emit_ms="1000")
    await asyncio.to_thread(map_apply, worker, "maker")
    grant(node, "SELECT MODIFY", space)
    worker.start()
    await worker.ready()

    revoke(node, "MODIFY", space)
    raw = f"{worker.map_name}.raw"
    await worker.send(raw, *((p, flight(at * HOUR_MS)) for p in (0, 1) for at in (0, 49)))
    refused = unready(worker, "the archive refuses since ")
    await until(refused, SECONDS_MAX)
    node.run(f"GRANT MODIFY ON TABLE {space}.{worker.map_name}_day TO worker")
    await until(archived(worker, "day"), SECONDS_MAX)
    await stays(refused, 5)
    _, state = await worker.get("/readyz")
    log.info("%s", state["reasons"])
    (reason,) = (r for r in state["reasons"] if r.startswith("the archive refuses since "))
    table = f"<table {space}.{worker.map_name}_hour>"
    assert f"Cassandra refuses: user worker has no MODIFY permission on {table}" in reason
    assert "the archive refuses; closed cells wait in tables and journal: " in worker.log()
    grant(node, "MODIFY", space)
    await worker.ready()

    async def evicted() -> bool:
        _, found = await worker.get("/v1/layers")
        rows = {row["name"]: row for row in found["layers"]}
        return bool(rows["hour"]["archived_cells"] >= 2 and rows["hour"]["open_cells"] == 2)

    await until(evicted, SECONDS_MAX)
    revoke(node, "SELECT", space)
    await until(refused, SECONDS_MAX)
    status, problem = await worker.get(f"/v1/layers/hour/cells?from=0&to={HOUR_MS}")
    assert status == 503
    assert problem["detail"] == (
        "cannot read cells: the archive refuses to answer; the worker's log has the cause; "
        "ask again later"
    )
    assert f"user worker has no SELECT permission on {table}" in worker.log()
    grant(node, "SELECT", space)
    await worker.ready()
    assert await worker.stop() == 0
