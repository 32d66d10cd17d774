"""Classify: the layers that select an event's type.

A pattern matches a dotted type level by level: ``*`` stands for one level, ``**`` for one or more.
"""

from __future__ import annotations

import re

from tables.model.layer import Layer
from tables.record.remembered import Remembered


class Classifier:
    """Returns the indexes of the layers that select a type, and remembers them."""

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
    """Return the pattern that matches the whole of a type if a base layer selects it.

    A type may be any text. A level has any characters but dots, line feeds too; it may be empty.
    """
    levels = {"*": r"[^.]*", "**": r".*"}
    alternatives = [
        r"\.".join(levels.get(level) or re.escape(level) for level in pattern.split("."))
        for pattern in layer.events
    ]
    return re.compile("|".join(alternatives), re.DOTALL)
