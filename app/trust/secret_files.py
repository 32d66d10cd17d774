"""Secrets in files of their own: read with the settings, and warned of if others may read them.

A setting like ``kafka_password`` may be given as the contents of the file that
``kafka_password_file`` names, as Docker, Kubernetes and systemd hand secrets over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

SECRET_BYTES_MAX = 64 * 1024


def read_secret(file: Path) -> str:
    """Return the contents of a file without its line end.

    Raises:
        ValueError: it cannot be read, is empty, too large or not text. No message shows it.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"cannot read it: {error.strerror}; want a file with the secret") from None
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"it is longer than {SECRET_BYTES_MAX} bytes; want the secret alone")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8; want the secret as text") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ValueError("it is empty; want the secret")
    return secret


def shown_path(given: str) -> str:
    """Return a path for a message, unless it may be a secret that was given for its file."""
    is_within = os.path.dirname(given) != "" and os.path.isdir(os.path.dirname(given))  # noqa: PTH112, PTH120 - never raise
    if os.path.isabs(given) or is_within or os.path.exists(given):  # noqa: PTH110, PTH117 - never raise
        return given
    return "a text that names no file here (not shown, it may be the secret itself)"


def readable_secrets(files: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return a sentence for each file that others on this machine may read or change.

    It has the command that mends it.
    """
    found = []
    for file in files:
        try:
            about = os.stat(file)  # noqa: PTH116 - a path of any kind
        except OSError:
            # The reader of the file reports it.
            continue
        # A file of another user, as a mounted secret is, may need its group for us to read it.
        is_ours = about.st_uid == os.geteuid()
        others = stat.S_IRWXG | stat.S_IRWXO if is_ours else stat.S_IRWXO
        if about.st_mode & others:
            mend = "go-rwx" if is_ours else "o-rwx"
            found.append(
                f"{file} holds secrets and others on this machine may read or change it"
                f" (mode {stat.S_IMODE(about.st_mode):03o}); run: chmod {mend} {file}"
            )
    return found
