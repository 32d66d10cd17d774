"""The rules of docs/formats/journal.md, each dropped by replacing functions of the product.

A simulation that does not fail without a rule has gone blind, or the rule carries nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

Patch = tuple[object, str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule, and the code in its place when it is dropped.

    Attributes:
        name: name of the rule in tables.
        number: that of docs/formats/journal.md.
        says: the rule in a sentence.
        patches: makes the replacements, anew for each run.
        quick: the kind of run, pure or impure, of which a seed shows the rule in the suite, ""
            if only the long run looks for it.
        seed: that seed.
        bears: whether results rest on the rule; others spare work, or are kept by another rule too.
        tail_loss: whether it shows only if acknowledged ends of journals are lost, which the
            protocol does not promise to bear.
    """

    name: str
    number: int
    says: str
    patches: Callable[[], list[Patch]]
    quick: str
    seed: int
    bears: bool
    tail_loss: bool

    @contextlib.contextmanager
    def dropped(self) -> Iterator[None]:
        """Run without the rule."""
        with contextlib.ExitStack() as stack:
            for target, name, replacement in self.patches():
                stack.enter_context(mock.patch.object(target, name, replacement))
            yield


FOUND: list[Rule] = []


def rule(
    number: int,
    says: str,
    *,
    quick: str = "",
    seed: int = 1,
    bears: bool = True,
    tail_loss: bool = False,
) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """Add a rule, named after the function that drops it."""

    def add(patches: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = patches.__name__.replace("_", " ")
        FOUND.append(Rule(name, number, says, patches, quick, seed, bears, tail_loss))
        return patches

    return add
