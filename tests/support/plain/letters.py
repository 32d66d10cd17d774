"""Letters by plain rules, one at a time, to compare verify's tables of them with."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator

from app.verify.records import Record

REPLAY_MARK = "treasure-map-replay"


@dataclasses.dataclass(slots=True)
class PartitionLetters:
    """The letters about one source partition, by the offset of their record.

    ``dead`` has reasons by the event's place, None for the whole record; ``late`` has layers and
    places. A letter that is there twice is one.
    """

    dead: dict[int, dict[int | None, frozenset[str]]] = dataclasses.field(default_factory=dict)
    late: dict[int, frozenset[tuple[str, int]]] = dataclasses.field(default_factory=dict)


class Letters:
    """The letters of the two side topics so far.

    Attributes:
        unreadable: records of the side topics that are neither letters nor marks of a replay.
    """

    def __init__(self) -> None:
        self._partitions: dict[tuple[str, int], PartitionLetters] = defaultdict(PartitionLetters)
        self.unreadable = 0

    def of(self, topic: str, partition: int) -> PartitionLetters:
        """Return the letters about a source partition."""
        return self._partitions[topic, partition]

    def take(self, record: Record) -> None:
        """Take a record of a side topic."""
        headers = dict(record.headers)
        if REPLAY_MARK in headers:
            return
        try:
            texts = {name: data.decode() for name, data in headers.items()}
            letters = self.of(texts["topic"], int(texts["partition"]))
            offset, reason = int(texts["offset"]), texts["reason"]
            places = list(_places(texts["index"]))
            if reason == "late":
                late = frozenset((texts["layer"], place) for place in places)
                letters.late[offset] = letters.late.get(offset, frozenset()) | late
                return
        except (KeyError, ValueError):
            self.unreadable += 1
            return
        dead = letters.dead.setdefault(offset, {})
        whole: list[int | None] = [None]
        for place in places or whole:
            dead[place] = dead.get(place, frozenset()) | {reason}

    def left(self, topic: str, partition: int, end: int) -> Iterator[int]:
        """Yield offsets below ``end`` that letters name and no record has."""
        letters = self.of(topic, partition)
        yield from (offset for offset in letters.dead.keys() | letters.late.keys() if offset < end)


def _places(index: str) -> Iterator[int]:
    for span in filter(None, index.split(",")):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)
