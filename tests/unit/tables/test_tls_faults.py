"""Faults of TLS are recognised in the errors of real handshakes, made in memory."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tables.tls_faults import Fault, fault_of, words_of
from tests.support.pki import Authority


def shaken(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLError | None:
    """Return the error of a client that shakes hands with a server and reads, or None."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(back, there, server_hostname="localhost")
    answers = server.wrap_bio(there, back, server_side=True)
    steps: list[Callable[[], object]] = [
        asks.do_handshake, answers.do_handshake, asks.do_handshake, answers.do_handshake,
        lambda: asks.read(1),
    ]  # fmt: skip
    for number, step in enumerate(steps):
        try:
            step()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            if number % 2 == 0:
                return error
    return None


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Make an authority."""
    return Authority(tmp_path)


def server_of(authority: Authority, *identities: str, expired: bool = False) -> ssl.SSLContext:
    """Return a server with a certificate."""
    made = authority.issue("server", *identities, expired=expired)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.cert_file, made.key_file)
    return context


def client_of(authority: Authority) -> ssl.SSLContext:
    """Return a client that trusts an authority."""
    return ssl.create_default_context(cafile=authority.ca_file)


def test_a_good_certificate_is_no_fault(authority: Authority) -> None:
    """An error of another kind is not a fault of TLS either."""
    assert shaken(client_of(authority), server_of(authority)) is None
    assert fault_of(ConnectionResetError()) is None


@pytest.mark.parametrize(
    ("identities", "expired", "fault"),
    [
        ((), True, Fault.EXPIRED),
        (("elsewhere.example",), False, Fault.OTHER_NAME),
        (("10.0.0.1",), False, Fault.OTHER_NAME),
    ],
)
def test_flaws_of_a_certificate(
    authority: Authority, identities: tuple[str, ...], expired: bool, fault: Fault
) -> None:
    """The numbers of OpenSSL tell them apart."""
    server = server_of(authority, *identities, expired=expired)
    error = shaken(client_of(authority), server)
    assert error is not None
    assert fault_of(error) is fault


def test_an_authority_that_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    """Several numbers of OpenSSL mean this."""
    error = shaken(client_of(Authority(tmp_path / "other")), server_of(authority))
    assert error is not None
    assert fault_of(error) is Fault.NOT_TRUSTED


def test_a_client_that_shows_no_certificate(authority: Authority) -> None:
    """It is told after its own part of the handshake."""
    server = server_of(authority)
    server.verify_mode = ssl.CERT_REQUIRED
    error = shaken(client_of(authority), server)
    assert error is not None
    assert fault_of(error) is Fault.CLIENT_CERTIFICATE
    assert words_of(error) == "alert certificate required"


def test_another_version(authority: Authority) -> None:
    """A server that takes only the latest."""
    server, client = server_of(authority), client_of(authority)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    error = shaken(client, server)
    assert error is not None
    assert fault_of(error) is Fault.PROTOCOL


def test_a_side_that_speaks_no_tls(authority: Authority) -> None:
    """Plain bytes are a fault, an end of the connection is not."""
    for answer, fault in ((b"HTTP/1.1 400 Bad Request\r\n", Fault.PLAIN), (b"", None)):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        asks = client_of(authority).wrap_bio(back, there, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            asks.do_handshake()
        back.write(answer)
        back.write_eof()
        with pytest.raises(ssl.SSLError) as found:
            asks.do_handshake()
        assert fault_of(found.value) is fault
