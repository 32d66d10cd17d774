"""Tokens of readers: a file of names, scopes and hashes that a worker reads and never writes.

A token is 256 random bits, so a plain SHA-256 is enough at rest: nobody can try all of them, which
is the reason for slow hashes and salts. The token itself is shown once, when it is made.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from tables.called import called
from tables.model.errors import SettingError

READ, LIVE, ADMIN = "read", "live", "admin"
SCOPES = (READ, LIVE, ADMIN)
"""Scopes of a token: answers, streams, and the state of the worker."""

PREFIX = "tm_"
"""Every token begins with it, so that scanners of source code and logs recognise one."""

TOKEN_BYTES = 32
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LIFETIME = re.compile(r"([1-9]\d{0,5})([mhdw])")

Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]
Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class Token(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One token, without itself.

    Attributes:
        name: its name for people; unique in its file.
        scopes: its rights; a scope of a later version grants nothing here.
        sha256: the hash of its text, in hexadecimal.
        created: when it was made.
        expires: the time from which it is refused; None for never.
    """

    name: str
    scopes: tuple[str, ...]
    sha256: Hash
    created: Time
    expires: Time | None = None

    def is_valid(self, now: dt.datetime) -> bool:
        """Return whether it has not expired at a time."""
        return self.expires is None or now < self.expires


class TokenList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of a file of tokens."""

    format: int = FORMAT
    tokens: tuple[Token, ...] = ()


class Tokens:
    """The tokens of a file, by their hashes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._by_hash: dict[str, Token] = {}

    def load(self) -> None:
        """Read the file; its earlier content no longer counts.

        Raises:
            SettingError: the file cannot be read, or is not a file of tokens; nothing has changed.
        """
        self._by_hash = {token.sha256: token for token in read_tokens(Path(self.file))}

    def find(self, sha256: str) -> Token | None:
        """Return the valid token with this hash.

        A lookup by hash needs no constant time: a hash that is learned bit by bit is not a token.
        """
        token = self._by_hash.get(sha256)
        return token if token is not None and token.is_valid(now()) else None


def hash_of(token: str) -> str:
    """Return the hash by which a token is kept."""
    # Bytes of a header that are not UTF-8 come as surrogates; they match no token.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def read_tokens(file: Path) -> tuple[Token, ...]:
    """Return the tokens of a file.

    Raises:
        SettingError: it cannot be read, is not a file of tokens, or names one twice.
    """
    try:
        found = msgspec.json.decode(file.read_bytes(), type=TokenList)
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unusable(file, str(error)) from error
    if found.format != FORMAT:
        raise _unusable(file, f"its format is {found.format}, not {FORMAT}")
    names = [token.name for token in found.tokens]
    if len(set(names)) < len(names):
        raise _unusable(file, "two tokens have the same name")
    return found.tokens


def make_token(
    file: Path, name: str, scopes: Iterable[str], lifetime: dt.timedelta | None = None
) -> str:
    """Add a token to a file, which is made if there is none, and return the token.

    Raises:
        SettingError: the file cannot be read or written, the name is taken or not a name, or a
            scope does not exist.
    """
    wanted = tuple(scope for scope in SCOPES if scope in set(scopes))
    if NAME.fullmatch(name) is None:
        raise SettingError(
            f"cannot make a token: got the name {name!r}; want 1 to 64 letters, digits, dots,"
            " dashes and underscores, a letter or digit first"
        )
    if not wanted or set(wanted) != set(scopes):
        raise SettingError(
            f"cannot make token {name}: got scopes {', '.join(sorted(set(scopes))) or 'none'};"
            f" want some of {', '.join(SCOPES)}"
        )
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    created = now().replace(microsecond=0)
    try:
        expires = None if lifetime is None else created + lifetime
    except OverflowError as error:
        raise SettingError(
            f"cannot make token {name}: it would expire after the year {dt.MAXYEAR}; want a"
            " shorter time, or none"
        ) from error
    with _locked(file):
        there = read_tokens(file) if file.exists() else ()
        if any(one.name == name for one in there):
            raise SettingError(
                f"cannot make token {name}: {file} has one of this name; want another name, or"
                f" revoke it first: {called(f'token revoke {name}')}"
            )
        _write(file, (*there, Token(name, wanted, hash_of(token), created, expires)))
    return token


def revoke_token(file: Path, name: str) -> None:
    """Remove a token from a file.

    Raises:
        SettingError: the file cannot be read or written, or has no such token.
    """
    with _locked(file):
        there = read_tokens(file)
        left = tuple(token for token in there if token.name != name)
        if len(left) == len(there):
            names = ", ".join(token.name for token in there) or "no token"
            raise SettingError(f"cannot revoke token {name}: {file} has {names}")
        _write(file, left)


def lifetime_of(text: str) -> dt.timedelta:
    """Return a duration such as ``90d``: minutes, hours, days or weeks.

    Raises:
        ValueError: it is not one.
    """
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise ValueError(f"got {text!r}; want a number with m, h, d or w, such as 90d")
    return dt.timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])


def now() -> dt.datetime:
    """Return the time by the wall clock."""
    return dt.datetime.now(dt.UTC)


def _unusable(file: Path, why: str) -> SettingError:
    return SettingError(
        f"cannot use web_tokens_file: {why}; got {file}; want the file that"
        f" `{called('token new')}` writes"
    )


def _unwritable(file: Path, error: OSError) -> SettingError:
    return SettingError(
        f"cannot write web_tokens_file: {error.strerror}; got {file}; want a folder that this user"
        " may write"
    )


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let nobody else change the file meanwhile; its folder is locked, as the file is replaced."""
    try:
        folder = os.open(file.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(file, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(file: Path, tokens: Sequence[Token]) -> None:
    """Replace the file at once: readers see the old contents or the new ones."""
    # A link stays: its target is replaced.
    target = file.resolve()
    content = msgspec.json.format(msgspec.json.encode(TokenList(tokens=tuple(tokens))), indent=2)
    written = ""
    try:
        # mkstemp makes files of mode 0600.
        handle, written = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content + b"\n")
            stream.flush()
            if target.exists():
                # The worker's user may not be who runs this command.
                about = target.stat()
                if about.st_uid != os.geteuid():
                    os.fchown(stream.fileno(), about.st_uid, about.st_gid)
            os.fsync(stream.fileno())
        Path(written).replace(target)
    except OSError as error:
        if written:
            Path(written).unlink(missing_ok=True)
        raise _unwritable(file, error) from error
