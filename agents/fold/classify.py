"""Classify: the layers that select an event's type.

A pattern matches a dotted type level by level: ``*`` stands for one level, ``**`` for one or more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tables.model.layer import Layer
from tables.record.remembered import Remembered

NAMED_MAX = 100
"""Types that no layer selects whose events are counted apart; others count as ``OTHERS``."""

NAME_CHARACTERS_MAX = 200
OTHERS = "..."


class Classifier:
    """Returns the indexes of the layers that select a type, and remembers them.

    Attributes:
        unselected: the events, by type, that no layer selects. A type is cut to
            ``NAME_CHARACTERS_MAX``, and events that are read again count again.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._patterns = [pattern_of(layer) for layer in layers]
        self.layers_of: Remembered[str, tuple[int, ...]] = Remembered(self._matching)
        self.unselected: Counter[str] = Counter()

    def count_unselected(self, types: Iterable[tuple[str, int]]) -> None:
        """Count events of types that no layer selects."""
        for event_type, events in types:
            name = event_type[:NAME_CHARACTERS_MAX]
            is_named = name in self.unselected or len(self.unselected) < NAMED_MAX
            self.unselected[name if is_named else OTHERS] += events

    def selected(self) -> set[str]:
        """Return the types seen that some layer selects, as far as they are remembered."""
        return {
            event_type[:NAME_CHARACTERS_MAX]
            for event_type in self.layers_of.texts()
            if self.layers_of(event_type)
        }

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
