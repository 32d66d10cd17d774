"""The endpoint of a worker as a client reaches it: its address, and why it was not reached."""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit

from treasure_map.answers import QueryFailedError

_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes of certificates whose chain ends at no authority that is known here."""


class Endpoint:
    """The address of one worker, which answers for all of its group.

    Args:
        url: scheme, host and port of the endpoint.
        token: the endpoint's bearer token, if it has one.
        timeout_s: longest wait for a connection and for each part of an answer.
        ca_file: PEM file of the authority of the endpoint's certificate; None takes the system's.

    Raises:
        ValueError: the URL is not an ``http://`` or ``https://`` address of a host.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:6066",
        token: str | None = None,
        timeout_s: float = 30.0,
        ca_file: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(
                f"cannot use the endpoint's address: got {url!r}; want http://host:port"
            )
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None

    def _unreachable(self, error: Exception) -> QueryFailedError:
        """Return the error of an endpoint that was not reached."""
        # aiohttp wraps the errors of TLS.
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
        reason = str(error) or type(error).__name__
        return QueryFailedError(f"cannot reach {self._url}: {reason}; {_advice(self._url, cause)}")


def _advice(url: str, cause: object) -> str:
    """Return how to mend that an endpoint was not reached."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _UNKNOWN_AUTHORITY:
            return (
                "want the authority that signed its certificate; give its PEM file with `ca_file`,"
                " or --ca-file of a command"
            )
        return "want a certificate that is valid now and for this name"
    if isinstance(cause, ssl.SSLError):
        return "if it speaks no TLS on this port, give http:// instead of https://"
    is_cut = isinstance(cause, (http.client.HTTPException, ConnectionResetError))
    if url.startswith("http:") and (is_cut or "Disconnected" in type(cause).__name__):
        return "if it speaks TLS on this port, give https:// instead of http://"
    return "start a worker there, or give the address of one"
