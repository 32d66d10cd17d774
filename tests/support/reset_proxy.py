"""A proxy before a broker that resets connections, as firewalls and nodes that die do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Self


class ResetProxy:
    """Passes bytes between clients and one port of this machine, until :meth:`reset`.

    Attributes:
        connections: how many there were.
        resets: connections that were reset.
    """

    def __init__(self, port: int, to: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port
        self._to = to
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.resets = 0

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        self.reset()

    def reset(self) -> None:
        """Reset every connection: bytes under way in either direction are lost."""
        for writer in list(self._writers):
            place = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            self.resets += 1
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers.add(writer)
        try:
            await asyncio.gather(_pump(reader, to_broker), _pump(from_broker, writer))
        finally:
            self._writers.discard(writer)
            to_broker.transport.abort()
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
