"""Shapes: aspects of a layer that no revision may change, because its cells would not fit.

Claims carry the shapes of all layers of their map (docs/formats/journal.md rule 15), so that a
worker with a map that does not fit is refused before it has moved anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from tables.model.layer import Map

Shapes = Mapping[str, Mapping[str, str]]
"""The aspects of each layer, in words."""


def shapes_of(themap: Map) -> dict[str, dict[str, str]]:
    """Return the shapes of a map's layers."""
    found = {}
    for layer in themap.layers:
        key = ", ".join(f"{field.name} ({field.type})" for field in layer.key)
        shape = {"key": key or "none", "window": str(layer.window)}
        if layer.source is not None:
            shape["input"] = f"source topic {themap.source(layer.source).topic}"
            # Follows from it: which cells are complete.
            shape["keyed_by"] = "other fields than its key" if layer.merged else "fields of its key"
        else:
            shape["input"] = f"layer {layer.finer}"
        if layer.has_topic:
            shape["partitions"] = str(layer.partitions)
        for acc in layer.accumulators:
            if acc.field is not None:
                shape[f"type of {acc.field}"] = acc.type
        found[layer.name] = shape
    return found


def reshaped(old: Shapes, new: Shapes) -> list[str]:
    """Return a fault for every aspect that differs; layers and measures may come and go."""
    return [
        f"the {aspect} of layer {name} was {was}, now {shape[aspect]}: that is another layer; give"
        " it a new name"
        for name, shape in new.items()
        for aspect, was in old.get(name, {}).items()
        if aspect in shape and shape[aspect] != was
    ]


def joined(old: Shapes, new: Shapes) -> dict[str, dict[str, str]]:
    """Return both: dropped layers are remembered, so that they cannot come back as others."""
    found = {name: dict(shape) for name, shape in old.items()}
    for name, shape in new.items():
        found.setdefault(name, {}).update(shape)
    return found
