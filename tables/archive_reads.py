"""Reads of Cassandra: what is asked for in one request.

A request costs reader and coordinator far more than a partition of a few rows does. So slots of one
bucket that lie on the same replicas are asked for together, and one of those replicas is asked: no
partition takes a way that it would not have taken alone. Where partitions are large each is asked
for by itself, so that they are read side by side.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Sequence

from cassandra.metadata import Metadata
from cassandra.query import BoundStatement, PreparedStatement, Statement

SLOTS_MAX = 16
"""Of one request: a coordinator answers it from all of them within one read timeout."""

ROWS_MAX = 2_000
"""About so many rows one request may find; the driver's pages, which follow each other, have 5,000.
"""

_ROUTING_KEY = struct.Struct(">HiBHqB")


class SlotsStatement(BoundStatement):  # type: ignore[misc]  # the driver has no types
    """A read of several slots, sent to a replica of the first one.

    The driver makes no routing key of a list, and a bound statement takes none.
    """

    routing_key = Statement.routing_key


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Slots of one bucket, all on the same replicas."""

    slots: tuple[int, ...]
    bucket: int

    @property
    def has_several(self) -> bool:
        """Whether its statement takes a list of slots."""
        return len(self.slots) > 1

    @property
    def values(self) -> tuple[int | tuple[int, ...], int]:
        """The statement's values for slot and bucket."""
        return self.slots if self.has_several else self.slots[0], self.bucket

    def bound(self, select: PreparedStatement, values: Sequence[object]) -> Statement:
        """Return what is executed: ``select`` with all its values."""
        if not self.has_several:
            return select.bind(values)
        statement = SlotsStatement(select).bind(values)
        statement.routing_key = routing_key(self.slots[0], self.bucket)
        return statement


class Requests:
    """Which partitions are asked for together, by what reads have found so far."""

    def __init__(self, keyspace: str) -> None:
        self._keyspace = keyspace
        self._rows: dict[str, float] = {}

    def of(
        self, metadata: Metadata, table: str, partitions: Iterable[tuple[int, int]]
    ) -> list[Request]:
        """Return the requests that together read every (slot, bucket) once."""
        together: dict[tuple[int, frozenset[object]], list[int]] = {}
        for slot, bucket in partitions:
            replicas = metadata.get_replicas(self._keyspace, routing_key(slot, bucket))
            together.setdefault((bucket, frozenset(replicas)), []).append(slot)
        most = max(1, min(SLOTS_MAX, int(ROWS_MAX / max(1.0, self._rows.get(table, 1.0)))))
        return [
            Request(tuple(slots[at : at + most]), bucket)
            for (bucket, _), slots in together.items()
            for at in range(0, len(slots), most)
        ]

    def found(self, table: str, partitions: int, rows: int) -> None:
        """Take note of the rows that a read of all keys found in so many partitions."""
        if partitions:
            self._rows[table] = rows / partitions


def routing_key(slot: int, bucket: int) -> bytes:
    """Return the partition key as Cassandra hashes it."""
    return _ROUTING_KEY.pack(4, slot, 0, 8, bucket, 0)
