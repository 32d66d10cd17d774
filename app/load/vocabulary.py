"""The words of a load: the types and keys that its events are made of, for any map.

Types follow from the patterns of the source's layers, keys from the fields of their keys.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import polars as pl

from app.kafka.batch_producer import partition_of
from app.load.event_shape import EventShape
from tables.model.layer import Field, Layer, Map, Source
from tables.state.input_plan import plans_of

SIDE_VALUES_MAX = 16
"""Values of a key field by which the source is not keyed."""

UNCLASSIFIED_LEVELS_MAX = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """The parts of a source's events.

    ``types`` are those that layers select, then ``unclassified``, a type that no layer selects, if
    there is one. ``members`` says, by layer and type, whether the layer selects it. A key is a
    number from 0; ``keyed`` are the fields whose value it decides, ``sides`` the other fields of
    layers' keys. ``partitions`` holds the partition of each key; None if the source is not keyed.
    """

    source: Source
    shape: EventShape
    layers: tuple[Layer, ...]
    types: tuple[str, ...]
    unclassified: str | None
    members: tuple[tuple[bool, ...], ...]
    keyed: tuple[Field, ...]
    sides: tuple[Field, ...]
    measured: tuple[Field, ...]
    keys: int
    weights: tuple[float, ...]
    partitions: tuple[int, ...] | None
    key_texts: tuple[bytes, ...]

    def partition_weights(self) -> list[float]:
        """Return the share of all events that each partition of the source gets."""
        if self.partitions is None:
            return [1 / self.source.partitions] * self.source.partitions
        shares = [0.0] * self.source.partitions
        for weight, partition in zip(self.weights, self.partitions, strict=True):
            shares[partition] += weight
        return shares


def words_of(themap: Map, source: Source, *, keys: int, skew: float, types: int) -> Words:
    """Return the words of a load.

    Args:
        themap: the map.
        source: one of its sources.
        keys: how many keys there are.
        skew: the key of rank r is drawn in proportion to ``r ** -skew``.
        types: number of types, if patterns leave it open.
    """
    layers = plans_of(themap)[source.topic].layers
    shape = EventShape(source)
    keyed, sides, measured = _fields(source, layers, shape)
    patterns = list(dict.fromkeys(pattern for layer in layers for pattern in layer.events))
    chosen, nowhere = types_of(patterns, types), unclassified_type(patterns)
    known = chosen if nowhere is None else [*chosen, nowhere]
    texts = [_key_text(source, keyed, key) for key in range(keys)] if source.keyed_by else []
    return Words(
        source=source,
        shape=shape,
        layers=layers,
        types=tuple(chosen),
        unclassified=nowhere,
        members=tuple(
            tuple(any(matches(p, name) for p in layer.events) for name in known) for layer in layers
        ),
        keyed=keyed,
        sides=sides,
        measured=measured,
        keys=keys,
        weights=_weights(keys, skew),
        partitions=tuple(partition_of(text, source.partitions) for text in texts) or None,
        key_texts=tuple(texts),
    )


def _fields(
    source: Source, layers: Sequence[Layer], shape: EventShape
) -> tuple[tuple[Field, ...], tuple[Field, ...], tuple[Field, ...]]:
    """Return the fields that the key decides, the other fields of layers' keys, and the rest.

    The time and the type of an event are in none of them.
    """
    own = {shape.time, shape.type}
    names = {field.name for layer in layers for field in layer.key}
    fields = [field for field in source.fields if field.name not in own]
    decided = set(source.keyed_by) & {field.name for field in source.fields} or names
    keyed = [field for field in fields if field.name in decided]
    sides = [field for field in fields if field.name in names - decided]
    measured = [field for field in fields if field.name not in names | decided]
    return tuple(keyed), tuple(sides), tuple(measured)


def _weights(keys: int, skew: float) -> tuple[float, ...]:
    """Return the share of events of each key; the key of rank r has ``r ** -skew`` parts."""
    ranks = [(rank + 1) ** -skew for rank in range(keys)]
    total = sum(ranks)
    return tuple(rank / total for rank in ranks)


def types_of(patterns: Sequence[str], types: int) -> list[str]:
    """Return ``types`` types that match the patterns in turn; fewer if patterns have no star.

    ``order.*`` gives ``order.t0``, ``order.t1``, and so on.
    """
    found: dict[str, None] = {}
    for number in itertools.count():
        before = len(found)
        for pattern in patterns:
            levels = [
                f"t{number}" if level in ("*", "**") else level for level in pattern.split(".")
            ]
            found.setdefault(".".join(levels))
            if len(found) == types:
                return list(found)
        if len(found) == before:
            return list(found)
    raise AssertionError("counting has no end")


def matches(pattern: str, name: str) -> bool:
    """Return whether a layer's pattern matches a type: ``*`` is a level, ``**`` one or more."""
    wanted, levels = pattern.split("."), name.split(".")
    for index, want in enumerate(wanted):
        if index >= len(levels):
            return False
        if want == "**":
            return True
        if want not in ("*", levels[index]):
            return False
    return len(wanted) == len(levels)


def unclassified_type(patterns: Sequence[str]) -> str | None:
    """Return a type that no pattern matches, or None if they match all that are tried."""
    for levels in range(1, UNCLASSIFIED_LEVELS_MAX + 1):
        name = ".".join(["unknown"] * levels)
        if not any(matches(pattern, name) for pattern in patterns):
            return name
    return None


def key_values(field: Field, count: int) -> pl.Series:
    """Return the value of a key field for each of ``count`` numbers."""
    numbers = pl.int_range(count, eager=True, dtype=pl.Int64)
    if field.type == "int":
        return numbers
    if field.type == "bool":
        return numbers % 2 == 0
    return pl.Series([f"{field.name}{number}" for number in range(count)], dtype=pl.String)


def _key_text(source: Source, keyed: Sequence[Field], key: int) -> bytes:
    """Return the Kafka key: the values of ``keyed_by`` in its order, joined by ``|``."""
    forms = {field.name: field for field in keyed}
    texts = []
    for name in source.keyed_by:
        kind = forms[name].type if name in forms else "string"
        text = str(key % 2 == 0).lower() if kind == "bool" else str(key)
        texts.append(text if kind in ("int", "bool") else f"{name}{key}")
    return "|".join(texts).encode()
