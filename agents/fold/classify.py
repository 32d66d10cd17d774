"""Classify: which layers an event's type belongs to.

A pattern matches a dotted type level by level: ``*`` stands for one level, ``**`` for one or more.
"""

from __future__ import annotations

import re

from tables.model.layer import Layer
from tables.record.remembered import Remembered


class Classifier:
    """Tells, for a type, the indexes of the layers that select it; remembers the answers."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._patterns = [pattern_of(layer) for layer in layers]
        self.layers_of: Remembered[str, tuple[int, ...]] = Remembered(self._matching)

    def _matching(self, event_type: str) -> tuple[int, ...]:
        return tuple(
            index
            for index, pattern in enumerate(self._patterns)
            if pattern.fullmatch(event_type) is not None
        )


def pattern_of(layer: Layer) -> re.Pattern[str]:
    """Return what the whole of a type matches if a base layer selects it.

    A type may be any text: a level has any characters but dots, line feeds too, or none.
    """
    levels = {"*": r"[^.]*", "**": r".*"}
    alternatives = [
        r"\.".join(levels.get(level) or re.escape(level) for level in pattern.split("."))
        for pattern in layer.events
    ]
    return re.compile("|".join(alternatives), re.DOTALL)
