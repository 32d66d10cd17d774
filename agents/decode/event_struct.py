"""The struct of one source's JSON events: only the values that the map reads, nested as they are.

A path through objects costs nothing but its structs: msgspec reads the event in one step. Two kinds
of events are read in two steps instead, into plain dicts and from there into the same struct: those
with an index of an array in a path, or a name that no struct can have, and those that hold another
type than an object on the way of a path. In both ways values have the same types, and a path that
misses is null.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from tables.model.path import Path

Getter = Callable[[Any], Any]
_FIELD_NAME = re.compile(r'[^"\\\x00-\x1f]*')
"""Names that msgspec takes for fields of a struct."""


_LARGE = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|-?[0-9]{4000,}(?![0-9.eE])', re.DOTALL)
"""A text, or an integer that is out of range by far."""


@dataclasses.dataclass(slots=True, frozen=True)
class Leaf:
    """A value that the map reads: the struct's attribute for it, and its type.

    A value that is not ``required`` may be null or absent; its type has to allow null.
    """

    attribute: str
    type: Any
    required: bool = False


@dataclasses.dataclass(slots=True, frozen=True)
class _Node:
    """An object or array on the way of a path: its struct, and the values in it by step."""

    attribute: str
    kind: Any
    steps: Mapping[str | int, _Node | Leaf]
    required: bool


class EventStruct:
    """Decodes JSON events of one source into structs.

    Args:
        leaves: the values by path. No path is the beginning of another one.
        convert: returns the value of a leaf whose type msgspec does not know, by that type.
        takes_all: some leaves take every value, also numbers that are out of range.
    """

    def __init__(
        self,
        leaves: Mapping[Path, Leaf],
        convert: Callable[[type, Any], Any] | None = None,
        *,
        takes_all: bool = False,
    ) -> None:
        self._in_two_steps = any(_is_unusual(step) for path in leaves for step in path)
        self._root = self._node("", dict(leaves), itertools.count())
        is_nested = any(isinstance(below, _Node) for below in self._root.steps.values())
        self._may_miss = (is_nested or takes_all) and not self._in_two_steps
        self._convert = convert
        self._typed: Any = msgspec.json.Decoder(self._root.kind, dec_hook=convert)
        self._plain = msgspec.json.Decoder(float_hook=_float)
        self._attributes = {
            leaf.attribute: ".".join(self._chain(path)) for path, leaf in leaves.items()
        }
        self._columns = {name: _column(chain) for name, chain in self._attributes.items()}
        self.decode: Callable[[bytes], Any] = (
            self._decode_plain if self._in_two_steps else self._typed.decode
        )
        """Decode a text that is UTF-8; raises a :class:`msgspec.DecodeError` or RecursionError."""

    def decode_once_more(self, text: bytes, error: msgspec.ValidationError) -> Any:
        """Decode an event that :meth:`decode` refused with ``error``: perhaps a path misses.

        Raises:
            msgspec.ValidationError: the event's values are not those of the map.
        """
        if not self._may_miss or not _is_inside(error):
            raise error
        return self._decode_plain(text)

    def take(self, values: Mapping[str, Any], plain: Callable[[str, Any], Any]) -> Any:
        """Return the struct of an event's values; raises a :class:`msgspec.ValidationError`.

        ``plain`` returns a value that the map reads as one of JSON, given its attribute.
        """
        shaped = self._shaped(values, self._root)
        self._make_plain(shaped, self._root, plain)
        return msgspec.convert(shaped, self._root.kind, dec_hook=self._convert)

    def event(self, values: Mapping[str, Any]) -> Any:
        """Return a struct with these values by attribute, and null for all others."""
        return _filled(self._root, values)

    def getter(self, attribute: str) -> Getter:
        """Return the getter of an attribute of an event."""
        found = operator.attrgetter(self._attributes[attribute])
        return found if "." not in self._attributes[attribute] else _or_null(found)

    def column(self, attribute: str, events: Sequence[Any]) -> list[Any]:
        """Return the values of an attribute of all events."""
        try:
            return self._columns[attribute](events)
        except AttributeError:
            # An object on the way is null.
            return list(map(self.getter(attribute), events))

    def _node(self, attribute: str, leaves: Mapping[Path, Leaf], numbers: Iterator[int]) -> _Node:
        inner: dict[str | int, dict[Path, Leaf]] = {}
        steps: dict[str | int, _Node | Leaf] = {}
        for (step, *rest), leaf in leaves.items():
            if rest:
                inner.setdefault(step, {})[tuple(rest)] = leaf
            else:
                steps[step] = leaf
        for step, some in inner.items():
            steps[step] = self._node(f"node_{next(numbers)}", some, numbers)
        fields = [(below.attribute, *self._field(step, below)) for step, below in steps.items()]
        kind = msgspec.defstruct("Event", fields, gc=False, frozen=True, kw_only=True)
        return _Node(attribute, kind, steps, any(below.required for below in steps.values()))

    def _field(self, step: str | int, below: _Node | Leaf) -> tuple[Any, Any]:
        """Return the type of a struct's field, and its name in JSON and default."""
        name = _key(step) if self._in_two_steps else str(step)
        if isinstance(below, Leaf):
            default = {} if below.required else {"default": None}
            return below.type, msgspec.field(name=name, **default)
        if below.required:
            return below.kind, msgspec.field(name=name)
        return below.kind | None, msgspec.field(name=name, default=below.kind())

    def _chain(self, path: Path) -> Iterator[str]:
        below: Any = self._root
        for step in path:
            below = below.steps[step]
            yield below.attribute

    def _decode_plain(self, text: bytes) -> Any:
        found = self._plain_value(text)
        if isinstance(found, dict):
            found = self._shaped(found, self._root)
        return msgspec.convert(found, self._root.kind, dec_hook=self._convert)

    def _plain_value(self, text: bytes) -> Any:
        try:
            return self._plain.decode(text)
        except msgspec.ValidationError:
            # An integer has more digits than Python reads.
            return self._plain.decode(_LARGE.sub(lambda found: found[1] or b"1e999", text))

    def _shaped(self, value: Any, node: _Node) -> dict[str, Any]:
        """Return the part of a value that the map reads, with nothing but objects on the way."""
        shaped = {}
        for step, below in node.steps.items():
            if isinstance(step, int):
                if not isinstance(value, list) or step >= len(value):
                    continue
            elif not isinstance(value, dict) or step not in value:
                continue
            found = value[step]
            name = _key(step) if self._in_two_steps else str(step)
            shaped[name] = found if isinstance(below, Leaf) else self._shaped(found, below)
        return shaped

    def _make_plain(
        self, shaped: dict[str, Any], node: _Node, plain: Callable[[str, Any], Any]
    ) -> None:
        for step, below in node.steps.items():
            name = _key(step) if self._in_two_steps else str(step)
            if name not in shaped:
                continue
            if isinstance(below, Leaf):
                shaped[name] = plain(below.attribute, shaped[name])
            else:
                self._make_plain(shaped[name], below, plain)


