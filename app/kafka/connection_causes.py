"""Why a connection to Kafka fails, found by making one step by step: name, port, TLS, login.

aiokafka raises that it could not connect; the cause is only in its log, or nowhere: a broker
closes the connection of a client that speaks plain on a TLS port, or TLS on a plain one,
without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, create_conn
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
"""Brokers of the setting that are tried; of those that they name, again as many."""

LOGIN_ERRORS = (
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
_AWAY = (errors.KafkaError, OSError, TimeoutError)

_NO_TLS = (
    "speaks no TLS on this port; want the port of a listener with TLS, or neither kafka_tls nor"
    " kafka_ca_file nor kafka_cert_file"
)


class BrokerFaultError(Exception):
    """Why a broker cannot be used: the fault and the setting to check, as a part of a sentence.

    Attributes:
        is_final: whether it stays so until somebody changes something.
    """

    def __init__(self, words: str, *, is_final: bool = True) -> None:
        super().__init__(words)
        self.is_final = is_final


async def cause_of(brokers: str, options: Mapping[str, Any]) -> BrokerFaultError | None:
    """Return why brokers cannot be used; None if one of them, and all that it names, can be."""
    addresses = [_address(broker) for broker in brokers.split(",")]
    first: BrokerFaultError | None = None
    for address in addresses[:BROKERS_MAX]:
        try:
            named = await _Broker(*address, options).named()
        except BrokerFaultError as fault:
            if first is None or (fault.is_final and not first.is_final):
                first = fault
            continue
        return await _of_named([one for one in named if one not in addresses], options)
    return first


async def _of_named(
    named: list[tuple[str, int]], options: Mapping[str, Any]
) -> BrokerFaultError | None:
    """Return the lasting fault of a broker that another one names."""
    for address in named[:BROKERS_MAX]:
        try:
            await _Broker(*address, options).named()
        except BrokerFaultError as fault:
            if fault.is_final:
                return BrokerFaultError(
                    f"{fault}; the brokers name it by their advertised.listeners"
                )
    return None


def _address(broker: str) -> tuple[str, int]:
    host, _, port = broker.strip().rpartition(":")
    return host.strip("[]"), int(port)


class _Broker:
    """One broker, to which connections are made step by step."""

    def __init__(self, host: str, port: int, options: Mapping[str, Any]) -> None:
        self._address = host, port
        self._options = options
        self._tls: ssl.SSLContext | None = options.get("ssl_context")
        self._at = f"broker {host}:{port}"

    async def named(self) -> list[tuple[str, int]]:
        """Connect as a client does; return the brokers that are named.

        Raises:
            BrokerFaultError: it cannot be done.
        """
        await self._open()
        if self._tls is not None:
            await self._shake_hands(self._tls)
        try:
            connection = await self._connect(self._options)
        except LOGIN_ERRORS as error:
            raise BrokerFaultError(f"{self._at} {await self._login_words(error)}") from error
        except _AWAY as error:
            raise await self._closed(error) from error
        try:
            async with asyncio.timeout(STEP_S):
                answer = await connection.send(MetadataRequest([]))
        except _AWAY as error:
            if not isinstance(error, TimeoutError) and "sasl_mechanism" not in self._options:
                raise BrokerFaultError(
                    f"{self._at} closes the connection of a client without a login; want"
                    " kafka_sasl_mechanism, kafka_username and kafka_password"
                ) from error
            raise await self._closed(error) from error
        finally:
            connection.close()
        return [(broker[1], broker[2]) for broker in answer.brokers]

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(STEP_S):
                _, writer = await asyncio.open_connection(*self._address)
        except (OSError, TimeoutError) as error:
            words = f"{self._at} does not answer: {_text(error)}"
            if isinstance(error, socket.gaierror):
                words = f"{self._at} has a name that is not known here"
            elif isinstance(error, ConnectionRefusedError):
                words = f"nothing listens at {self._at.removeprefix('broker ')}"
            raise BrokerFaultError(words, is_final=False) from error
        await _end(writer)

    async def _shake_hands(self, context: ssl.SSLContext) -> None:
        """Make a TLS connection; a client's certificate is refused only after its part of it."""
        writer = None
        try:
            async with asyncio.timeout(STEP_S):
                reader, writer = await asyncio.open_connection(*self._address, ssl=context)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALERT_S):
                    await reader.read(1)
        except (ssl.SSLError, OSError, TimeoutError) as error:
            words = self._tls_words(error)
            if words is None and await self._speaks_plain():
                words = f"{self._at} {_NO_TLS}"
            if words is None:
                words = f"{self._at} breaks off TLS: {_text(error)}"
                raise BrokerFaultError(words, is_final=False) from error
            raise BrokerFaultError(words) from error
        finally:
            if writer is not None:
                await _end(writer)

    def _tls_words(self, error: Exception) -> str | None:
        """Return the cause that a failed handshake shows; None if it shows none."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate of {self._at} {_certificate_words(self._address[0], error)}"
        fault = fault_of(error)
        if fault is Fault.PLAIN:
            return f"{self._at} {_NO_TLS}"
        if not isinstance(error, ssl.SSLError) or fault in (None, Fault.UNKNOWN):
            return None
        if fault is Fault.PROTOCOL:
            return (
                f"{self._at} speaks another version of TLS, or wants other ciphers"
                f" ({words_of(error)}); want 1.2 or 1.3 on the broker"
            )
        return (
            f"{self._at} refuses the certificate of this client, or that it shows none"
            f" ({words_of(error)}); want in kafka_cert_file and kafka_key_file one"
            " that is valid and signed by an authority of the brokers"
        )

    async def _speaks_plain(self) -> bool:
        try:
            connection = await self._connect({})
        except _AWAY:
            return False
        connection.close()
        return True

    async def _speaks_tls(self) -> bool:
        """Return whether TLS is spoken; nothing is sent, so nobody's certificate matters."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            async with asyncio.timeout(STEP_S):
                _, writer = await asyncio.open_connection(*self._address, ssl=context)
        except (OSError, TimeoutError):
            return False
        await _end(writer)
        return True

    async def _closed(self, error: Exception) -> BrokerFaultError:
        """Return why a broker says nothing to a client."""
        if self._tls is None and await self._speaks_tls():
            return BrokerFaultError(
                f"{self._at} speaks TLS on this port; want kafka_tls or kafka_ca_file, or the port"
                " of a listener without TLS"
            )
        words = f"{self._at} closes the connection: {_text(error)}"
        if isinstance(error, TimeoutError):
            words = f"{self._at} is there, and does not answer as Kafka within {STEP_S:g} s"
        return BrokerFaultError(words, is_final=False)

    async def _login_words(self, error: Exception) -> str:
        """Return why a login is refused."""
        user = self._options.get("sasl_plain_username")
        mechanism = self._options.get("sasl_mechanism")
        if isinstance(error, errors.IllegalSaslStateError):
            return (
                "accepts no login on this port; want kafka_sasl_mechanism empty, or the port of a"
                " listener with SASL"
            )
        if isinstance(error, errors.UnsupportedSaslMechanismError):
            offered = await self._mechanisms(mechanism) or "another one"
            return f"does not offer the login {mechanism}; want {offered} in kafka_sasl_mechanism"
        return (
            f"refuses the login of user {user} by {mechanism}; want a known user in"
            " kafka_username and kafka_password"
        )

    async def _mechanisms(self, mechanism: str | None) -> str:
        """Return the mechanisms that both the broker and this client have."""
        kept = {name: value for name, value in self._options.items() if "sasl_" not in name}
        kept["security_protocol"] = "SSL" if self._tls else "PLAINTEXT"
        try:
            connection = await self._connect(kept)
        except _AWAY:
            return ""
        try:
            async with asyncio.timeout(STEP_S):
                answer = await connection.send(SaslHandShakeRequest(mechanism))
        except _AWAY:
            return ""
        finally:
            connection.close()
        known = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        return " or ".join(sorted(set(answer.enabled_mechanisms) & set(known)))

    async def _connect(self, options: Mapping[str, Any]) -> AIOKafkaConnection:
        timeout_ms = int(STEP_S * 1_000)
        async with asyncio.timeout(STEP_S):
            return await create_conn(*self._address, request_timeout_ms=timeout_ms, **options)


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and read the error that ended it: asyncio complains if nobody does."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(END_S):
            await writer.wait_closed()


def _certificate_words(host: str, error: ssl.SSLCertVerificationError) -> str:
    fault = fault_of(error)
    if fault is Fault.EXPIRED:
        return "has expired; want one that is valid"
    if fault is Fault.NOT_YET_VALID:
        return "is not valid yet; check the clocks"
    if fault is Fault.OTHER_NAME:
        return (
            f"is not for {host}; want one for that name, or a name that it is for in the setting"
            " brokers and in the brokers' advertised.listeners"
        )
    return (
        f"cannot be checked ({error.verify_message}); want the authority that signed it in"
        " kafka_ca_file"
    )


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
