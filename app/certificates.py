"""Certificates: TLS from PEM files; what cannot be used is told with its setting and its file."""

from __future__ import annotations

import ssl
from typing import NoReturn

from tables.errors import SettingError


def client_context(
    of: str, ca_file: str, cert_file: str = "", key_file: str = ""
) -> ssl.SSLContext:
    """Return what checks a server, and shows it an own certificate where there is one.

    Args:
        of: how the settings of these files begin: ``kafka``, ``cassandra`` or ``web``.
        ca_file: authorities; empty: the system's.
        cert_file: an own certificate; empty: none.
        key_file: its key.

    Raises:
        SettingError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise SettingError(
            f"cannot use {of}_ca_file: {_reason(error)}; got {ca_file}; want a PEM file of"
            " certificates"
        ) from error
    if cert_file:
        _load(context, of, cert_file, key_file)
    return context


def server_context(of: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """Return what shows a certificate to clients.

    Raises:
        SettingError: a file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, of, cert_file, key_file)
    return context


def _load(context: ssl.SSLContext, of: str, cert_file: str, key_file: str) -> None:
    try:
        context.load_cert_chain(cert_file, key_file, password=_refuse_passphrase)
    except _EncryptedError as error:
        raise SettingError(
            f"cannot use {of}_key_file: it is encrypted; got {key_file}; want a key without a"
            " passphrase, in a file that only this user may read"
        ) from error
    except OSError as error:
        raise SettingError(
            f"cannot use {of}_cert_file: {_reason(error)}; got {cert_file} with key {key_file};"
            " want PEM files of a certificate and its key"
        ) from error


class _EncryptedError(Exception):
    """A key wants a passphrase; OpenSSL alone would ask the terminal for it, and wait."""


def _refuse_passphrase() -> NoReturn:
    raise _EncryptedError


def _reason(error: OSError) -> str:
    """Return what is wrong; of what is no PEM file OpenSSL says nothing that helps."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is no PEM file").replace("_", " ").lower()
    return error.strerror or str(error)
