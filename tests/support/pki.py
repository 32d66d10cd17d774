"""Certificates for tests: good ones, and of each kind of bad one."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

LOCAL = ("localhost", "127.0.0.1")
PASSPHRASE = "the passphrase of a key"  # noqa: S105 - of keys that live for a test


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of one certificate.

    Attributes:
        cert_file: the certificate.
        key_file: its key, in PKCS 8 as Java wants it.
        locked_key_file: the same key, which wants ``PASSPHRASE``.
        store_file: both in one file, for servers in Java.
    """

    cert_file: Path
    key_file: Path
    locked_key_file: Path
    store_file: Path


class Authority:
    """Signs certificates.

    Attributes:
        ca_file: PEM file of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA(organization_name=name)
        self.ca_file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def issue(
        self, name: str, *identities: str, expired: bool = False, again: bool = False
    ) -> Certificate:
        """Make a certificate with this common name, for hosts and addresses; one of them at least.

        Args:
            name: the common name, and of the files.
            identities: host names and addresses that it is good for; this machine's if empty.
            expired: whether it was good only until yesterday.
            again: whether files of this name are replaced.
        """
        now = dt.datetime.now(dt.UTC)
        made = self._ca.issue_cert(
            *(identities or LOCAL),
            common_name=name,
            not_before=now - dt.timedelta(days=9),
            not_after=now + dt.timedelta(days=-1 if expired else 30),
        )
        paths = [self._folder / f"{name}{end}" for end in (".crt", ".key", ".locked.key", ".store")]
        assert again or not paths[0].exists(), f"a certificate {name} is there"
        key = load_pem_private_key(made.private_key_pem.bytes(), None)
        chain = b"".join(one.bytes() for one in made.cert_chain_pems)
        locked = BestAvailableEncryption(PASSPHRASE.encode())
        contents = (chain, _pem(key), _pem(key, locked), _pem(key) + chain)
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
            path.chmod(0o600)
        return Certificate(*paths)


def _pem(key: PrivateKeyTypes, by: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, by or NoEncryption())