def _is_unusual(step: str | int) -> bool:
    """Return whether no struct can have a field for a step of a path."""
    return isinstance(step, int) or not _FIELD_NAME.fullmatch(step)


def _key(step: str | int) -> str:
    """Return the key of a step in an object that stands for an object or an array."""
    if isinstance(step, int):
        return f"[{step}]"
    is_own = _is_unusual(step) or step.startswith(("[", "."))
    return f".{step.encode().hex()}" if is_own else step


def _filled(node: _Node, values: Mapping[str, Any]) -> Any:
    return node.kind(
        **{
            below.attribute: values.get(below.attribute)
            if isinstance(below, Leaf)
            else _filled(below, values)
            for below in node.steps.values()
        }
    )


def _column(attributes: str) -> Callable[[Sequence[Any]], list[Any]]:
    """Return the function that reads attributes of all events: ``node_0.field_x``, or one name.

    Python reads an attribute that stands in its code in 14 ns, one of an attrgetter in 25 ns.
    """
    assert all(map(str.isidentifier, attributes.split("."))), attributes
    column: Callable[[Sequence[Any]], list[Any]] = eval(  # noqa: S307 - of names that are checked
        f"lambda events: [event.{attributes} for event in events]"
    )
    return column


def _or_null(get: Getter) -> Getter:
    def get_or_null(event: Any) -> Any:
        try:
            return get(event)
        except AttributeError:
            return None

    return get_or_null


def _is_inside(error: msgspec.ValidationError) -> bool:
    """Return whether an error is about a value inside of the event."""
    return " - at `$" in str(error)


_OutOfRange = type("number out of range", (), {})
"""Errors show this name as the type of the value that was found."""


def _float(text: str) -> Any:
    """Return a number, or an object of no type if it is out of range: it may be skipped."""
    number = float(text)
    return number if math.isfinite(number) else _OutOfRange()
