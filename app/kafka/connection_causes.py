"""Why a connection to Kafka fails, found by making one step by step: name, port, TLS, login.

aiokafka raises that it could not connect; the cause is only in its log, of some kinds nowhere: a
broker closes the connection of a client that speaks plain on a TLS port, or TLS on a plain one,
without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslHandShakeRequest
from aiokafka.protocol.metadata import MetadataRequest

from tables.tls_faults import Fault, fault_of, words_of

STEP_S = 5.0
"""How long a step may take."""

ALERT_S = 0.5
"""How long after its own part of a TLS 1.3 handshake a client waits to be refused."""

END_S = 0.5
"""How long a connection may take to end."""

BROKERS_MAX = 6
"""Brokers that are tried, of those of the setting and again of those that they name."""

_LOGIN_ERRORS = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)

_TLS_PORT = (
    "want the port of a listener with TLS, or neither kafka_tls nor kafka_ca_file nor"
    " kafka_cert_file"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """The fault of one broker.

    Attributes:
        words: the fault and the setting to look at, as a part of a sentence.
        is_final: whether it stays so until somebody changes something.
    """

    words: str
    is_final: bool


class _FoundError(Exception):
    def __init__(self, words: str, *, is_final: bool = True) -> None:
        super().__init__(words)
        self.cause = Cause(words, is_final)


async def cause_of(brokers: str, options: Mapping[str, Any]) -> Cause | None:
    """Return why brokers cannot be used; None if one of them, and all that it names, can be.

    Args:
        brokers: ``host:port``, separated by commas.
        options: security options of aiokafka's clients.
    """
    places = [_place(broker) for broker in brokers.split(",")]
    first: Cause | None = None
    for place in places[:BROKERS_MAX]:
        try:
            named = await _try(*place, options)
        except _FoundError as found:
            if first is None or (found.cause.is_final and not first.is_final):
                first = found.cause
            continue
        return await _of_named([one for one in named if one not in places], options)
    return first


async def _of_named(named: list[tuple[str, int]], options: Mapping[str, Any]) -> Cause | None:
    """Return the lasting fault of a broker that another one names."""
    for place in named[:BROKERS_MAX]:
        try:
            await _try(*place, options)
        except _FoundError as found:
            if found.cause.is_final:
                words = f"{found.cause.words}; the brokers name it by their advertised.listeners"
                return Cause(words, is_final=True)
    return None


def _place(broker: str) -> tuple[str, int]:
    host, _, port = broker.strip().rpartition(":")
    return host.strip("[]"), int(port)


async def _try(host: str, port: int, options: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Connect as a client does; return the brokers that are named.

    Raises:
        _FoundError: it cannot be done.
    """
    at = f"broker {host}:{port}"
    context = options.get("ssl_context")
    await _open(at, host, port)
    if context is not None:
        await _shake_hands(at, host, port, context)
    try:
        connection = await _connect(host, port, options)
    except _LOGIN_ERRORS as error:
        raise _FoundError(await _login_words(at, host, port, options, error)) from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise await _closed(at, host, port, options, error) from error
    try:
        async with asyncio.timeout(STEP_S):
            answer = await connection.send(MetadataRequest([]))
    except (KafkaError, OSError, TimeoutError) as error:
        if not isinstance(error, TimeoutError) and "sasl_mechanism" not in options:
            raise _FoundError(
                f"{at} closes the connection of a client without a login; want"
                " kafka_sasl_mechanism, kafka_username and kafka_password"
            ) from error
        raise await _closed(at, host, port, options, error) from error
    finally:
        connection.close()
    return [(broker[1], broker[2]) for broker in answer.brokers]


async def _open(at: str, host: str, port: int) -> None:
    try:
        async with asyncio.timeout(STEP_S):
            _, writer = await asyncio.open_connection(host, port)
    except socket.gaierror as error:
        raise _FoundError(f"{at} has a name that is not known here", is_final=False) from error
    except ConnectionRefusedError as error:
        raise _FoundError(f"nothing listens at {host}:{port}", is_final=False) from error
    except (OSError, TimeoutError) as error:
        raise _FoundError(f"{at} does not answer: {_text(error)}", is_final=False) from error
    await _end(writer)


