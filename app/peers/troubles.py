"""Troubles with other workers that a person has to mend: URLs, certificates, proofs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from agents.outage import Outage

WARN_AGAIN_S = 60.0
"""The time in which a worker is warned of once."""

log = logging.getLogger(__name__)


class PeerError(Exception):
    """A worker refuses a request, or must not be asked."""


class Trouble:
    """The fault of one worker, with a warning when it begins and once a minute.

    Attributes:
        why: the present fault; empty if there is none.
        outage: whether it answers.
    """

    def __init__(self, url: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock_s = clock_s
        self._warned_s: float | None = None
        self.why = ""
        self.outage = Outage(f"worker {url}", "answers lack its live cells")

    def found(self, why: str) -> None:
        """Note a fault, and warn unless that was done within the last minute."""
        self.why = why
        now_s = self._clock_s()
        if self._warned_s is None or now_s >= self._warned_s + WARN_AGAIN_S:
            self._warned_s = now_s
            log.warning("worker %s is not used, answers lack its live cells: %s", self._url, why)

    def gone(self) -> None:
        """Note that nothing is wrong now."""
        self.why = ""


def why_never(url: str, *, only_https: bool) -> str:
    """Return why the URL of a member of the group must not be asked; empty if it may.

    If this worker has TLS, so have all of its group: then ``only_https`` is asked.
    """
    wanted = "https" if only_https else "http or https"
    try:
        parts = urlsplit(url)
        host, scheme, _ = parts.hostname, parts.scheme, parts.port
    except ValueError as error:
        return f"its URL is not one: {error}"
    if scheme not in wanted.split(" or "):
        return f"its URL has the scheme {scheme or 'none'}; want {wanted}"
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if not host or not is_plain or "@" in parts.netloc or parts.query or parts.fragment:
        return f"its URL is not {wanted}://HOST:PORT alone"
    return ""
