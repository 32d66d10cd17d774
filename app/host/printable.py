"""Text of others made safe to show: control characters of a terminal are shown as escapes.

Keys, types, topics and errors come from whoever writes to Kafka. Control characters among them
could clear a screen or set its title; those that turn the direction of text disguise it.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import orjson

MASK = "********"
"""The text that is shown instead of a secret."""

SECRET_LENGTH_MIN = 4
"""The shortest secret that is hidden: without the texts of shorter ones no line could be read."""

_OF_BYTES = "aiokafka.conn"
"""The logger of whole requests and answers at debug: logins with their passwords, records."""


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with an escape such as ``\x1b`` for each character that does not print.

    Those in ``keep`` stay, such as the line feeds of a message of several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def printable_json(value: object, option: int | None = None) -> str:
    """Return a value as JSON for any reader, whose texts do not steer a terminal.

    JSON escapes control characters but those from 127 on.
    """
    text = orjson.dumps(value, option=option).decode()
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else _json_escape(one) for one in text)


def protect_log(secrets: Iterable[str] = ()) -> None:
    """Make all lines that are logged from now on safe to show, those of libraries too.

    No line has one of ``secrets``, or bytes that went to brokers: events and logins.
    """
    long = [secret for secret in secrets if len(secret) >= SECRET_LENGTH_MIN]
    hidden = sorted({form for secret in long for form in _forms(secret)}, key=len, reverse=True)

    def shown(text: str) -> str:
        for secret in hidden:
            text = text.replace(secret, MASK)
        return printable(text, keep="\n")

    class Record(logging.LogRecord):
        """A line that is safe to show, with a traceback below it."""

        def getMessage(self) -> str:  # noqa: N802 - as logging has it
            """Return the message."""
            return shown(super().getMessage())

    def record(*args: Any, **more: Any) -> logging.LogRecord:
        made = Record(*args, **more)
        if made.name == _OF_BYTES and made.levelno <= logging.DEBUG and made.args:
            made.args = tuple(_kind_of(one) for one in made.args)
        if made.exc_info and made.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*made.exc_info))
            made.exc_text = shown(lines.rstrip("\n"))
        return made

    logging.setLogRecordFactory(record)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, and as URLs, JSON and Python's own words of values have it."""
    yield secret
    # Bytes of the environment that are not UTF-8 are surrogates in a text.
    raw = secret.encode("utf-8", "surrogateescape")
    for safe in ("", "/"):
        yield quote(raw, safe)
        yield quote_plus(raw, safe)
    for ascii_alone in (True, False):
        yield json.dumps(secret, ensure_ascii=ascii_alone)[1:-1]
    yield repr(secret)[1:-1]
    yield repr(raw)[2:-1]


def _kind_of(argument: object) -> object:
    """Return the part of a request or an answer that a line may show: its kind."""
    is_plain = argument is None or isinstance(argument, str | int | float | BaseException)
    return argument if is_plain else type(argument).__name__


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
