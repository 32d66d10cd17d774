"""Reads of Cassandra: the partitions of one request.

A request costs reader and coordinator far more than a partition of a few rows does. So partitions
that lie on the same replicas are asked for together, and one of those replicas is asked: each takes
the way that it would have taken alone. If partitions are large, each is asked for by itself, so
that they are read side by side.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cassandra.metadata import Metadata
from cassandra.query import BoundStatement, PreparedStatement, Statement

TOGETHER_MAX = 16
"""Partitions of one request: a coordinator answers from all of them within one read timeout, and
Cassandra as a service often refuses more than 20."""

ROWS_MAX = 2_000
"""About the most rows that one request may find; the driver's pages, which follow each other, have
5,000."""

_ROUTING_KEY = struct.Struct(">HiBHqB")


class RoutedStatement(BoundStatement):  # type: ignore[misc]  # the driver has no types
    """A bound statement that takes a routing key, which the driver does not make of lists."""

    routing_key = Statement.routing_key


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Slots of some buckets, each of each, all on the same replicas."""

    slots: tuple[int, ...]
    buckets: tuple[int, ...]

    @property
    def has_several(self) -> bool:
        """Whether its statement has lists."""
        return len(self.slots) * len(self.buckets) > 1

    @property
    def values(self) -> tuple[int | tuple[int, ...], int | tuple[int, ...]]:
        """The statement's values for slot and bucket."""
        if self.has_several:
            return self.slots, self.buckets
        return self.slots[0], self.buckets[0]

    def bound(self, select: PreparedStatement, values: Sequence[object]) -> Statement:
        """Return the statement: ``select`` with all its values."""
        if not self.has_several:
            return select.bind(values)
        statement = RoutedStatement(select).bind(values)
        statement.routing_key = routing_key(self.slots[0], self.buckets[0])
        return statement


class Requests:
    """The partitions that are read together, by the number of rows that earlier reads found."""

    def __init__(self, keyspace: str) -> None:
        self._keyspace = keyspace
        self._rows: dict[str, float] = {}

    def of(
        self,
        metadata: Metadata,
        table: str,
        partitions: Iterable[tuple[int, int]],
        *,
        whole_key: bool = False,
    ) -> list[Request]:
        """Return the requests that together read every (slot, bucket) once.

        With ``whole_key`` one key is read, which has few rows in a partition of any size.
        """
        grouped: dict[frozenset[object], dict[int, list[int]]] = {}
        for slot, bucket in partitions:
            replicas = metadata.get_replicas(self._keyspace, routing_key(slot, bucket))
            grouped.setdefault(frozenset(replicas), {}).setdefault(bucket, []).append(slot)
        most = TOGETHER_MAX
        if not whole_key:
            most = max(1, min(most, int(ROWS_MAX / max(1.0, self._rows.get(table, 1.0)))))
        return [request for buckets in grouped.values() for request in _requests(buckets, most)]

    def found(self, table: str, partitions: int, rows: int) -> None:
        """Take note of the number of rows that a read of all keys found in ``partitions``."""
        if partitions:
            self._rows[table] = rows / partitions


def _requests(slots_of: Mapping[int, list[int]], most: int) -> Iterator[Request]:
    """Yield requests of at most ``most`` partitions; ``slots_of`` are the slots of each bucket."""
    buckets_of: dict[tuple[int, ...], list[int]] = {}
    for bucket, slots in slots_of.items():
        for some in _parts(slots, most):
            buckets_of.setdefault(some, []).append(bucket)
    for some, buckets in buckets_of.items():
        for together in _parts(buckets, most // len(some)):
            yield Request(some, together)


def _parts(values: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    for at in range(0, len(values), most):
        yield tuple(values[at : at + most])


def routing_key(slot: int, bucket: int) -> bytes:
    """Return the partition key as Cassandra hashes it."""
    return _ROUTING_KEY.pack(4, slot, 0, 8, bucket, 0)
