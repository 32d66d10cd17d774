"""The listening side of the query endpoint: accepts, bounds and TLS handshakes.

asyncio's own server counts a connection once its TLS handshake is done, gives a handshake a minute,
and stops for a second if no file descriptor is left. Here a connection has a slot from the
moment that it is accepted, and the server makes room before a file descriptor is missing:

    accept -> admitted? -> TLS handshake, HANDSHAKE_S_MAX at most -> Connection
                `- no: closed, without a handshake; in words if there is no TLS
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agents.supervised import supervised

if TYPE_CHECKING:
    from app.web.server import Server, Slot

HANDSHAKE_S_MAX = 10.0
"""Time for a TLS handshake, as a whole."""

SHUTDOWN_S_MAX = 5.0
"""Time for which a closed connection waits for the other side's end of TLS."""

BACKLOG = 128
ACCEPT_PAUSE_S = 0.1
"""Pause in accepting after the system had no file descriptor or memory for it."""

ADDRESS_PREFIX_V6 = 64
"""The bits of an IPv6 address that one network has: its hosts choose the others as they like."""

log = logging.getLogger(__name__)

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def raise_files_limit() -> None:
    """Raise the soft limit of open files to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # A system may refuse a limit that it calls unlimited.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def files_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


class Site(web.BaseSite):
    """A TCP address that a :class:`app.web.server.Runner`, which was set up, answers at.

    ``failed`` is called with the error if accepting fails: nobody could ask the worker any more.
    """

    __slots__ = ("_failed", "_host", "_port")

    def __init__(
        self,
        runner: Any,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._failed = failed
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        """The URL of it."""
        return f"{'https' if self._ssl_context else 'http'}://{self._host}:{self._port}"

    async def start(self) -> None:
        """Bind and begin to accept.

        Raises:
            OSError: the address cannot be used.
        """
        await super().start()
        server: Any = self._runner.server
        listener: Any = Listener(server, self._ssl_context, self._failed)
        self._server = listener
        await listener.start(self._host, self._port)


class Listener:
    """Accepts for a server; to aiohttp it is the ``asyncio.Server`` of a site."""

    def __init__(
        self, server: Server, tls: ssl.SSLContext | None, failed: Callable[[BaseException], None]
    ) -> None:
        self._failed = failed
        self._server = server
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.sockets: list[socket.socket] = []

    async def start(self, host: str, port: int) -> None:
        """Bind to all addresses of a host."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                self.sockets.append(_bound(family, kind, protocol, address))
        except OSError:
            self.close()
            raise
        for listening in self.sockets:
            task = asyncio.create_task(supervised(self._accept(listening), self._failed))
            self._keep(task)

    def close(self) -> None:
        """Accept no more, and end handshakes."""
        for task in self._tasks:
            task.cancel()
        for listening in self.sockets:
            listening.close()
        self.sockets = []

    async def wait_closed(self) -> None:
        """Wait until nothing of it runs."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._server.lacks_files(error)
                # Other errors are of a connection that has gone meanwhile.
                await asyncio.sleep(ACCEPT_PAUSE_S if error.errno in _EXHAUSTED else 0)
                continue
            slot = self._server.admit(network_of(str(address[0])))
            if slot is None:
                self._refuse(accepted)
                continue
            task = loop.create_task(supervised(self._open(accepted, slot), self._failed))
            slot.task = task
            task.add_done_callback(functools.partial(_close_unused, accepted, slot))
            self._keep(task)

    async def _open(self, accepted: socket.socket, slot: Slot) -> None:
        """Make a connection of an accepted socket; it leaves its slot when it ends."""
        if not slot.network:
            # It was ended, to make room, before it began.
            accepted.close()
            return
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {
                "ssl": self._tls,
                "ssl_handshake_timeout": HANDSHAKE_S_MAX,
                "ssl_shutdown_timeout": SHUTDOWN_S_MAX,
            }
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._server.connection(slot), accepted, **options
            )
        except OSError:
            # TLS errors and a handshake past its time are of that kind too.
            self._server.leave(slot, handshake_failed=True)
        except Exception:
            # Whatever one client does, others are accepted.
            log.exception("cannot open a connection that was accepted")
            self._server.leave(slot, handshake_failed=True)
        except BaseException:
            self._server.leave(slot)
            raise
        finally:
            slot.task = None

    def _refuse(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is None:
                accepted.send(self._server.refusal())
                accepted.shutdown(socket.SHUT_WR)
        accepted.close()


def _close_unused(accepted: socket.socket, slot: Slot, _: asyncio.Task[None]) -> None:
    """Close an accepted socket if its task was ended before it began; else a transport has it."""
    if slot.connection is None:
        accepted.close()


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def network_of(host: str) -> str:
    """Return the network that connections are counted by: an IPv4 address, or an IPv6 network."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, ADDRESS_PREFIX_V6), strict=False))
