"""An input's plan: which layers one input topic feeds, and what follows for its partitions."""

from __future__ import annotations

import dataclasses

from tables.layer import Layer, Map, Source


@dataclasses.dataclass(frozen=True, slots=True)
class InputPlan:
    """One input topic: a raw source with its base layers, or a layer topic with its coarser layer.

    ``senders`` counts the partitions of the finer layer's input, each of which announces; it is 0
    for a raw source. ``coarser`` lists, by layer, the layers that its cells are sent to.
    """

    themap: Map
    topic: str
    partitions: int
    layers: tuple[Layer, ...]
    source: Source | None
    finer: Layer | None
    senders: int
    coarser: dict[str, tuple[Layer, ...]]

    @property
    def journal(self) -> str:
        """The journal topic: one journal partition per partition of the input."""
        return self.themap.journal_topic(self.topic)


def plans_of(themap: Map) -> dict[str, InputPlan]:
    """Return the plan of every input topic of a map."""
    plans = {}
    for source in themap.sources:
        plans[source.topic] = _plan(
            themap, source.topic, themap.base_layers(source.name), source, None
        )
    for layer in themap.layers:
        if layer.finer is not None:
            finer = themap.layer(layer.finer)
            plans[themap.input_topic(layer)] = _plan(
                themap, themap.input_topic(layer), (layer,), None, finer
            )
    return plans


def _plan(
    themap: Map,
    topic: str,
    layers: tuple[Layer, ...],
    source: Source | None,
    finer: Layer | None,
) -> InputPlan:
    return InputPlan(
        themap=themap,
        topic=topic,
        partitions=themap.inputs()[topic],
        layers=layers,
        source=source,
        finer=finer,
        senders=finer.partitions if finer else 0,
        coarser={layer.name: themap.coarser(layer.name) for layer in layers},
    )
