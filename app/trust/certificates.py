"""Certificates: TLS from PEM files, read again while the worker runs.

A file that cannot be used is refused with its setting and its name. Open connections stay
as they are; new ones have the present files.
"""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path
from typing import Any, Self

from app.host.reloads import Reloads
from app.trust.secret_files import read_secret, shown_path
from tables.model.errors import SettingError


@dataclasses.dataclass(frozen=True, slots=True)
class PemFiles:
    """The files of one side of TLS; a path is empty if there is no such file.

    Without ``ca_file`` the system's authorities are trusted.

    Attributes:
        of: the beginning of these files' settings: ``kafka``, for instance.
        key_password_file: holds the passphrase of the key.
    """

    of: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    key_password_file: str = ""

    @property
    def paths(self) -> list[str]:
        """The files that there are."""
        all_of_them = (self.ca_file, self.cert_file, self.key_file, self.key_password_file)
        return [path for path in all_of_them if path]


class ContextOfNow(ssl.SSLContext):
    """Hands each new connection to the context that was made last; none is changed once in use.

    Whoever connects keeps this one object. Contexts forget no authority, and OpenSSL does not say
    that one may be changed while other threads shake hands by it, as the Cassandra driver's do; so
    changed files are a new context, ``now``. By itself this one trusts nobody.
    """

    now: ssl.SSLContext

    def __new__(cls, made: ssl.SSLContext) -> Self:
        """Make one that checks names and certificates, and has no authority."""
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.now = made
        return context

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Return a connection of threads, by the present context."""
        return self.now.wrap_socket(*args, **options)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Return a connection of an event loop, by the present context."""
        return self.now.wrap_bio(*args, **options)

    def get_ca_certs(self, *args: Any, **options: Any) -> Any:
        """Return the authorities that are trusted now."""
        return self.now.get_ca_certs(*args, **options)


def client_context(files: PemFiles, reloads: Reloads | None = None) -> ssl.SSLContext:
    """Return the context that checks a server, and shows it an own certificate if there is one.

    Its files are read again by ``reloads`` when they change.

    Raises:
        SettingError: a file cannot be used.
    """

    def made() -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=files.ca_file or None)
        except OSError as error:
            raise SettingError(
                f"cannot use {files.of}_ca_file: {_reason(error)}; got {files.ca_file}; want a PEM"
                " file of certificates"
            ) from error
        if files.cert_file:
            _load(context, files)
        return context

    if reloads is None or not files.paths:
        return made()
    context = ContextOfNow(made())

    def again() -> None:
        context.now = made()

    reloads.add(f"{files.of}_client", files.paths, again)
    return context


def server_context(files: PemFiles, reloads: Reloads | None = None) -> ssl.SSLContext:
    """Return the context that shows a certificate to clients, likewise.

    Raises:
        SettingError: a file cannot be used.
    """

    def made() -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        _load(context, files)
        return context

    context = current = made()

    def again() -> None:
        nonlocal current
        current = made()

    def choose(connection: Any, name: str | None, first: ssl.SSLContext) -> None:
        """Use the present files; called for each handshake, with or without the name of a host."""
        del name, first
        connection.context = current

    context.sni_callback = choose
    if reloads is not None:
        reloads.add(f"{files.of}_server", files.paths, again)
    return context


def _load(context: ssl.SSLContext, files: PemFiles) -> None:
    was_asked = False

    def passphrase() -> str:
        """Return the passphrase; OpenSSL alone would ask the terminal for it, and wait."""
        nonlocal was_asked
        was_asked = True
        if not files.key_password_file:
            raise SettingError(
                f"cannot use {files.of}_key_file: it is encrypted; got {files.key_file}; want"
                f" {files.of}_key_password_file too, or a key without a passphrase in a file that"
                " only this user may read"
            )
        try:
            return read_secret(Path(files.key_password_file))
        except ValueError as error:
            raise SettingError(
                f"cannot use {files.of}_key_password_file: {error}; got"
                f" {shown_path(str(files.key_password_file))}"
            ) from error

    try:
        context.load_cert_chain(files.cert_file, files.key_file, password=passphrase)
    except (OSError, ValueError) as error:
        # A ValueError says that a passphrase is too long for OpenSSL.
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        if was_asked and "mismatch" not in reason:
            raise SettingError(
                f"cannot use {files.of}_key_password_file: its passphrase does not open the key;"
                f" got {files.key_password_file} for {files.key_file}; want the passphrase of that"
                " key"
            ) from error
        raise SettingError(
            f"cannot use {files.of}_cert_file: {reason}; got {files.cert_file} with key"
            f" {files.key_file}; want PEM files of a certificate and its key"
        ) from error


def _reason(error: OSError) -> str:
    """Return the fault in words; OpenSSL has no useful words for files that are not PEM."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is not a PEM file").replace("_", " ").lower()
    return error.strerror or str(error)
