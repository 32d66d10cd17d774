"""Classify: which layers an event's type belongs to.

A pattern matches a dotted type level by level: ``*`` stands for one level, ``**`` for any number.
"""

from __future__ import annotations

import re

from tables.layer import Layer

TYPES_KNOWN_MAX = 65_536
"""Types remembered; a stream with more (hostile or broken) only costs matching them again."""


class Classifier:
    """Tells, for a type, the indexes of the layers that select it; remembers the answers."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._patterns = [
            re.compile("|".join(_expression(pattern) for pattern in layer.events))
            for layer in layers
        ]
        self._known: dict[str, tuple[int, ...]] = {}

    def layers_of(self, event_type: str) -> tuple[int, ...]:
        """Return the indexes of the layers that select ``event_type``."""
        known = self._known.get(event_type)
        if known is None:
            known = tuple(
                index
                for index, pattern in enumerate(self._patterns)
                if pattern.fullmatch(event_type) is not None
            )
            if len(self._known) >= TYPES_KNOWN_MAX:
                self._known.clear()
            self._known[event_type] = known
        return known


def _expression(pattern: str) -> str:
    levels = {"*": r"[^.]+", "**": r".+"}
    return r"\.".join(levels.get(level, re.escape(level)) for level in pattern.split("."))