async def _shake_hands(at: str, host: str, port: int, context: ssl.SSLContext) -> None:
    """Make a TLS connection; a client's certificate is refused only after its part of it."""
    writer = None
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALERT_S):
                await reader.read(1)
    except (ssl.SSLError, OSError, TimeoutError) as error:
        words = _tls_words(at, host, error)
        if words is None and await _speaks_plain(host, port):
            words = f"{at} speaks no TLS on this port; {_TLS_PORT}"
        if words is None:
            raise _FoundError(f"{at} breaks off TLS: {_text(error)}", is_final=False) from error
        raise _FoundError(words) from error
    finally:
        if writer is not None:
            await _end(writer)


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and read the error that ended it: asyncio complains if nobody does."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(END_S):
            await writer.wait_closed()


def _tls_words(at: str, host: str, error: Exception) -> str | None:
    """Return the cause that a failed handshake tells; None if it tells none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {at} {_certificate_words(host, error)}"
    fault = fault_of(error)
    if fault is Fault.PLAIN:
        return f"{at} speaks no TLS on this port; {_TLS_PORT}"
    if not isinstance(error, ssl.SSLError) or fault in (None, Fault.UNKNOWN):
        return None
    if fault is Fault.PROTOCOL:
        return (
            f"{at} speaks another version of TLS, or wants other ciphers ({words_of(error)}); want"
            " 1.2 or 1.3 on the broker"
        )
    return (
        f"{at} refuses the certificate of this client, or that it shows none"
        f" ({words_of(error)}); want in kafka_cert_file and kafka_key_file one"
        " that is valid and signed by an authority of the brokers"
    )


def _certificate_words(host: str, error: ssl.SSLCertVerificationError) -> str:
    fault = fault_of(error)
    if fault is Fault.EXPIRED:
        return "has expired; want one that is valid"
    if fault is Fault.NOT_YET_VALID:
        return "is not valid yet; look at the clocks"
    if fault is Fault.OTHER_NAME:
        return (
            f"is not for {host}; want one for that name, or a name that it is for in the setting"
            " brokers and in the brokers' advertised.listeners"
        )
    return (
        f"cannot be checked ({error.verify_message}); want the authority that signed it in"
        " kafka_ca_file"
    )


async def _speaks_plain(host: str, port: int) -> bool:
    try:
        connection = await _connect(host, port, {})
    except (KafkaError, OSError, TimeoutError):
        return False
    connection.close()
    return True


async def _speaks_tls(host: str, port: int) -> bool:
    """Return whether TLS is spoken; nothing is sent over it, so nobody's certificate matters."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(STEP_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError):
        return False
    await _end(writer)
    return True


async def _closed(
    at: str, host: str, port: int, options: Mapping[str, Any], error: Exception
) -> _FoundError:
    """Return why a broker says nothing to a client."""
    if options.get("ssl_context") is None and await _speaks_tls(host, port):
        return _FoundError(
            f"{at} speaks TLS on this port; want kafka_tls or kafka_ca_file, or the port of a"
            " listener without TLS"
        )
    return _FoundError(f"{at} closes the connection: {_text(error)}", is_final=False)


async def _login_words(
    at: str, host: str, port: int, options: Mapping[str, Any], error: Exception
) -> str:
    """Return why a login is refused."""
    user, mechanism = options.get("sasl_plain_username"), options.get("sasl_mechanism")
    if isinstance(error, IllegalSaslStateError):
        return (
            f"{at} takes no login on this port; want kafka_sasl_mechanism empty, or the port of a"
            " listener with SASL"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        offered = await _mechanisms(host, port, options)
        return (
            f"{at} does not take the login {mechanism}; want {offered or 'another one'} in"
            " kafka_sasl_mechanism"
        )
    return (
        f"{at} refuses the login of user {user} by {mechanism}; want a known user in"
        " kafka_username and kafka_password"
    )


async def _mechanisms(host: str, port: int, options: Mapping[str, Any]) -> str:
    """Return the mechanisms that a broker offers, and that this client has."""
    kept = {name: value for name, value in options.items() if not name.startswith("sasl_")}
    kept["security_protocol"] = "SSL" if options.get("ssl_context") else "PLAINTEXT"
    try:
        connection = await _connect(host, port, kept)
    except (KafkaError, OSError, TimeoutError):
        return ""
    try:
        async with asyncio.timeout(STEP_S):
            answer = await connection.send(SaslHandShakeRequest(options["sasl_mechanism"]))
    except (KafkaError, OSError, TimeoutError):
        return ""
    finally:
        connection.close()
    known = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    return " or ".join(sorted(set(answer.enabled_mechanisms) & set(known)))


async def _connect(host: str, port: int, options: Mapping[str, Any]) -> AIOKafkaConnection:
    async with asyncio.timeout(STEP_S):
        return await create_conn(host, port, request_timeout_ms=int(STEP_S * 1_000), **options)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
