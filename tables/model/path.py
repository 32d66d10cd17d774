"""Paths into an event: names of objects' fields and indexes of arrays, from the outside in.

A path is written ``payload.device.id`` or ``readings[0].value``. A name with a dot, a bracket, a
quote or white space is written as a JSON text: ``labels."device.id"``.
"""

from __future__ import annotations

import re

import msgspec

Path = tuple[str | int, ...]
"""The first step is a name, as an event is an object; an ``int`` is an index of an array."""

STEPS_MAX = 16
INDEX_MAX = 9_999

_PLAIN = r"[^\s.\[\]\"]+"
_STEP = re.compile(rf'(\.?)({_PLAIN}|"(?:[^"\\]|\\.)*")|\[(\d{{1,9}})\]')


def parse_path(text: str) -> Path:
    """Return the path that a text names.

    Raises:
        ValueError: it is not a path; the message has the fault and the form that is wanted.
    """
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        # A dot stands between names, and nowhere else.
        if match is None or (match[3] is None and bool(match[1]) is not bool(steps)):
            break
        steps.append(int(match[3]) if match[3] is not None else _name(match[2], text))
        position = match.end()
    if position < len(text) or not steps or isinstance(steps[0], int):
        raise ValueError(
            f"got {text!r}, which stops to be a path at character {position + 1}; want names with"
            ' dots between them, as in payload.device.id, list[0].id or labels."device.id"'
        )
    if len(steps) > STEPS_MAX or any(isinstance(s, int) and s > INDEX_MAX for s in steps):
        raise ValueError(f"got {text!r}; want at most {STEPS_MAX} steps and indexes to {INDEX_MAX}")
    return tuple(steps)


def path_text(path: Path) -> str:
    """Return the text of a path, in the form that :func:`parse_path` reads."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        plain = re.fullmatch(_PLAIN, step) is not None
        name = step if plain else msgspec.json.encode(step).decode()
        text += f".{name}" if text else name
    return text


def _name(text: str, whole: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"got {whole!r}, of which {text} is not a JSON text: {error}") from error
