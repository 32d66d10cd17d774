"""The HTTP server under the query endpoint: limits of connections, and the form of HTTP errors.

aiohttp's own keeps a silent connection for an hour and one whose reader reads nothing for ever,
with the answer in memory, bounds neither their number nor the size of a head, and answers
bytes that are not HTTP in plain text. Here

- a connection has a time for the head of its request, and its head a size in all; a head that has
  begun has a shorter one, however its bytes come;
- an answer that nobody reads is dropped, and of too many that wait the one that waits longest;
- past the most connections, in all or of one address, the one goes that has been silent longest,
  TLS handshakes first, else the one whose answer has waited longest; only if all are being answered
  a new one is refused. They are fewer than the files that the process may have open;
- a request that cannot be read is answered with a problem, as every other error;
- a client that asks for another protocol, as Java's client does, is answered, and
  comes back anew: aiohttp would read nothing more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from app.peers.wire import ANSWER_BYTES_MAX
from app.web.guard import REQUEST_LIMITS, problem
from app.web.listener import files_limit

CONNECTIONS_MAX = 512
"""Connections beside those of followers, which have a limit of their own. Each needs a file
descriptor, of which many systems give a process 1,024."""

SILENT_S_MAX = 75.0
"""Time of a connection for the head of a request, the first or the next one."""

HEAD_S_MAX = 20.0
"""Time for the head of a request, from its first byte to its last."""

LINGER_S_MAX = 10.0
"""Time for which the rest of a body that nobody asked for is read, as a whole."""

ADDRESS_SHARE = 0.5
"""The share of all connections that those of one address may be: readers behind one proxy have an
address in common, so it is a large share."""

FILES_RESERVED = 512
"""File descriptors that connections leave to the rest of the process: stores, logs, brokers."""

WARN_AGAIN_S = 60.0

REASONS = ("full", "address", "files", "handshake", "head", "untaken")
"""Why connections are refused or ended: too many in all, or of one address; no file descriptor; a
handshake that failed or was too slow; a late head; an answer that nobody reads."""

HEAD_BYTES_MAX = 192 * 1024
"""Bytes of path, query and all headers; twice the largest of both."""

UNTAKEN_S_MAX = 60.0
"""Time in which a reader may read nothing of an answer. Buffers of the system lie between: progress
of a reader is seen here by the megabyte on one machine, by less over a network."""

UNTAKEN_BYTES_MAX = ANSWER_BYTES_MAX
"""Bytes of all answers that wait for their readers. The largest page is some 40 MB, of keys of four
kilobytes; most are below 3."""

CHECK_S = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Runner(web.AppRunner):
    """Runs an application, with ``followers_max`` streams at once, on a :class:`Server`."""

    def __init__(self, app: web.Application, followers_max: int) -> None:
        super().__init__(app, access_log=None)
        self._followers_max = followers_max
        self.counts = Counts()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler, request_factory=made.request_factory, access_log=None,
            connections_max=connections_max(self._followers_max, files_limit()),
            counts=self.counts, keepalive_timeout=SILENT_S_MAX, lingering_time=LINGER_S_MAX,
            **REQUEST_LIMITS,
        )  # fmt: skip


def connections_max(followers_max: int, files_max: int) -> int:
    """Return how many connections there may be beside the other files of a process."""
    wanted = CONNECTIONS_MAX + followers_max
    return min(wanted, max(files_max - FILES_RESERVED, files_max // 4))


@dataclasses.dataclass(slots=True)
class Counts:
    """Connections of one endpoint: those that are open, handshakes included; refusals by reason."""

    open: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass(slots=True, eq=False)
class Slot:
    """The slot of a connection, from the moment that it is accepted.

    Attributes:
        network: the address, or the network of it, that it counts for; empty once it is left.
        task: the task that makes the connection, until that is done.
        connection: the connection, from then on.
    """

    network: str
    task: asyncio.Task[None] | None = None
    connection: Connection | None = None


class Server(web.Server):
    """The connections of one endpoint; ``options`` are those of each :class:`Connection`.

    Attributes:
        opening: slots whose connection is not made yet, the one that has waited longest first.
        silent: those that wait for a request, the one that has waited longest first.
        sending: those whose answer waits for its reader, likewise.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        connections_max: int,
        request_factory: Any,
        counts: Counts,
        **options: Any,
    ) -> None:
        super().__init__(self._handle, request_factory=request_factory)
        self._handler = handler
        self._options = options
        self._connections_max = connections_max
        self._address_max = max(1, int(connections_max * ADDRESS_SHARE))
        self._networks: Counter[str] = Counter()
        self._warned_at = -math.inf
        self.counts = counts
        self.opening: dict[Slot, None] = {}
        self.silent: dict[Connection, None] = {}
        self.sending: dict[Connection, None] = {}
        self._check: asyncio.TimerHandle | None = None

    def admit(self, network: str) -> Slot | None:
        """Return the slot of a new connection; None if there is no room for it."""
        if self._networks[network] >= self._address_max:
            if not self._make_room("address", network):
                return None
        elif self.counts.open >= self._connections_max and not self._make_room("full"):
            return None
        slot = Slot(network)
        self.opening[slot] = None
        self._networks[network] += 1
        self.counts.open += 1
        return slot

    def leave(self, slot: Slot, *, handshake_failed: bool = False) -> None:
        """Free a slot; once is enough."""
        if slot.network:
            self.opening.pop(slot, None)
            self._networks[slot.network] -= 1
            if not self._networks[slot.network]:
                del self._networks[slot.network]
            self.counts.open -= 1
            self.counts.refused["handshake"] += handshake_failed
            slot.network = ""

    def lacks_files(self, error: OSError) -> None:
        """Make room because the system has no file descriptor or memory for one more."""
        self._make_room("files")
        now = asyncio.get_running_loop().time()
        if now > self._warned_at + WARN_AGAIN_S:
            self._warned_at = now
            log.warning(
                "cannot accept connections: %s; got %d of them; want a larger limit of open files"
                " (ulimit -n, LimitNOFILE=)", error.strerror, self.counts.open,
            )  # fmt: skip

    def refusal(self) -> bytes:
        """Return the answer to a connection that has no slot."""
        return _raw(
            problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"cannot answer: {self.counts.open} connections are being answered; ask again"
                " later, or another worker",
                {"Connection": "close", "Retry-After": "1"},
            )
        )

    def connection(self, slot: Slot) -> Connection:
        """Return the protocol for the connection of a slot."""
        slot.connection = Connection(self, self._options, slot)
        return slot.connection

    def _make_room(self, reason: str, network: str = "") -> bool:
        """End the connection that is missed least, of ``network`` if it is not empty; count it."""
        self.counts.refused[reason] += 1
        # Those whose connection may end, the first one first.
        waiting = (connection.slot for connection in (*self.silent, *self.sending))
        for slot in [*self.opening, *waiting]:
            if not network or slot.network == network:
                connection, task = slot.connection, slot.task
                self.leave(slot)
                if connection is not None and connection.transport is not None:
                    connection.end_now()
                elif task is not None and connection is not None:
                    task.cancel()
                return True
        return False

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("Connection", request.protocol)
        self.silent.pop(connection, None)
        return await self._handler(request)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Register a connection that waits for a request."""
        super().connection_made(handler, transport)
        connection = cast("Connection", handler)
        self.opening.pop(connection.slot, None)
        self.silent[connection] = None

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        connection = cast("Connection", handler)
        self.forget(connection)
        self.leave(connection.slot)

    def forget(self, connection: Connection) -> None:
        """Wait no more for a connection."""
        self.silent.pop(connection, None)
        self.sending.pop(connection, None)

    def begin_sending(self, connection: Connection) -> None:
        """Register an answer that waits for its reader from now on."""
        self.forget(connection)
        self.sending[connection] = None
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(CHECK_S, self._check_readers)

    def _check_readers(self) -> None:
        """Drop answers that nobody reads, and check again while answers wait."""
        loop = asyncio.get_running_loop()
        for connection in list(self.sending):
            if loop.time() - connection.taken_at() > UNTAKEN_S_MAX:
                self.counts.refused["untaken"] += 1
                connection.end_now()
        while sum(connection.untaken() for connection in self.sending) > UNTAKEN_BYTES_MAX:
            self.counts.refused["untaken"] += 1
            next(iter(self.sending)).end_now()
        self._check = loop.call_later(CHECK_S, self._check_readers) if self.sending else None


class Connection(web.RequestHandler):
    """One connection, and its slot."""

    __slots__ = (
        "_body", "_head_bytes", "_head_late", "_server", "_taken_at", "_untaken", "slot",
    )  # fmt: skip

    def __init__(self, server: Server, options: dict[str, Any], slot: Slot) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._server = server
        self.slot = slot
        self._head_late: asyncio.TimerHandle | None = None
        # The body of the last request whose head has come.
        self._body: StreamReader = EMPTY_PAYLOAD
        self._head_bytes = self._untaken = 0
        self._taken_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Read bytes; refuse a head of more than ``HEAD_BYTES_MAX``."""
        is_body = not self._body.is_eof()
        super().data_received(data)
        if self._messages:
            self._body = self._messages[-1][1]
        if self._messages or is_body:
            self._end_head()
            return
        if self._head_late is None:
            self._head_late = self._loop.call_later(HEAD_S_MAX, self._refuse_late_head)
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"cannot read the request: path, query and headers are too long; want at most"
                f" {HEAD_BYTES_MAX} bytes of all",
            )

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the time limit of the head."""
        self._end_head()
        super().connection_lost(exc)

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head_late is not None:
            self._head_late.cancel()
            self._head_late = None

    def _refuse_late_head(self) -> None:
        self._head_late = None
        # Bytes after the head of a request that is being answered are not a head yet.
        if self in self._server.silent:
            self._server.counts.refused["head"] += 1
            self.refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"cannot read the request: its head did not come whole within {HEAD_S_MAX:g} s",
            )

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, which counts as waiting until its reader has read it."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            # Raised before any handler was asked.
            resp = problem(resp.status, f"cannot answer: {resp.reason}")
        if request.headers.get("Upgrade"):
            # Bytes that follow on such a connection may not be read, though nothing was agreed.
            resp.force_close()
        self._untaken, self._taken_at = 0, asyncio.get_running_loop().time()
        self._server.begin_sending(self)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._server.forget(self)
            self._end_head()
            if self.transport is not None and not self.transport.is_closing():
                self._server.silent[self] = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are not HTTP with a problem, and end the connection."""
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
        """Log a failure; a broken body is not logged, because only its sender can mend it."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def taken_at(self) -> float:
        """Return the time of the loop's clock at which the reader last read some of its answer."""
        untaken = self.untaken()
        if untaken != self._untaken:
            self._untaken, self._taken_at = untaken, asyncio.get_running_loop().time()
        return self._taken_at

    def untaken(self) -> int:
        """Return how many bytes wait for the reader."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def end_now(self) -> None:
        """End the connection at once, and drop the answer that waits in it."""
        self._server.forget(self)
        if self.transport is not None:
            self.transport.abort()

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer whatever may come with a problem, and end the connection."""
        self._server.forget(self)
        if self.transport is not None:
            self.transport.write(_raw(problem(status, detail, {"Connection": "close"})))
        self.force_close()


def _raw(refusal: web.Response) -> bytes:
    """Return the bytes of a refusal that no request was read for."""
    body = cast("bytes", refusal.body)
    refusal.headers["Content-Length"] = str(len(body))
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in refusal.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
