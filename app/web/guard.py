"""The guard of the query endpoint: checks of callers, and the form of every refusal.

On loopback without a token anyone on this machine may read, but only under a name of this machine:
a page of another site that rebinds its own name to 127.0.0.1 (DNS rebinding) sends that name as
Host. If tokens are set a request carries one with the scope of its route, and requests between
workers carry a proof (``app.web.access``). Every refusal and failure is an
``application/problem+json`` document (RFC 9457).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import msgspec
import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from app.config.loopback import is_loopback
from app.config.settings import Settings
from app.host.reloads import Reloads
from app.trust.certificates import PemFiles, server_context
from app.web.access import CALLER, PEER, PROOF, Access, Refused, scopes
from tables.model.errors import (
    ArchiveDamagedError,
    ArchiveError,
    ArchiveRefusedError,
    PartialError,
    QueryError,
)
from tables.query.cell_query import UnknownLayerError
from treasure_map.answers import Problem

JSON, PROBLEM_TYPE = "application/json", "application/problem+json"
RETRY_AFTER_S = 1
REQUEST_LIMITS = {"max_line_size": 32_768, "max_field_size": 66_000}
"""The bytes of path and query, and of a header. A cursor has up to 24,576, and the id of a stream
up to 65,536."""

# Answers change with every cycle, hold data of the reader's own, and are never a page.
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_log = logging.getLogger(__name__)


class BusyError(Exception):
    """The query limit is reached; maps to HTTP 503."""


class NotAcceptableError(Exception):
    """The client accepts none of our formats; maps to HTTP 406."""


class DeadlineError(Exception):
    """A query took longer than it may; maps to HTTP 504."""


# The most special kind of error first.
_STATUSES: dict[type[Exception], HTTPStatus] = {
    UnknownLayerError: HTTPStatus.NOT_FOUND,
    QueryError: HTTPStatus.BAD_REQUEST,
    ArchiveDamagedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    ArchiveError: HTTPStatus.SERVICE_UNAVAILABLE,
    NotAcceptableError: HTTPStatus.NOT_ACCEPTABLE,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    PartialError: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
}


def encoded(value: object) -> bytes:
    """Return JSON of a value, which may be a struct of the client; unset fields are left out.

    msgspec alone writes floats from 1e16 on as ``1e16``, and clients have read ``1e+16`` so far.
    """
    return orjson.dumps(value, default=msgspec.to_builtins, option=orjson.OPT_NON_STR_KEYS)


def answer(value: object, status: int = HTTPStatus.OK) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=encoded(value), status=status, content_type=JSON, headers=HEADERS)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a refusal; ``detail`` gives the remedy.

    Bytes of a request that are not UTF-8, which come as surrogates, become question marks.
    """
    detail = detail.encode("utf-8", "replace").decode("utf-8")
    title = HTTPStatus(status).phrase
    refusal = Problem(type="about:blank", title=title, status=status, detail=detail)
    return web.Response(
        body=encoded(refusal),
        status=status,
        content_type=PROBLEM_TYPE,
        headers={**HEADERS, **(headers or {})},
    )


def ssl_context(settings: Settings, reloads: Reloads | None = None) -> ssl.SSLContext | None:
    """Return the TLS side of the query endpoint, None if no certificate is set.

    ``reloads`` reads certificate and key again when they change.

    Raises:
        SettingError: the certificate and key cannot be used.
    """
    if not settings.web_cert_file:
        return None
    files = PemFiles(
        "web", "", settings.web_cert_file, settings.web_key_file, settings.web_key_password_file
    )
    return server_context(files, reloads)


def guard(settings: Settings, access: Access) -> Middleware:
    """Return the middleware that checks callers and turns every error into a problem."""
    checks_host = not access.wants_token and is_loopback(settings.web_host)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if checks_host and not is_loopback(host_name(request.headers.get("Host", ""))):
            return problem(
                HTTPStatus.FORBIDDEN,
                "cannot answer: the Host header is not a name of this machine;"
                " want localhost or 127.0.0.1; ask under that name, or set web_token",
            )
        if (refused := await _entered(request, access)) is not None:
            is_unknown = refused.status == HTTPStatus.UNAUTHORIZED
            wants = {"WWW-Authenticate": "Bearer"} if is_unknown else None
            return problem(refused.status, refused.detail, wants)
        if not _is_utf_8(request.rel_url):
            return problem(
                HTTPStatus.BAD_REQUEST,
                "cannot answer: path or query are not UTF-8 once %XX are bytes; want them in UTF-8",
            )
        return await _answer_or_problem(request, handler)

    return middleware


