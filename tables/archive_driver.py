"""The Cassandra driver's errors, told apart.

An error says that nobody answers now, or that somebody refuses. They have no common root. Beside
``DriverException`` there are the errors of connections and pools, the messages of nodes, which are
raised as they came where the driver knows no better, and ``NoHostAvailable``, whose causes are a
map by node, an empty one where no node could be asked, or only a list of addresses where a session
found no connection.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

from cassandra import (
    AuthenticationFailed,
    CoordinationFailure,
    DriverException,
    OperationTimedOut,
    Timeout,
    Unavailable,
    UnresolvableContactPoints,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import (
    ConnectionBusy,
    ConnectionException,
    ProtocolError,
    ProtocolVersionUnsupported,
)
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import (
    ErrorMessage,
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
    TruncateError,
)

from tables.errors import ArchiveAwayError, ArchiveError

AGAIN = "check that Cassandra is up and can reach its quorum; the request can be sent again"

ANSWER_S = 5.0
"""How much longer than a request's own time its answer is waited for: the driver's threads end it
by then, unless one of them has died."""

DRIVER_ERRORS = (
    DriverException,
    NoHostAvailable,
    ConnectionException,
    ConnectionBusy,
    NoConnectionsAvailable,
    ProtocolError,
    ErrorMessage,
    OSError,
)
"""Everything that the driver tells of a request or of connecting."""

_PASSING = (
    ConnectionException,
    ConnectionBusy,
    NoConnectionsAvailable,
    ProtocolError,
    OSError,
    OperationTimedOut,
    Unavailable,
    Timeout,
    CoordinationFailure,
    UnresolvableContactPoints,
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
    TruncateError,
)
_REFUSED = (AuthenticationFailed, ProtocolVersionUnsupported, ssl.SSLCertVerificationError)


def is_away(error: BaseException) -> bool:
    """Tell whether an error passes by itself: nobody answers, rather than somebody refuses."""
    if not isinstance(error, NoHostAvailable):
        return _passes(error)
    causes = error.errors.values() if isinstance(error.errors, dict) else ()
    return all(_passes(cause) for cause in causes if isinstance(cause, BaseException))


def _passes(cause: BaseException) -> bool:
    # The root of all: the control connection failed while the schema was read. No more is told.
    if type(cause) is DriverException:
        return True
    if isinstance(cause, ssl.SSLError) and _is_refusal(cause):
        return False
    return isinstance(cause, _PASSING) and not isinstance(cause, _REFUSED)


def _is_refusal(error: ssl.SSLError) -> bool:
    """Tell whether TLS failed for good; a connection that broke meanwhile is an SSLError too."""
    return not isinstance(
        error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLWantReadError | ssl.SSLSyscallError
    )


@contextlib.contextmanager
def driver(what: str, mend: str) -> Iterator[None]:
    """Turn the driver's errors into the archive's."""
    try:
        yield
    except DRIVER_ERRORS as error:
        kind = ArchiveAwayError if is_away(error) else ArchiveError
        raise kind(f"cannot {what}: {_cause(error)}; {mend}") from error


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
