"""Live reads: requests to the tables of owners, and their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import msgspec
import polars as pl

from tables.model.layer import Layer
from tables.query.facts import PartitionFacts
from tables.query.family import KeyFilter


class FollowerPosition(msgspec.Struct, frozen=True, array_like=True):
    """The position of a follower of a layer's cells in one partition of its input.

    Attributes:
        version: it has every value up to this version.
        closed_ms: it knows that windows which end at or before it are closed.
        evicted_ms: the end up to which the partition had evicted windows then.
    """

    version: int
    closed_ms: int
    evicted_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class LiveRead:
    """A read of the tables of one layer, or of a merged layer's combiner.

    It reads windows that start in ``[from_ms, to_ms)``; an empty range asks for the facts alone.
    ``parts`` has a merged layer's contributions given instead of its cells. ``partitions`` are
    those of the layer's input that can have the keys, None for all. With ``after`` only changes are
    given: cells that have changed, or closed, since a follower's position; of partitions that are
    not in it, everything.
    """

    layer: Layer
    from_ms: int = 0
    to_ms: int = 0
    keys: KeyFilter = dataclasses.field(default_factory=KeyFilter)
    parts: bool = False
    partitions: frozenset[int] | None = None
    after: Mapping[int, FollowerPosition] | None = None

    def wants(self, partition: int) -> bool:
        """Return whether a partition is asked."""
        return self.partitions is None or partition in self.partitions

    @property
    def asked(self) -> frozenset[int]:
        """The partitions that are asked."""
        if self.partitions is not None:
            return self.partitions
        return frozenset(range(self.layer.partitions))


@dataclasses.dataclass(frozen=True, slots=True)
class LiveRows:
    """The answer of owners to a read: facts by partition, and rows with ``source_partition``.

    Rows are an archive frame. Of ``parts`` they are contributions (``rollup_schema``), whose
    ``source_partition`` is the sender, with the partition that holds them as ``held_by`` (Int32).
    """

    facts: dict[int, PartitionFacts] = dataclasses.field(default_factory=dict)
    rows: list[pl.DataFrame] = dataclasses.field(default_factory=list)

    def add(self, other: LiveRows) -> None:
        """Add live rows of other owners, but not those of a partition that is here already.

        Two owners may answer for one partition while it moves; each is right by itself.
        """
        added = other.facts.keys() - self.facts.keys()
        if len(added) == len(other.facts):
            self.rows.extend(other.rows)
        else:
            wanted = list(added)
            self.rows.extend(
                frame.filter(pl.col(_holder(frame)).is_in(wanted)) for frame in other.rows
            )
        self.facts.update((partition, other.facts[partition]) for partition in added)


@dataclasses.dataclass(frozen=True, slots=True)
class LiveJob:
    """A live read of one state: its facts, and the function that makes its rows, in any thread.

    ``height`` is at most the number of rows that were examined.
    """

    facts: dict[int, PartitionFacts]
    frames: Callable[[], list[pl.DataFrame]]
    height: int = 0

    def make(self) -> LiveRows:
        """Return the facts and the rows."""
        return LiveRows(self.facts, self.frames())


def _holder(frame: pl.DataFrame) -> str:
    return "held_by" if "held_by" in frame.columns else "source_partition"
