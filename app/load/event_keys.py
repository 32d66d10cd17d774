"""Event keys: the Kafka keys of JSON events, from the values at paths of them.

A text is its own key; another value is written as JSON has it. The values at several paths are
joined by ``|``, as the load generator does (``app/load/vocabulary.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agents.decode.event_struct import EventStruct, Leaf
from tables.model.errors import TreasureMapError
from tables.model.layer import Source
from tables.model.path import Path, parse_path, path_text

_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class EventKeyError(TreasureMapError):
    """Paths that no key can be made of."""


class EventKeys:
    """Returns the keys of events.

    Args:
        paths: the paths in an event to the values of its key.

    Raises:
        EventKeyError: one path is given twice, or lies inside the value of another.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        for number, one in enumerate(paths):
            others = (*paths[:number], *paths[number + 1 :])
            around = [other for other in others if other == one[: len(other)]]
            if around:
                raise EventKeyError(
                    f"cannot make a key of {path_text(one)} and {path_text(around[0])}: they are"
                    " the same value, or one lies inside the other; want values of their own;"
                    " leave one out"
                )
        names = [f"value_{number}" for number in range(len(paths))]
        self._struct = EventStruct(
            {path: Leaf(name, Any) for path, name in zip(paths, names, strict=True)}
        )
        self._getters: list[Callable[[Any], Any]] = list(map(self._struct.getter, names))

    def of(self, events: Iterable[bytes]) -> list[bytes | None]:
        """Return the key of each event; None if a value of it is missing or null."""
        return [self._key(event) for event in events]

    def _key(self, event: bytes) -> bytes | None:
        try:
            found = self._struct.decode(event)
        except msgspec.ValidationError as error:
            try:
                found = self._struct.decode_once_more(event, error)
            except _BROKEN:
                return None
        except _BROKEN:
            return None
        values = [get(found) for get in self._getters]
        return None if None in values else "|".join(map(_text, values)).encode()


def keys_of(source: Source) -> EventKeys | None:
    """Return the keys that a source's producers promise; None if they promise none."""
    if not source.keyed_by:
        return None
    return EventKeys([source.field(name).at for name in source.keyed_by])


def keys_at(texts: Sequence[str]) -> EventKeys | None:
    """Return the keys of events by paths as ``repo.id``; None if there is no path.

    Raises:
        EventKeyError: a text is not a path, or paths lie inside each other.
    """
    try:
        return EventKeys([parse_path(text) for text in texts]) if texts else None
    except ValueError as error:
        raise EventKeyError(f"cannot use --key: {error}") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
