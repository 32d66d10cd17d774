"""Access: which scope each route wants, and which scopes a request has.

A route is mounted together with its scope (:func:`mount`); a route without one ends the start
of the worker, and the guard answers nothing on it.
"""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import MultiMapping

from app.config.connections import advertised_url
from app.config.settings import Settings
from app.host.reloads import Reloads
from app.trust.proof import HEADER, PeerKey, Proof, ProofError
from app.trust.tokens import ADMIN, LIVE, READ, SCOPES, Tokens, hash_of

__all__ = ["ADMIN", "LIVE", "OPEN", "PEER", "READ", "Access", "Caller", "mount"]

OPEN, PEER = "open", "peer"
"""Scopes that no token has: of routes that want no token, and of routes between workers."""

_SCOPES = web.AppKey("scopes", dict[str, str])


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: their scopes, and whether tokens that changed leave them one."""

    scopes: frozenset[str]
    may_still: Callable[[str], bool]


CALLER = web.RequestKey("caller", Caller)
PROOF = web.RequestKey("proof", Proof)
"""Notes of the guard on a request: its caller, and the proof of a worker. Each is left out if
the request lacks it."""

_ANYONE = Caller(frozenset(SCOPES), lambda _: True)


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not answered."""

    status: HTTPStatus
    detail: str


def mount(site: web.Application, method: str, path: str, scope: str, handler: Handler) -> None:
    """Add a route with the scope that it wants; GET comes with HEAD."""
    assert scope in (OPEN, PEER, *SCOPES), f"{scope} is not a scope"
    if method == hdrs.METH_GET:
        site.router.add_get(path, handler)
    else:
        site.router.add_route(method, path, handler)
    scopes(site)[path] = scope


def scopes(site: web.Application) -> dict[str, str]:
    """Return the scope of each path, as it was mounted."""
    if _SCOPES not in site:
        site[_SCOPES] = {}
    return site[_SCOPES]


def unscoped(site: web.Application) -> list[str]:
    """Return the routes that have no scope."""
    found = {route.resource.canonical for route in site.router.routes() if route.resource}
    return sorted(found - scopes(site).keys())


async def check_scopes(site: web.Application) -> None:
    """Refuse to start with a route that has no scope."""
    assert not unscoped(site), f"{unscoped(site)} have no scope; use app.web.access.mount"


class Access:
    """The rights of callers to ask one worker; ``reloads`` reads tokens again when they change.

    Attributes:
        wants_token: whether readers need a token.
        is_insecure: whether the settings allow an unguarded endpoint.
        peer_key: the key that workers prove themselves with; None if no secret is set.

    Raises:
        SettingError: the file of tokens cannot be used.
    """

    def __init__(self, settings: Settings, reloads: Reloads) -> None:
        self.is_insecure = settings.insecure
        self._reloads = reloads
        self._token = settings.web_token.encode()
        self._tokens: Tokens | None = None
        if settings.web_tokens_file:
            self._tokens = Tokens(settings.web_tokens_file)
            reloads.add("tokens", [settings.web_tokens_file], self._tokens.load)
        self.wants_token = bool(self._token or self._tokens)
        self.peer_key = peer_key(settings)

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that an operator should mend."""
        return self._reloads.warnings()

    def caller(self, headers: MultiMapping[str]) -> Caller | None:
        """Return the sender of a request; None for a token that is missing, wrong or expired."""
        if not self.wants_token:
            return _ANYONE
        scheme, _, rest = _only(headers, hdrs.AUTHORIZATION).partition(" ")
        text = rest.strip()
        # Bytes that are not UTF-8 come as surrogates; they match no token, and must not fail.
        raw = text.encode("utf-8", "surrogateescape")
        is_whole = hmac.compare_digest(raw, self._token) and bool(self._token)
        if scheme.lower() != "bearer":
            return None
        if is_whole:
            return _ANYONE
        tokens = self._tokens
        if tokens is None or (token := tokens.find(digest := hash_of(text))) is None:
            return None

        def may_still(scope: str) -> bool:
            found = tokens.find(digest)
            return found is not None and scope in found.scopes

        return Caller(frozenset(token.scopes), may_still)

    def refusal(self, scope: str, caller: Caller | None) -> Refused | None:
        """Return why a caller may not ask a route of a scope for readers; None if they may."""
        if scope == OPEN:
            return None
        if caller is None:
            return Refused(
                HTTPStatus.UNAUTHORIZED,
                "cannot answer: the token is missing or wrong; want the header Authorization:"
                " Bearer with a token that is valid now",
            )
        if scope in SCOPES and scope not in caller.scopes:
            granted = " ".join(sorted(caller.scopes & set(SCOPES))) or "none"
            return Refused(
                HTTPStatus.FORBIDDEN,
                f"cannot answer: the token does not have the scope {scope}; got {granted}; want a"
                f" token made with --scope {scope}",
            )
        return None

    def peer(self, request: web.Request, caller: Caller | None) -> Proof | Refused | None:
        """Return the proof of a worker, or why it is refused; None if no proof is wanted."""
        if self.peer_key is None and not self.wants_token:
            return None
        why = "no secret between workers is set; want peer_secret at all workers"
        if self.peer_key is not None:
            header = _only(request.headers, HEADER)
            try:
                return self.peer_key.check(request.method, request.path, header)
            except ProofError as error:
                why = str(error)
        has_token = self.wants_token and caller is not None
        return Refused(
            HTTPStatus.FORBIDDEN if has_token else HTTPStatus.UNAUTHORIZED,
            f"cannot answer: this path is for workers, and no token opens it: {why}",
        )


def _only(headers: MultiMapping[str], name: str) -> str:
    """Return a header that comes once; of two, a proxy may have checked the other one."""
    found = headers.getall(name, [])
    return found[0] if len(found) == 1 else ""


def peer_key(settings: Settings) -> PeerKey | None:
    """Return the key between workers: of ``peer_secret``, else of ``web_token``."""
    secret = settings.peer_secret or settings.web_token
    return PeerKey(secret, advertised_url(settings)) if secret else None
