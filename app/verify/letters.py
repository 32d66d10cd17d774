"""Letters as claims: the events set aside by the side topics, by source partition and offset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from app.verify.checks import INT64_MAX
from app.verify.database import Database, text
from app.verify.records import Record

REPLAY_MARK = "treasure-map-replay"
WHOLE = -1
"""The index of a letter about a whole record."""

_ROWS = 50_000
_INDEX_MAX = 1 << 24
"""More events than any record has."""


class Letters:
    """The letters of the two side topics so far; a repeated letter counts once.

    Attributes:
        unreadable: records of the side topics that are neither letters nor marks of a replay.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: dict[str, list[tuple[str, int, int, int, str]]] = {"dead": [], "late": []}
        self._whole: dict[tuple[str, int, str], set[int]] = defaultdict(set)
        self.unreadable = 0
        for name in self._rows:
            database.run(
                f'CREATE TABLE {name}_letters (topic VARCHAR, part INTEGER, "offset" BIGINT,'
                " index INTEGER, named VARCHAR)"
            )

    def take(self, records: Iterable[Record]) -> None:
        """Read records of a side topic."""
        for record in records:
            self._take(record)
        for name, rows in self._rows.items():
            if len(rows) >= _ROWS:
                self._load(name)

    def load(self) -> None:
        """Bring all letters into the tables."""
        for name in self._rows:
            self._load(name)

    def about(self, topic: str, part: int, reason: str) -> set[int]:
        """Return the offsets of records that a dead letter with this reason is about as a whole."""
        return self._whole[topic, part, reason]

    def many(self, topic: str, part: int, offset: int) -> bool:
        """Return whether a dead letter is about an event of a record that is not its first one."""
        self.load()
        return bool(
            self._database.number(
                f"SELECT count(*) FROM dead_letters WHERE topic = {text(topic)} AND part = {part}"
                f' AND "offset" = {offset} AND index > 0'
            )
        )

    def _take(self, record: Record) -> None:
        headers = dict(record.headers)
        if REPLAY_MARK in headers:
            return
        try:
            texts = {name: data.decode() for name, data in headers.items()}
            topic, part, offset = texts["topic"], int(texts["partition"]), int(texts["offset"])
            reason, indexes = texts["reason"], list(_indexes(texts["index"]))
            named = texts["layer"] if reason == "late" else reason
            if not (0 <= part < 1 << 31 and 0 <= offset <= INT64_MAX):
                raise ValueError(offset)  # noqa: TRY301 - as unreadable numbers
        except (KeyError, ValueError):
            self.unreadable += 1
            return
        if reason != "late" and not indexes:
            indexes = [WHOLE]
            self._whole[topic, part, reason].add(offset)
        name = "late" if reason == "late" else "dead"
        self._rows[name] += [(topic, part, offset, index, named) for index in indexes]

    def _load(self, name: str) -> None:
        rows, self._rows[name] = self._rows[name], []
        self._database.insert(f"{name}_letters", rows)


def _indexes(spans: str) -> Iterator[int]:
    for span in filter(None, spans.split(",")):
        first, _, last = span.partition("-")
        start, stop = int(first), int(last or first) + 1
        if not 0 <= start < stop <= _INDEX_MAX:
            raise ValueError(span)
        yield from range(start, stop)
