"""A chunk: the values of one fetch, as one run of records per partition."""

from __future__ import annotations

import dataclasses

Headers = tuple[tuple[str, bytes], ...]


@dataclasses.dataclass(slots=True, frozen=True)
class RecordFault:
    """Why a record cannot be used, whatever its value is.

    ``reason`` is one of docs/formats/records.md, or ``cut`` if only the beginning of its value
    was read; ``size`` is that of the whole value then, in bytes.
    """

    reason: str
    detail: str
    size: int = 0


@dataclasses.dataclass(slots=True)
class Run:
    """Consecutive records of one partition, in log order.

    ``first_offset`` is the position before the run, ``next_offset`` the position after it; offsets
    that carry no record (transaction markers, compacted records) lie between them, so that
    ``next_offset - first_offset >= len(values)``. ``offsets``, ``values`` and ``append_times_ms``
    have one item a record. ``headers`` has an entry only for records that have headers. ``size`` is
    that of all values, in bytes; it is counted if it is not given. ``faults`` has, by index, the
    records that could not be read: their values are for dead letters only.
    """

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: list[int] | range
    values: list[bytes | None]
    append_times_ms: list[int]
    headers: dict[int, Headers]
    size: int = -1
    faults: dict[int, RecordFault] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = sum(len(value) for value in self.values if value is not None)

    def extend(self, after: Run) -> None:
        """Add the records of a run that begins at the end of this one."""
        at, offsets, more = len(self.values), self.offsets, after.offsets
        self.next_offset = after.next_offset
        self.size += after.size
        if not after.values:
            return
        if not at:
            self.offsets = more
        elif isinstance(offsets, range) and isinstance(more, range) and offsets.stop == more.start:
            self.offsets = range(offsets.start, more.stop)
        else:
            self.offsets = [*offsets, *more]
        self.values += after.values
        self.append_times_ms += after.append_times_ms
        self.headers |= {at + i: found for i, found in after.headers.items()}
        self.faults |= {at + i: found for i, found in after.faults.items()}

    def halves(self) -> tuple[Run, Run]:
        """Return two runs of half the records each; there must be two or more."""
        middle = len(self.values) // 2
        assert middle > 0, "a chunk ends at a record's end"
        border = self.offsets[middle]
        first = dataclasses.replace(self._part(0, middle), next_offset=border)
        return first, dataclasses.replace(self._part(middle, len(self.values)), first_offset=border)

    def _part(self, first: int, stop: int) -> Run:
        return dataclasses.replace(
            self,
            offsets=self.offsets[first:stop],
            values=self.values[first:stop],
            append_times_ms=self.append_times_ms[first:stop],
            size=-1,
            headers={i - first: found for i, found in self.headers.items() if first <= i < stop},
            faults={i - first: found for i, found in self.faults.items() if first <= i < stop},
        )


@dataclasses.dataclass(slots=True)
class Chunk:
    """One fetch: at most one run a partition, all of one kind of input (raw source or layer topic).

    ``generation`` is the consumer group's generation in which it was fetched: owners of another
    generation do not take it.
    """

    generation: int
    runs: list[Run]

    @property
    def size(self) -> int:
        """The bytes of all values."""
        return sum(run.size for run in self.runs)
