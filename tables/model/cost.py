"""Cost of an answer: counted while it is made, sent with it, and summed in metrics."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class LayerCost:
    """Rows read of one layer: from live tables, from the archive, and from its cache."""

    live_rows: int = 0
    archived_rows: int = 0


@dataclasses.dataclass(slots=True)
class QueryCost:
    """The cost of one answer.

    Attributes:
        workers_asked: requests to other workers, second tries too.
        archive_reads: ranges of one key, or of all, that the archive was asked for.
        archive_partitions: Cassandra partitions, or pieces of the embedded archive, that were read.
        archive_bytes: size in memory of the rows that came from it.
        cache_hits: ranges that were remembered.
        cache_misses: ranges that could have been remembered and were not.
        layers: rows by layer.
    """

    workers_asked: int = 0
    archive_reads: int = 0
    archive_partitions: int = 0
    archive_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    layers: dict[str, LayerCost] = dataclasses.field(default_factory=dict)

    def of(self, layer: str) -> LayerCost:
        """Return the count of one layer."""
        return self.layers.setdefault(layer, LayerCost())
