"""The counts of a worker's emitters, and whether archive and Kafka answer them."""

from __future__ import annotations

import dataclasses
from collections import Counter

from agents.outage import Outage

SINKS = ("archive", "layer_topic", "feed")
"""The kinds of sinks, each with a task of its own."""


@dataclasses.dataclass(slots=True)
class EmitCounts:
    """Emissions since the worker started.

    ``archived`` counts rows acknowledged by the archive, ``published`` those acknowledged by feeds,
    both by layer. ``failures`` counts failed attempts, which are retried, by the kind of sink, one
    of ``SINKS``. Each attempt reports its end to ``archive`` or ``kafka``, on which it depends.
    """

    archived: Counter[str] = dataclasses.field(default_factory=Counter)
    published: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    archive: Outage = dataclasses.field(
        default_factory=lambda: Outage("the archive", "closed cells wait in tables and journal")
    )
    kafka: Outage = dataclasses.field(
        default_factory=lambda: Outage(
            "Kafka", "nothing is read or sent; queries see only the records read so far"
        )
    )
