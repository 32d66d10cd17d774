"""Remembered: answers for texts that producers write again and again, within a bound of memory.

Types, content types and schemas come from outside: there may be any number of them, and each may be
as long as a record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

SIZE_MAX = 4 << 20
"""Characters or bytes of all that is remembered for one purpose; a character takes up to 4 bytes.
Texts beyond it (hostile or broken) only cost finding the answer again."""

ENTRY_SIZE = 128
"""Bytes of an entry beside its text, so that short ones are bounded too."""

LENGTH_MAX = SIZE_MAX // 16
"""Longer ones are not remembered."""

Text = TypeVar("Text", bound=str | bytes)
Answer = TypeVar("Answer")


class Remembered(Generic[Text, Answer]):
    """Finds answers, and remembers them; all are forgotten when they take too much memory."""

    def __init__(self, find: Callable[[Text], Answer]) -> None:
        self._find = find
        self._known: dict[Text, Answer] = {}
        self.size = 0

    def texts(self) -> list[Text]:
        """Return the texts that are remembered."""
        return list(self._known)

    def __call__(self, text: Text) -> Answer:
        """Return the answer for a text; an error of finding it is raised each time."""
        if text in self._known:
            return self._known[text]
        answer = self._find(text)
        if len(text) <= LENGTH_MAX:
            self.size += len(text) + ENTRY_SIZE
            if self.size > SIZE_MAX:
                self._known.clear()
                self.size = len(text) + ENTRY_SIZE
            self._known[text] = answer
        return answer
