"""Text of others made safe to show: what would steer a terminal is shown as an escape.

Keys, types, topics and errors come from whoever writes to Kafka. Control characters among them
could clear a screen or set its title; those that turn the direction of text make it look like
another one.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

import orjson


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with an escape such as ``\x1b`` in place of all that does not print.

    Args:
        text: any text.
        keep: characters that stay, such as the line feeds of a message of several lines.
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


class PrintableRecord(logging.LogRecord):
    """A line of the log that is safe to show, with a traceback below it."""

    def getMessage(self) -> str:  # noqa: N802 - as logging has it
        """Return the message."""
        return printable(super().getMessage(), keep="\n")


def protect_log() -> None:
    """Make all lines that are logged from now on safe to show, those of libraries too."""
    logging.setLogRecordFactory(_record)


def _record(*args: Any, **more: Any) -> logging.LogRecord:
    record = PrintableRecord(*args, **more)
    if record.exc_info and record.exc_info[0] is not None:
        lines = "".join(traceback.format_exception(*record.exc_info))
        record.exc_text = printable(lines.rstrip("\n"), keep="\n")
    return record


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
