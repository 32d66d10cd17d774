"""The HTTP server under the query endpoint: what connections may take, and how errors below look.

aiohttp's own keeps a silent connection for an hour and one whose reader takes nothing for ever,
with the answer in memory, bounds neither how many there are nor what a head has in all, and answers
what is no HTTP in plain text. Here

- a connection has a time for the head of its request, and its head a size in all;
- an answer that nobody takes is let go, and of too many that wait the one that waits longest;
- past the most connections the one goes that has been silent longest, else the one whose answer has
  waited longest; only where all are being answered a new one is refused;
- what cannot be read is answered with a problem, as everything else;
- who asks for another protocol, as Java's client does, is answered, and comes back anew: aiohttp
  would read nothing more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web

from app.web_guard import REQUEST_LIMITS, problem

CONNECTIONS_MAX = 512
"""Beside those of followers, which have a limit of their own. Each takes a file descriptor, of
which many systems give a process 1,024."""

SILENT_S_MAX = 75.0
"""How long a connection may take for the head of a request, the first or the next one."""

HEAD_BYTES_MAX = 192 * 1024
"""Of path, query and all headers; twice the largest of both."""

UNTAKEN_S_MAX = 60.0
"""How long a reader may take nothing of an answer. Buffers of the system lie between: what a reader
takes is seen here by the megabyte on one machine, by less over a network."""

UNTAKEN_BYTES_MAX = 128 << 20
"""Of all answers that wait for their readers. The largest page is some 40 MB, of keys of four
kilobytes; most are below 3."""

CHECK_S = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Runner(web.AppRunner):
    """Runs an application on a :class:`Server`.

    Args:
        app: the application.
        followers_max: how many streams it may have at once.
    """

    def __init__(self, app: web.Application, followers_max: int) -> None:
        super().__init__(app, access_log=None)
        self._followers_max = followers_max

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler, request_factory=made.request_factory, access_log=None,
            connections_max=CONNECTIONS_MAX + self._followers_max,
            keepalive_timeout=SILENT_S_MAX, **REQUEST_LIMITS,
        )  # fmt: skip


class Server(web.Server):
    """The connections of one endpoint.

    Args:
        handler: answers a request.
        connections_max: how many there may be.
        request_factory: makes requests; aiohttp's own.
        options: of each :class:`Connection`.

    Attributes:
        silent: those that wait for a request, the one that has waited longest first.
        sending: those whose answer waits for its reader, likewise.
    """

    def __init__(
        self, handler: Handler, *, connections_max: int, request_factory: Any, **options: Any
    ) -> None:
        super().__init__(self._handle, request_factory=request_factory)
        self._handler = handler
        self._options = options
        self._connections_max = connections_max
        self.silent: dict[Connection, None] = {}
        self.sending: dict[Connection, None] = {}
        self._check: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """Return what takes a new connection."""
        return Connection(self, self._options)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("Connection", request.protocol)
        self.silent.pop(connection, None)
        connection.reads_body = request.body_exists
        return await self._handler(request)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Make room for one more."""
        super().connection_made(handler, transport)
        connection = cast("Connection", handler)
        if len(self.connections) > self._connections_max:
            leaving = next(iter(self.silent or self.sending), None)
            if leaving is None:
                connection.refuse(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"cannot answer: {self._connections_max} connections are being answered; ask"
                    " again later, or another worker",
                )
                return
            leaving.let_go()
        self.silent[connection] = None

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self.forget(cast("Connection", handler))

    def forget(self, connection: Connection) -> None:
        """Wait no more for a connection."""
        self.silent.pop(connection, None)
        self.sending.pop(connection, None)

    def begin_sending(self, connection: Connection) -> None:
        """Take note of an answer that waits for its reader from now on."""
        self.forget(connection)
        self.sending[connection] = None
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(CHECK_S, self._look)

    def _look(self) -> None:
        """Let go what is not taken, and look again while there is anything to look at."""
        loop = asyncio.get_running_loop()
        for connection in list(self.sending):
            if loop.time() - connection.taken_at() > UNTAKEN_S_MAX:
                connection.let_go()
        while sum(connection.untaken() for connection in self.sending) > UNTAKEN_BYTES_MAX:
            next(iter(self.sending)).let_go()
        self._check = loop.call_later(CHECK_S, self._look) if self.sending else None


class Connection(web.RequestHandler):
    """One connection.

    Attributes:
        reads_body: whether what comes may be the body of the request that is being answered.
    """

    __slots__ = ("_head_bytes", "_server", "_taken_at", "_untaken", "reads_body")

    def __init__(self, server: Server, options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._server = server
        self.reads_body = False
        self._head_bytes = self._untaken = 0
        self._taken_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Take bytes, of a head no more than a bound in all."""
        super().data_received(data)
        if self._messages or self.reads_body:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"cannot read the request: path, query and headers are too long; want at most"
                f" {HEAD_BYTES_MAX} bytes of all",
            )

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer while its reader takes it."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            # Raised before any handler was asked.
            resp = problem(resp.status, f"cannot answer: {resp.reason}")
        if request.headers.get("Upgrade"):
            # What follows on such a connection may not be read, though nothing was agreed.
            resp.force_close()
        self._untaken, self._taken_at = 0, asyncio.get_running_loop().time()
        self._server.begin_sending(self)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._server.forget(self)
            self.reads_body, self._head_bytes = False, 0
            if self.transport is not None and not self.transport.is_closing():
                self._server.silent[self] = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP with a problem, and end the connection."""
        if request.writer.output_size:
            raise ConnectionError("cannot answer anew: an answer has begun") from exc
        why = (message or "no cause is known").splitlines()[0].rstrip(":.")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("cannot answer: %s", why, exc_info=exc)
            why = "a fault in this worker; its log has the cause"
        response = problem(status, f"cannot read the request: {why}; want HTTP/1.1")
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log what failed; that a body is broken, which its sender is told, is no fault of ours."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def taken_at(self) -> float:
        """Return when the reader was last seen to take some of its answer, by the loop's clock."""
        untaken = self.untaken()
        if untaken != self._untaken:
            self._untaken, self._taken_at = untaken, asyncio.get_running_loop().time()
        return self._taken_at

    def untaken(self) -> int:
        """Return how many bytes wait for the reader."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def let_go(self) -> None:
        """End the connection at once, with what waits in it."""
        self._server.forget(self)
        if self.transport is not None:
            self.transport.abort()

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer whatever may come with a problem, and end the connection."""
        self._server.forget(self)
        refusal = problem(status, detail, {"Connection": "close"})
        body = cast("bytes", refusal.body)
        refusal.headers["Content-Length"] = str(len(body))
        lines = [f"HTTP/1.1 {status} {status.phrase}"]
        lines += [f"{name}: {value}" for name, value in refusal.headers.items()]
        if self.transport is not None:
            self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.force_close()
