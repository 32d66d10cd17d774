"""The Cassandra driver's errors, by their cause.

An error says that no node answers now, or that one refuses. They have no common root. Beside
``DriverException`` there are the errors of connections and pools, the messages of nodes, which are
raised as they came if the driver knows no better, and ``NoHostAvailable``, whose causes are a
map by node, an empty one if no node could be asked, or only a list of addresses if a session
found no connection.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator

from cassandra import (
    AuthenticationFailed,
    CoordinationFailure,
    DriverException,
    OperationTimedOut,
    Timeout,
    Unauthorized,
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

from tables.model.errors import ArchiveAwayError, ArchiveRefusedError
from tables.tls_faults import fault_of

AGAIN = "check that Cassandra is up and can reach its quorum; the request can be sent again"

ANSWER_S = 5.0
"""The time to wait for an answer beyond the request's own time: the driver's threads end it
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
"""Every error that the driver raises for a request or for connecting."""

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
_REFUSED = (ProtocolVersionUnsupported, ssl.SSLCertVerificationError)

_NO_QUORUM_OF_ROLES = "Unable to perform authentication"
"""The beginning of Cassandra's refusal of a login that it cannot check now: roles are rows too."""

_MESSAGE = re.compile(r'message="(.*)"', re.DOTALL)


def is_away(error: BaseException) -> bool:
    """Return whether an error passes by itself: no node answers, rather than that one refuses."""
    return all(map(_passes, causes_of(error) if isinstance(error, NoHostAvailable) else [error]))


def causes_of(error: NoHostAvailable) -> list[BaseException]:
    """Return the error of each node that was asked, if the driver has them."""
    causes = error.errors.values() if isinstance(error.errors, dict) else ()
    return [cause for cause in causes if isinstance(cause, BaseException)]


def said(error: BaseException) -> str:
    """Return a node's message, without the driver's words around it, beginning in lower case."""
    text = str(error)
    found = _MESSAGE.search(text)
    words = found[1] if found else text
    return f"{words[:1].lower()}{words[1:]}"


def login_refusal(error: NoHostAvailable, username: str | None) -> str:
    """Return why no node lets this user in; empty if the fault is another one."""
    causes = (cause for cause in causes_of(error) if isinstance(cause, AuthenticationFailed))
    failed = next((cause for cause in causes if not _passes(cause)), None)
    if failed is None:
        return ""
    why = f"Cassandra refuses the login of user {username}: {said(failed)}"
    if username is None:
        why = "Cassandra wants a login and none is set"
    return (
        f"{why}; set cassandra_username and cassandra_password to those of a role that may log in"
    )


def _passes(cause: BaseException) -> bool:
    # The root: the control connection failed while the schema was read. No error says more.
    if type(cause) is DriverException:
        return True
    if fault_of(cause) is not None:
        return False
    if isinstance(cause, AuthenticationFailed):
        return _NO_QUORUM_OF_ROLES in str(cause)
    return isinstance(cause, _PASSING) and not isinstance(cause, _REFUSED)


@contextlib.contextmanager
def driver(step: str, mend: str = AGAIN) -> Iterator[None]:
    """Turn the driver's errors into the archive's: they cannot do ``step``.

    ``mend`` is the remedy for an error of which no more is known.

    Raises:
        ArchiveAwayError: no node answers, or too few.
        ArchiveRefusedError: somebody refuses.
    """
    try:
        yield
    except Unauthorized as error:
        raise ArchiveRefusedError(
            f"cannot {step}: Cassandra refuses: {said(error)}; grant it, or set cassandra_username "
            "to a role that has it"
        ) from error
    except DRIVER_ERRORS as error:
        kind = ArchiveAwayError if is_away(error) else ArchiveRefusedError
        raise kind(f"cannot {step}: {type(error).__name__}: {error}; {mend}") from error
