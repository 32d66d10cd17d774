"""The profile of a sample: the values at each path of its events."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from app.mapfile.sample import Event, OutOfRange, Sample
from tables.model.layer import FieldType
from tables.model.path import STEPS_MAX, Path

NAMES_MAX = 300
"""Names of one object. An object of more has data as names, such as the ids of users."""

_TYPES: dict[frozenset[str], FieldType] = {
    frozenset(["string"]): "string",
    frozenset(["int"]): "int",
    frozenset(["bool"]): "bool",
    frozenset(["float"]): "float",
    # A float field accepts whole numbers too.
    frozenset(["int", "float"]): "float",
}
_KINDS: dict[type, str] = {
    str: "string",
    bool: "bool",
    dict: "object",
    list: "array",
    OutOfRange: "number out of range",
    type(None): "null",
}


@dataclasses.dataclass
class Values:
    """The values at one path.

    ``kinds`` counts them by kind: the types of fields, ``null``, ``object``, ``array`` and words
    for others. ``rows`` are the indexes of the events with a scalar there, ``scalars`` its values.
    ``inner`` has the values below by name, as far as they are objects.
    """

    path: Path
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    rows: array[int] = dataclasses.field(default_factory=lambda: array("L"))
    scalars: list[Any] = dataclasses.field(default_factory=list)
    inner: dict[str, Values] = dataclasses.field(default_factory=dict)
    is_wide: bool = False

    @cached_property
    def type(self) -> FieldType | None:
        """The type of a field that accepts every one of these values; None without such a type."""
        return _TYPES.get(frozenset(self.kinds.keys() - {"null"}))

    @cached_property
    def distinct(self) -> int:
        """The number of distinct scalars."""
        return len(set(self.scalars))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the last name, in small letters: ``deviceId`` is device and id."""
        return words_of(str(self.path[-1]))

    def add(self, event: Event, row: int) -> None:
        """Add the values of an object at this path."""
        for name, value in event.items():
            below = self.inner.get(name)
            if below is None:
                if len(self.inner) == NAMES_MAX:
                    self.is_wide = True
                    continue
                below = self.inner[name] = Values((*self.path, name))
            kind = _kind(value)
            below.kinds[kind] += 1
            if kind == "object":
                if len(below.path) < STEPS_MAX:
                    below.add(value, row)
            elif kind not in ("null", "array"):
                below.rows.append(row)
                below.scalars.append(value)

    def walk(self) -> Iterator[Values]:
        """Yield the values at all paths below, objects before the values in them."""
        for below in self.inner.values():
            yield below
            if not below.is_wide:
                yield from below.walk()


def profile_of(sample: Sample) -> Values:
    """Return the values of all events; its own path is empty."""
    root = Values(())
    for row, event in enumerate(sample.events):
        root.add(event, row)
    return root


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in small letters, whatever is between them."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    apart = re.sub(r"([a-z0-9])([A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\3 \2", plain)
    return tuple(re.findall(r"[a-z0-9]+", apart.lower()))


def _kind(value: Any) -> str:
    known = _KINDS.get(type(value))
    if known is not None:
        return known
    if type(value) is int:
        return "int" if -(2**63) <= value < 2**63 else "int of more than 64 bits"
    if type(value) is float:
        return "float" if math.isfinite(value) else "number that is not finite"
    return type(value).__name__
