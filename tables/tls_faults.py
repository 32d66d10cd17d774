"""Faults of TLS: which of them an error of a handshake stands for, whoever the other side is.

OpenSSL has a number for each flaw of a certificate, and a word for all else. The remedy of a
fault is named by the code that knows the settings.
"""

from __future__ import annotations

import enum
import re
import ssl


class Fault(enum.Enum):
    """Why a handshake failed for good.

    The first four are of the other side's certificate, which was refused.
    """

    EXPIRED = enum.auto()
    NOT_YET_VALID = enum.auto()
    OTHER_NAME = enum.auto()
    NOT_TRUSTED = enum.auto()
    PLAIN = enum.auto()
    """The other side does not speak TLS."""
    PROTOCOL = enum.auto()
    """The other side refuses versions and ciphers."""
    CLIENT_CERTIFICATE = enum.auto()
    """The other side refuses the certificate of this one, or wants one."""
    UNKNOWN = enum.auto()


# Of X509_V_ERR_*, as OpenSSL numbers them.
_OF_CERTIFICATE = {
    9: Fault.NOT_YET_VALID, 10: Fault.EXPIRED,
    62: Fault.OTHER_NAME, 63: Fault.OTHER_NAME, 64: Fault.OTHER_NAME,
}  # fmt: skip
# OpenSSL's words for bytes that are not TLS, of which the last two are those of newer releases.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
_OF_PROTOCOL = ("PROTOCOL_VERSION", "INSUFFICIENT_SECURITY", "ILLEGAL_PARAMETER")
_BROKEN_OFF = (
    ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLWantReadError, ssl.SSLSyscallError,
)  # fmt: skip


def fault_of(error: BaseException) -> Fault | None:
    """Return the meaning of an error of TLS; None for a broken connection and other errors."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _OF_CERTIFICATE.get(getattr(error, "verify_code", 0), Fault.NOT_TRUSTED)
    if not isinstance(error, ssl.SSLError) or isinstance(error, _BROKEN_OFF):
        return None
    # Errors that OpenSSL did not raise itself have no such attributes.
    reason = getattr(error, "reason", None) or ""
    if reason in _NO_TLS:
        return Fault.PLAIN
    if "ALERT" not in reason:
        return Fault.UNKNOWN
    refuses_protocol = any(word in reason for word in _OF_PROTOCOL)
    return Fault.PROTOCOL if refuses_protocol else Fault.CLIENT_CERTIFICATE


def words_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's words for an error, without the version of TLS before them."""
    reason = re.sub(r"^(SSLV3|TLSV1|TLSV13)_", "", getattr(error, "reason", None) or "")
    return reason.replace("_", " ").lower() or str(error)