async def _entered(request: web.Request, access: Access) -> Refused | None:
    """Note on a request its sender; return why it is refused, None if it is not refused."""
    caller = access.caller(request.headers)
    if caller is not None:
        request[CALLER] = caller
    resource = await _resource_of(request)
    if resource is None:
        return access.refusal("", caller)
    if (scope := scopes(request.app).get(resource.canonical)) is None:
        return Refused(
            HTTPStatus.FORBIDDEN, "cannot answer: this path has no scope, so nobody may ask it"
        )
    if scope != PEER:
        return access.refusal(scope, caller)
    found = access.peer(request, caller)
    if isinstance(found, Refused):
        return found
    if found is not None:
        request[PROOF] = found
    return None


async def _resource_of(request: web.Request) -> web.AbstractResource | None:
    """Return the resource of a request's path, whatever its method; None if there is none."""
    resource = request.match_info.route.resource
    if resource is not None or not isinstance(
        request.match_info.http_exception, web.HTTPMethodNotAllowed
    ):
        return resource
    for found in request.app.router.resources():
        _, allowed = await found.resolve(request)
        if allowed:
            return found
    return None


def host_name(host: str) -> str:
    """Return the name of a Host header without its port: ``[::1]:6066`` gives ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_utf_8(url: URL) -> bool:
    """Return whether path and query are UTF-8; aiohttp decodes other bytes to other letters."""
    try:
        for raw in (url.raw_path, url.raw_query_string):
            unquote_to_bytes(raw).decode()
    except UnicodeError:
        return False
    return True


async def _answer_or_problem(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except tuple(_STATUSES) as error:
        return _known_problem(error)
    except web.RequestPayloadError:
        return problem(
            HTTPStatus.BAD_REQUEST,
            "cannot answer: the body does not match Content-Encoding or Content-Length; want a"
            " whole body, or none",
        )
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return _http_problem(request, error)
    except Exception:  # noqa: BLE001 - the log has all of it; the reader gets no inner names
        _log.exception("cannot answer %s %s", request.method, request.path)
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "cannot answer: a fault in this worker; its log has the cause",
        )


def damaged_words(error: ArchiveDamagedError) -> str:
    """Return the reader's message about damaged rows, without names of files."""
    return (
        f"cannot read cells: archived rows are damaged; got {error.where or 'a query'}; ask for"
        " a range or keys without them; the worker's log names the files to restore"
    )


def unanswered_words(error: ArchiveError) -> str:
    """Return the reader's message about an archive that gives no rows, without its inner names."""
    if isinstance(error, ArchiveRefusedError):
        return "the archive refuses to answer; the worker's log has the cause"
    return "the archive does not answer now"


def _known_problem(error: Exception) -> web.Response:
    status = next(status for kind, status in _STATUSES.items() if isinstance(error, kind))
    detail = str(error)
    if isinstance(error, ArchiveDamagedError):
        # Asking again does not help, so the message does not ask for it.
        _log.error("a query found the archive damaged: %s", error)
        return problem(status, damaged_words(error))
    if isinstance(error, ArchiveError):
        # The cause may name hosts and users: it goes to the operator's log, not to the reader.
        _log.warning("a query found the archive unable to answer: %s", error)
        detail = f"cannot read cells: {unanswered_words(error)}; ask again later"
    passes = status >= HTTPStatus.SERVICE_UNAVAILABLE
    return problem(status, detail, {"Retry-After": str(RETRY_AFTER_S)} if passes else None)


def _http_problem(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == HTTPStatus.NOT_FOUND:
        detail = f"cannot answer {request.path}: no such path; docs/formats/http.md lists them"
    elif error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        wanted = error.headers.get("Allow", "").replace(",", " or ")
        detail = (
            f"cannot answer {request.path}: the path does not take this method; got"
            f" {request.method}; want {wanted}"
        )
    else:
        detail = f"cannot answer: {error.reason}"
    kept = {name: value for name, value in error.headers.items() if name == "Allow"}
    return problem(error.status, detail, kept)
