"""Why TLS to a node of Cassandra cannot succeed, found by shaking hands with it once more.

The driver has the same words for a certificate that is refused, a node without TLS and a node that
has gone: that no host could be reached. Only the first two need somebody to mend them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from tables.tls_faults import Fault, fault_of, words_of

TRIES = 3
PROBE_S = 3.0
"""The longest time of each step of a probe; a node that is slower counts as away."""

_OPTIONS = bytes.fromhex("050000000500000000")
"""The request OPTIONS of protocol version 5, which needs no login. With TLS 1.3 a node refuses a
client's certificate only after the client has ended its handshake."""


def plain_refusal(address: str, port: int) -> str:
    """Return that a node speaks TLS, asked by a client that does not; empty if it does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent over this connection: it only shows whether there is TLS.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), timeout=PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=address),
        ):
            pass
    except ssl.SSLError as error:
        if fault_of(error) not in (Fault.PROTOCOL, Fault.CLIENT_CERTIFICATE):
            return ""
    except OSError:
        return ""
    return (
        f"port {port} of {address} speaks TLS and this client does not; set cassandra_tls, or "
        "cassandra_ca_file if an authority of your own signs the nodes"
    )


def tls_refusal(
    address: str, port: int, name: str, context: ssl.SSLContext, *, has_certificate: bool
) -> str:
    """Return why TLS with a node fails for good, in words; empty if it does not.

    ``name`` is that which its certificate must have; ``context`` may show one of this client.
    """
    for _ in range(TRIES):
        try:
            _shake(address, port, name, context)
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of {address} {_flaw(error, address, port, name, context)}"
        except ssl.SSLError as error:
            if fault_of(error) is not None:
                return _words(error, address, port, has_certificate=has_certificate)
        except OSError:
            # A node that refuses a certificate may close before its reason has been read.
            continue
    return ""


def _shake(address: str, port: int, name: str, context: ssl.SSLContext) -> None:
    """Shake hands with a node, and ask it something."""
    with (
        socket.create_connection((address, port), timeout=PROBE_S) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        secure.sendall(_OPTIONS)
        with contextlib.suppress(TimeoutError):
            secure.recv(1)


def _flaw(
    error: ssl.SSLCertVerificationError, address: str, port: int, name: str, context: ssl.SSLContext
) -> str:
    fault = fault_of(error)
    if fault is Fault.OTHER_NAME:
        names = _names(address, port, context)
        return (
            f"is not for {name}; got one for {names}; want such a name in cassandra_hosts, or in "
            "cassandra_tls_name if all nodes have it"
        )
    if fault is Fault.EXPIRED:
        return "has expired; renew it on the node, or set the clock of this machine"
    if fault is Fault.NOT_YET_VALID:
        return "is not valid yet; set the clock of this machine, or make it anew"
    return (
        f"is not signed by an authority that this client trusts ({error.verify_message}); set "
        "cassandra_ca_file to the PEM file of the authority that signs the nodes"
    )


def _names(address: str, port: int, checks: ssl.SSLContext) -> str:
    """Return the names of the certificate, which is checked for everything else.

    Others use ``checks`` meanwhile, so another context has its authorities.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if authorities := checks.get_ca_certs(binary_form=True):
        context.load_verify_locations(cadata=b"".join(authorities))
    found: list[str] = []
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), timeout=PROBE_S) as plain,
        context.wrap_socket(plain) as secure,
    ):
        names = (secure.getpeercert() or {}).get("subjectAltName", ())
        found = [str(name[1]) for name in names]
    return ", ".join(found) or "no name"


def _words(error: ssl.SSLError, address: str, port: int, *, has_certificate: bool) -> str:
    fault = fault_of(error)
    if fault is Fault.PLAIN:
        return (
            f"port {port} of {address} speaks no TLS; set cassandra_port to one that does, or "
            "leave cassandra_tls and the files of certificates unset"
        )
    said = words_of(error)
    if fault is not Fault.CLIENT_CERTIFICATE:
        return (
            f"TLS with port {port} of {address} fails ({said}); check which protocols and ciphers "
            "the node takes"
        )
    does = "refuses the" if has_certificate else "wants a"
    # Cassandra 5.0 says "internal error" of a certificate that it does not trust.
    return (
        f"{address} {does} certificate of this client ({said}); set cassandra_cert_file and "
        "cassandra_key_file to one that an authority of the node's truststore signs"
    )
