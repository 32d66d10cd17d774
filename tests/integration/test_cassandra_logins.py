"""A login to Cassandra that is refused while a worker runs, and taken again later."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tables.model.errors import ArchiveError
from tests.support import servers
from tests.support.common import small_map
from tests.support.reset_proxy import ResetProxy
from tests.support.secure_servers import SecureCassandra, checks
from tests.support.waiting import stays, until

archive_cassandra = pytest.importorskip("tables.archive.cassandra.archive")

PASSWORD = "the password of a role"  # noqa: S105 - of a role that lives for a test


@pytest.mark.slow
@pytest.mark.cassandra
async def test_a_node_that_refused_a_login_is_used_again_once_it_takes_it(
    secure_cassandra: SecureCassandra,
) -> None:
    """So it is after a password that was changed back, or roles that could not be read."""
    node, name = secure_cassandra, f"k{uuid.uuid4().hex[:8]}"

    async def run(statement: str) -> None:
        await asyncio.to_thread(node.run, statement)

    await run(f"CREATE ROLE {name} WITH PASSWORD = '{PASSWORD}' AND LOGIN = true")
    await run(f"GRANT CREATE ON ALL KEYSPACES TO {name}")
    (port,) = servers.free_ports(1)
    settings = archive_cassandra.CassandraSettings(
        hosts=("localhost",), port=port, keyspace=name, replication=1, username=name,
        password=PASSWORD, tls=checks(node.authority), request_timeout_s=5,
    )  # fmt: skip
    archive = archive_cassandra.CassandraArchive(settings)

    async def answers() -> bool:
        try:
            await archive.check()
        except ArchiveError:
            return False
        return True

    async def refuses() -> bool:
        return not await answers()

    async with ResetProxy(port, node.port) as proxy:
        await archive.open(small_map())
        assert await answers()
        await run(f"ALTER ROLE {name} WITH PASSWORD = 'another'")
        proxy.reset()
        await until(refuses, 30)
        # Long enough that each connection has been tried again, and refused.
        await stays(refuses, 5)
        await run(f"ALTER ROLE {name} WITH PASSWORD = '{PASSWORD}'")
        await until(answers, 60)
        await archive.close()
