"""What a worker's emitters count, and whether what they send to answers."""

from __future__ import annotations

import dataclasses
from collections import Counter

from agents.outage import Outage

SINKS = ("archive", "layer_topic", "feed")
"""The kinds of sinks, each with a task of its own."""


def _archive() -> Outage:
    return Outage("the archive", "closed cells wait in tables and journal")


def _kafka() -> Outage:
    return Outage("Kafka", "nothing is read or sent on, and what was read is answered for")


@dataclasses.dataclass(slots=True)
class EmitCounts:
    """What was emitted since the worker started.

    ``archived`` counts rows acknowledged by the archive, ``published`` those acknowledged by feeds,
    both by layer; ``failures`` attempts that failed, and are repeated, by the kind of sink, one of
    ``SINKS``. ``archive`` and ``kafka`` are what the sinks depend on; each attempt reports there.
    """

    archived: Counter[str] = dataclasses.field(default_factory=Counter)
    published: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    archive: Outage = dataclasses.field(default_factory=_archive)
    kafka: Outage = dataclasses.field(default_factory=_kafka)
