"""An input's plan: the layers that one input topic feeds, and its partitions' duties."""

from __future__ import annotations

import dataclasses

from tables.model.layer import Layer, Map, Source, combiner_of
from tables.model.shape import shapes_of
from tables.state.journal import Claim


@dataclasses.dataclass(frozen=True, slots=True)
class InputPlan:
    """One input topic: a raw source with its base layers, or a layer topic with its one layer.

    A combiner stands in the source's plan instead of its merged layer, and is the finer layer in
    that of the layer's topic. ``senders`` counts the partitions of the finer layer's input, each of
    which announces; it is 0 for a raw source. ``coarser`` lists, by layer, the layers that its
    cells are sent to.
    """

    themap: Map
    topic: str
    partitions: int
    layers: tuple[Layer, ...]
    source: Source | None = None
    finer: Layer | None = None
    senders: int = 0
    coarser: dict[str, tuple[Layer, ...]] = dataclasses.field(default_factory=dict)

    @property
    def journal(self) -> str:
        """The journal topic: one journal partition per partition of the input."""
        return self.themap.journal_topic(self.topic)

    def claim(self, base: int) -> Claim:
        """Return the claim of a partition whose log begins at offset ``base``."""
        source = self.source
        return Claim(
            revision=self.themap.revision,
            digest=self.themap.digest,
            partitions=self.partitions,
            base=base,
            layers={
                layer.name: [accumulator.column for accumulator in layer.accumulators]
                for layer in self.layers
            },
            ids=source.ids_max if source is not None and source.id_field else 0,
            shapes=shapes_of(self.themap),
        )


def plans_of(themap: Map) -> dict[str, InputPlan]:
    """Return the plan of every input topic of a map."""
    plans = {source.topic: _source_plan(themap, source) for source in themap.sources}
    for layer in themap.layers:
        if layer.has_topic:
            plan = _layer_plan(themap, layer)
            plans[plan.topic] = plan
    return plans


def _source_plan(themap: Map, source: Source) -> InputPlan:
    layers = []
    coarser = {}
    for layer in themap.base_layers(source.name):
        first = combiner_of(source, layer) if layer.merged else layer
        layers.append(first)
        coarser[first.name] = (layer,) if layer.merged else themap.coarser(layer.name)
    return InputPlan(
        themap=themap,
        topic=source.topic,
        partitions=source.partitions,
        layers=tuple(layers),
        source=source,
        coarser=coarser,
    )


def _layer_plan(themap: Map, layer: Layer) -> InputPlan:
    if layer.finer is not None:
        finer = themap.layer(layer.finer)
    else:
        assert layer.source is not None
        finer = combiner_of(themap.source(layer.source), layer)
    return InputPlan(
        themap=themap,
        topic=themap.input_topic(layer),
        partitions=layer.partitions,
        layers=(layer,),
        finer=finer,
        senders=finer.partitions,
        coarser={layer.name: themap.coarser(layer.name)},
    )
