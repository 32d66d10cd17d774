"""Causes of failed connections: brokers that are there, and say nothing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from app.kafka import connection_causes


async def test_a_silent_broker_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs, or a program of another protocol that waits: nobody closes a connection."""
    monkeypatch.setattr(connection_causes, "STEP_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        fault = await connection_causes.cause_of(f"127.0.0.1:{port}", {})
    assert str(fault) == (
        f"broker 127.0.0.1:{port} is there, and does not answer as Kafka within 0.2 s"
    )
    assert fault is not None
    assert not fault.is_final
