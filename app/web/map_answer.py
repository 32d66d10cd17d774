"""The map as readers get it: JSON, with the topics that follow from it."""

from __future__ import annotations

from typing import Any

import msgspec

from tables.model.layer import Layer, Map
from treasure_map.version import version


def describe_map(themap: Map) -> dict[str, Any]:
    """Return the map as JSON, with the topics that follow from it, and the worker's version."""
    return {
        "version": version(),
        "name": themap.name,
        "revision": themap.revision,
        "digest": themap.digest,
        "sources": [msgspec.to_builtins(source) for source in themap.sources],
        "layers": [_describe_layer(themap, layer) for layer in themap.layers],
    }


def _describe_layer(themap: Map, layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "source": layer.source,
        "finer": layer.finer,
        "merged": layer.merged,
        "events": layer.events,
        "where": [msgspec.to_builtins(condition) for condition in layer.where],
        "key": [msgspec.to_builtins(field) for field in layer.key],
        "window": str(layer.window),
        "measures": [
            {"name": measure.name, "kind": measure.kind, "field": measure.field}
            for measure in layer.measures
        ],
        "max_out_of_orderness_ms": layer.max_out_of_orderness_ms,
        "allowed_lateness_ms": layer.allowed_lateness_ms,
        "archive_ttl_ms": layer.archive_ttl_ms,
        "input_topic": themap.input_topic(layer),
        "journal_topic": themap.journal_topic(themap.input_topic(layer)),
        "publish": layer.publish,
        "feed_topic": themap.feed_topic(layer) if layer.publish else None,
        "partitions": layer.partitions,
    }
