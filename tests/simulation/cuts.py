"""Cuts: the claims of a journal over its input, by rules 3 and 4 in code of its own.

Which claims stood, at which revision of the map and offset, and so under which revision each record
of the input was folded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec

from tests.simulation.log import PartitionLog


@dataclasses.dataclass(frozen=True)
class Cuts:
    """The history of one input partition, whose log begins at offset ``first``.

    ``claims`` are the offset of the input at which each claim found it, and its revision;
    ``revisions`` are those under which the records were folded, in order.
    """

    first: int
    claims: list[tuple[int, int]]
    revisions: list[int]

    def revision_at(self, offset: int) -> int:
        """Return the revision under which a record was folded."""
        return self.revisions[offset - self.first]

    def claimed_at(self, offset: int) -> Iterator[int]:
        """Yield the revisions of the claims that found the input at an offset, in order."""
        return (revision for at, revision in self.claims if at == offset)


def cuts_of(journal: PartitionLog, first: int) -> Cuts:
    """Read a journal, truncated entries included."""
    epoch, revision, to = -1, 0, first
    claims: list[tuple[int, int]] = []
    revisions: list[int] = []
    for offset, record in enumerate(journal.records):
        assert record.value is not None
        kind, *fields = msgspec.msgpack.decode(record.value[9:])
        if kind == "claim" and fields[0] >= revision:
            epoch, revision = offset, fields[0]
            claims.append((to, revision))
        elif kind == "delta" and fields[:3] == [epoch, revision, to]:
            revisions += [revision] * (fields[3] - to)
            to = fields[3]
    return Cuts(first, claims, revisions)


def uncut(first: int, records: int) -> Cuts:
    """Return the history of an input of which nothing need be known: there is one revision."""
    return Cuts(first, [(first, 1)], [1] * records)
