"""Connections to brokers that are reset under load: every wait has an end, on both event loops."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
import uvloop
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError

from app.demo.embedded_broker import EmbeddedBroker
from app.kafka.aiokafka_private import report_broken_connections, write
from app.kafka.log import KafkaLog
from tables.model.errors import OutcomeUnknownError
from tests.support.reset_proxy import ResetProxy
from tests.support.servers import free_ports
from tests.support.waiting import beats

LOOPS = pytest.mark.parametrize(
    "loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
NewLoop = Callable[[], asyncio.AbstractEventLoop]
TOPIC = "journal"
WRITERS = 24
RESETS = 100
DEADLINE_S = 3.0
"""Deadline of an append; the short way and the producer have one each."""

END_S = 60.0


async def append_while_reset(broker: EmbeddedBroker, port: int) -> None:
    """Append with many writers while connections are reset; each append must end."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: errors.append(what))
    to = int(broker.bootstrap.rpartition(":")[2])
    async with ResetProxy(port, to) as proxy:
        brokers = f"127.0.0.1:{port}"
        admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
        await admin.start()
        await admin.create_topics([NewTopic(TOPIC, 8, 1)])
        await admin.close()
        log = KafkaLog(brokers, 1 << 20, repeatable={TOPIC}, append_deadline_s=DEADLINE_S)
        await log.start()
        appended = 0

        async def writer(number: int) -> None:
            nonlocal appended
            async for _ in beats(lambda: random.random() * 0.004):
                if proxy.resets >= RESETS:
                    return
                try:
                    async with asyncio.timeout(END_S):
                        await log.append(TOPIC, number % 8, b"x" * 200, ())
                except OutcomeUnknownError:
                    continue
                appended += 1

        async def resetter() -> None:
            async for _ in beats(lambda: random.uniform(0.02, 0.1)):
                if proxy.resets >= RESETS:
                    return
                proxy.reset()

        await asyncio.gather(resetter(), *(writer(number) for number in range(WRITERS)))
        assert appended > RESETS
        await log.stop()
    # A connection that breaks may leave an error that nobody asks for; nothing else may be left.
    exceptions = [what.get("exception") for what in errors if isinstance(what, dict)]
    assert [e for e in exceptions if not isinstance(e, KafkaConnectionError | OSError)] == []


@pytest.mark.slow
@LOOPS
def test_every_append_ends_while_connections_are_reset(loop: NewLoop) -> None:
    """Each of hundreds under load is appended, or its outcome is unknown."""
    report_broken_connections()
    (port,) = free_ports(1)
    with EmbeddedBroker(advertised=port) as broker, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(append_while_reset(broker, port))


@LOOPS
def test_a_write_to_a_closed_transport_is_a_broken_connection(embedded: str, loop: NewLoop) -> None:
    """Before anybody has told the client: its requests end at once."""
    report_broken_connections()

    async def broken() -> None:
        host, _, port = embedded.rpartition(":")
        connection = AIOKafkaConnection(host, int(port))
        await connection.connect()
        waiting = asyncio.get_running_loop().create_future()
        connection._requests.append((1, None, waiting))
        connection._writer.transport.abort()
        told = False
        while connection._writer is not None:
            try:
                write(connection, b"lost")
            except KafkaConnectionError as error:
                told = "is broken" in str(error)
            await asyncio.sleep(0)
        # asyncio drops the bytes that are written to such a transport.
        assert told is (loop is uvloop.new_event_loop)
        with pytest.raises(KafkaConnectionError):
            await waiting

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(broken())
