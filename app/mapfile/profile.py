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

from agents.decode.conversions import NotConvertibleError, value_converter
from app.mapfile.sample import Event, OutOfRange, Sample
from tables.model.layer import Field, FieldType
from tables.model.path import STEPS_MAX, Path

NAMES_MAX = 300
"""Names of one object. An object of more has data as names, such as the ids of users."""

TEXTS_MIN = 20
"""Texts that are all numbers, or all booleans, prove nothing if there are fewer."""

_ID_LIKE = {
    "id", "code", "key", "number", "no", "nr", "status",
    "zone", "station", "device", "host", "port", "line",
}  # fmt: skip
_TEXT_LIKE = {"type", "kind", "event", "action", "zip", "plz", "postcode", "phone", "version"}
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false")
"""The texts of values that nobody writes as a code: without zeros before them, or a plus."""

_PLACEHOLDER = re.compile(r"\W*|\\N|n/?a|nan|nil|none|null|unknown", re.ASCII | re.IGNORECASE)
"""The texts for an absent number: the ``-`` of access logs, the ``N/A`` of reports."""

_TYPES: dict[frozenset[str], FieldType] = {
    frozenset(["string"]): "string",
    frozenset(["int"]): "int",
    frozenset(["bool"]): "bool",
    frozenset(["float"]): "float",
    # A float field accepts whole numbers too.
    frozenset(["int", "float"]): "float",
}
_FIELD_KINDS = frozenset(("string", "int", "bool", "float"))
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
    for others. ``rows`` are the indexes of the events with a scalar there, ``scalars`` its values,
    of the field's type. ``inner`` has the values below by name, as far as they are objects.
    ``type`` is that of a field that accepts every one of these values, None without such a type;
    ``options`` are those that the field needs for it. ``placeholders`` are texts in the place of
    numbers, which the field takes as null; their rows and scalars are left out.
    """

    path: Path
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    rows: array[int] = dataclasses.field(default_factory=lambda: array("L"))
    scalars: list[Any] = dataclasses.field(default_factory=list)
    inner: dict[str, Values] = dataclasses.field(default_factory=dict)
    is_wide: bool = False
    type: FieldType | None = None
    options: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()

    @cached_property
    def distinct(self) -> int:
        """The number of distinct scalars."""
        return len(set(self.scalars))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the last name, in small letters: ``deviceId`` is device and id."""
        return words_of(str(self.path[-1]))

    @property
    def is_id_like(self) -> bool:
        """Whether the name is that of numbers or texts which name a thing."""
        return bool(_ID_LIKE & set(self.words[-1:]))

    def settle(self) -> None:
        """Find the type and its options, when all values were added."""
        self.type = _TYPES.get(frozenset(self.kinds.keys() - {"null"}))
        if not self._is_named and self.kinds.keys() <= {"string", "int", "float", "null"}:
            self._settle_placeholders()
        for type_, option in self._conversions():
            flags: dict[str, Any] = {option: True}
            convert = value_converter(Field("", type_, **flags))
            try:
                self.scalars = [convert(value) for value in self.scalars]
            except NotConvertibleError:
                continue
            self.type, self.options = type_, (option,)
            break

    def _settle_placeholders(self) -> None:
        """Make a number of texts that are numbers but for some placeholders, if these are few."""
        texts = {value for value in self.scalars if type(value) is str}
        absent = {text for text in texts if _PLACEHOLDER.fullmatch(text)}
        numbers = [value for value in self.scalars if value not in absent]
        is_likely = absent and len(numbers) >= max(TEXTS_MIN, len(self.scalars) - len(numbers))
        if not is_likely or not all(map(_PLAIN_NUMBER.fullmatch, texts - absent)):
            return
        for type_ in ("int", "float"):
            convert = value_converter(Field("", type_, text=True))
            try:
                scalars = [convert(value) for value in numbers]
            except NotConvertibleError:
                continue
            pairs = zip(self.rows, self.scalars, strict=True)
            self.rows = array("L", (row for row, value in pairs if value not in absent))
            self.type, self.scalars, self.options = type_, scalars, ("text", "on_error")
            self.placeholders = tuple(sorted(absent))
            return

    @property
    def _is_named(self) -> bool:
        """Whether the name is that of a text, even if the text is a number."""
        return self.is_id_like or bool(_TEXT_LIKE & set(self.words))

    def _conversions(self) -> Iterator[tuple[FieldType, str]]:
        """Yield types and options that may accept the values, the likely ones first."""
        if self.placeholders:
            return
        kinds = self.kinds.keys() - {"null"}
        texts = [value for value in self.scalars if type(value) is str]
        if kinds in ({"int", "float"}, {"float"}) and self.is_id_like:
            yield "int", "whole"
        may_be_numbers = kinds != {"string"} or (len(texts) >= TEXTS_MIN and not self._is_named)
        is_plain = texts and kinds <= _FIELD_KINDS and all(map(_PLAIN_NUMBER.fullmatch, texts))
        if may_be_numbers and is_plain:
            yield from (("int", "text"), ("float", "text"), ("bool", "text"))
        if kinds == {"string", "int"}:
            yield "string", "digits"

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
    for values in root.walk():
        values.settle()
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
