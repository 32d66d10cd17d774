"""The revisions of a run's map: rules in plain numbers, and the maps made of them.

The first revision has all layers, or lacks some that a later one adds. Each later one draws anew
all that a revision may change (docs/formats/map.md), so a layer, the id or a feed may go, come, and
come back. To let revisions change more, add it to :func:`_draw_revision`, and to the oracle.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from tables.model.layer import (
    Accumulator,
    Condition,
    FeedFormat,
    Field,
    FieldType,
    KeyField,
    Layer,
    Map,
    Measure,
    Source,
)
from tables.model.window import Window
from tests.support.common import EVENTS

RAW = "events.raw"
BY_KEY = (KeyField("k", "string"),)
SKEW_MS = 2**60
REVISIONS = 4
IDS_MAX = (0, 3, 8, 1_000), (0, 0, 8, 1_000)
"""Choices of odd and even revisions: the next one often takes up what one dropped."""

DROPPING = 0.3, 0.7

WITH_MAX = 0.7
"""Share of revisions that measure the greatest value: it comes and goes as layers do."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule of a revision for one base layer, in plain numbers.

    Events below ``least`` are filtered.
    """

    out_of_orderness_ms: int
    lateness_ms: int
    least: int

    @property
    def slack_ms(self) -> int:
        """How far the floor is behind stream time."""
        return self.out_of_orderness_ms + self.lateness_ms


@dataclasses.dataclass(frozen=True)
class Revision:
    """A map, with the rules of the base layers that it has, and how many ids are remembered."""

    themap: Map
    rules: dict[str, Rule]
    ids: int

    def has(self, layer: Layer) -> bool:
        """Return whether the map has a layer."""
        return any(one.name == layer.name for one in self.themap.layers)

    def has_max(self, layer: Layer) -> bool:
        """Return whether a layer of the map has the greatest value."""
        return any(
            acc.kind == "max"
            for one in self.themap.layers
            if one.name == layer.name
            for acc in one.accumulators
        )

    def feed_of(self, layer: Layer) -> FeedFormat | None:
        """Return the form in which a layer is published, None if it is not."""
        return next((one.publish for one in self.themap.layers if one.name == layer.name), None)


def draw_revisions(
    rng: random.Random, partitions: int, *, impure: bool
) -> tuple[tuple[Layer, ...], list[Revision]]:
    """Draw all layers that there will be, and the revisions that have some of them each."""
    layers = _draw_layers(rng, partitions, "float" if impure else "int", more=impure)
    count = REVISIONS if impure else 1
    # Drawn beside the others, which are the same with and without it.
    beside = random.Random()
    beside.setstate(rng.getstate())
    revisions = [
        _draw_revision(rng, layers, partitions, number, impure=impure) for number in range(count)
    ]
    if impure:
        revisions = [one if beside.random() < WITH_MAX else _without_max(one) for one in revisions]
    return layers, revisions


def _without_max(revision: Revision) -> Revision:
    """Return a revision whose layers do not have the greatest value."""
    change = msgspec.structs.replace
    layers = tuple(
        change(
            layer,
            measures=tuple(one for one in layer.measures if one.kind != "max"),
            accumulators=tuple(one for one in layer.accumulators if one.kind != "max"),
        )
        for layer in revision.themap.layers
    )
    return dataclasses.replace(revision, themap=change(revision.themap, layers=layers))


def _draw_layers(
    rng: random.Random, partitions: int, kind: FieldType, *, more: bool
) -> tuple[Layer, ...]:
    """Draw the layers: three levels, or two latenesses on one source, or a merge stage.

    With ``more`` there may be a second base layer beside any of these.
    """
    accumulated: Literal["int", "float"] = "float" if kind == "float" else "int"
    fine = Layer(
        name="fine",
        key=BY_KEY,
        window=Window(4),
        measures=(Measure("count"), Measure("sum", "v"), Measure("max", "v")),
        accumulators=(EVENTS, *(Accumulator(k, "v", accumulated) for k in ("n", "sum", "max"))),
        max_out_of_orderness_ms=3,
        allowed_lateness_ms=rng.choice((2, 7, 7, 30)),
        partitions=partitions,
        source="events",
        events=("e",),
    )
    change = msgspec.structs.replace
    finer = {"source": None, "events": ()}
    mid = change(fine, name="mid", window=Window(8), finer="fine", partitions=2, **finer)
    side = change(
        fine, name="side", window=Window(6), max_out_of_orderness_ms=1, allowed_lateness_ms=2
    )
    form = rng.choice(("levels", "latenesses", "merged"))
    match form:
        case "levels":
            top = change(mid, name="top", key=(), window=Window(16), finer="mid", partitions=1)
            layers = [fine, mid, top]
        case "latenesses":
            layers = [fine, side, mid]
        case _:
            whole = change(fine, name="whole", merged=True, partitions=2)
            top = change(mid, name="top", finer="whole", partitions=1)
            layers = [whole, top]
    if more and form != "latenesses" and rng.random() < 0.6:
        layers.append(side)
    return tuple(layers)


def _draw_revision(
    rng: random.Random, layers: Sequence[Layer], partitions: int, number: int, *, impure: bool
) -> Revision:
    is_whole = not impure or rng.random() >= DROPPING[number % 2]
    kept = list(layers) if is_whole else _draw_kept(rng, layers)
    rules = {layer.name: _draw_rule(rng, layer, number) for layer in kept if layer.source}
    forms: tuple[FeedFormat, ...] = ("json", "arrow")
    published, form = rng.choice(list(layers)), rng.choice(forms)
    revised = [
        _revised(layer, rules.get(layer.name), form if layer is published else None)
        for layer in kept
    ]
    ids = rng.choice(IDS_MAX[number % 2])
    source = Source(
        name="events",
        topic=RAW,
        partitions=partitions,
        time_field="t",
        type_field="type",
        fields=(Field("k", "string"), Field("v", "float" if impure else "int")),
        id_field="id" if ids else None,
        ids_max=ids or 1,
        future_skew_ms=SKEW_MS,
    )
    themap = Map(number + 1, "sim", (source,), tuple(revised), f"digest{number}")
    return Revision(themap, rules, ids)


def _draw_kept(rng: random.Random, layers: Sequence[Layer]) -> list[Layer]:
    """Draw which layers a revision has: of each one all finer ones, and a base layer at least."""
    bases = [layer for layer in layers if layer.source]
    dropped: set[str] = {rng.choice(rng.choice((bases, layers))).name}
    for layer in layers:
        if layer.finer in dropped:
            dropped.add(layer.name)
    kept = [layer for layer in layers if layer.name not in dropped]
    return kept if any(layer.source for layer in kept) else list(layers)


def _draw_rule(rng: random.Random, layer: Layer, number: int) -> Rule:
    """Draw a revision's base layer: for the first one, the layer that was drawn with the map."""
    slack, lateness = layer.max_out_of_orderness_ms, layer.allowed_lateness_ms
    if number == 0:
        return Rule(slack, lateness, 0)
    return Rule(
        rng.choice((slack, slack + 2, slack + 11, slack + 40, slack + 40, 0)),
        rng.choice((lateness, lateness + 7, lateness + 20, max(0, lateness - 3))),
        rng.choice((0, 0, 3)),
    )


def _revised(layer: Layer, rule: Rule | None, publish: FeedFormat | None) -> Layer:
    layer = msgspec.structs.replace(layer, publish=publish)
    if rule is None:
        return layer
    return msgspec.structs.replace(
        layer,
        max_out_of_orderness_ms=rule.out_of_orderness_ms,
        allowed_lateness_ms=rule.lateness_ms,
        where=(Condition("v", ">=", rule.least / 10),) if rule.least else (),
    )
