"""The records of one step: its events in their form, with bad input among them, and their truth.

A partition's events are cut into pieces of one form each; a record of its own cuts a piece in two.

    rows     e e e e e e e e e e e e e        X: a bad record instead of an event
    pieces   |ndjson-------|arrow----|
    records  [  r  ] X [ r ][    r   ]
"""

from __future__ import annotations

import bisect
import dataclasses
import io
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, cast

import polars as pl

from app.load.bad_input import Bad, Deck, Sample
from app.load.events import StepEvents
from app.load.plan import GenerateError, LoadSpec, Part
from app.load.truth import PartitionTruth, Truth
from app.load.vocabulary import Words
from app.load.writers import MIXED, Writer, writers_for
from tables.model.ledger import add
from tables.record.chunk import Headers


@dataclasses.dataclass(slots=True)
class Pack:
    """Consecutive records of one partition; ``headers`` has an entry for those that have some."""

    partition: int
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: dict[int, Headers] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True, frozen=True)
class Piece:
    """Rows ``[first, stop)`` of one partition, which are written in one form."""

    partition: int
    first: int
    stop: int
    writer: Writer
    headers: Headers


class RecordMaker:
    """Makes the records of one process and notes the truth about them."""

    def __init__(self, words: Words, plan: LoadSpec, part: Part) -> None:
        self._words = words
        self._writers = writers_for(plan.format, words.source)
        self._is_mixed = plan.format == MIXED
        self._in_pieces = any(writer.holds_many for writer in self._writers)
        self._batch = plan.batch
        self._chance = random.Random(f"{plan.seed}/{part.number}/records")  # noqa: S311  # repeatable
        self._deck = Deck(self._chance)
        self._keys = pl.Series(words.key_texts, dtype=pl.Binary)
        self.truth = Truth(words, part.partitions)
        self.bad: dict[str, int] = defaultdict(int)
        self.events = 0
        names = {field.name for field in (*words.keyed, *words.sides)}
        self._key_names = [
            tuple(
                dict.fromkeys(
                    field.name
                    for layer, member in zip(words.layers, words.members, strict=True)
                    if member[number]
                    for field in layer.key
                    if field.name in names
                )
            )
            for number in range(len(words.types))
        ]

    def make(self, step: StepEvents, now_ms: int) -> list[Pack]:
        """Return the records of a step that is written at ``now_ms``."""
        pieces = self._pieces(step.facts)
        bads = self._choose(step, pieces, now_ms)
        packs = self._encode(step, pieces, bads)
        outcome = pl.repeat("classified", step.facts.height, eager=True)
        if bads:
            outcomes = [bad.outcome for bad, _ in bads.values()]
            outcome = outcome.scatter(list(bads), outcomes)
            self._note_bad(step, bads)
        self.truth.note_events(step.facts, step.events, outcome)
        for pack in packs:
            self.truth.partitions[pack.partition].records += len(pack.values)
        self.events += step.facts.height
        return packs

    def _pieces(self, facts: pl.DataFrame) -> list[Piece]:
        """Cut the rows of each partition into pieces."""
        pieces: list[Piece] = []
        first = 0
        runs = facts["partition"].rle().struct.unnest()
        for length, partition in runs.iter_rows():
            stop = first + length
            size = self._batch if self._in_pieces else length
            for start in range(first, stop, size):
                writer, headers = self._writer()
                pieces.append(Piece(partition, start, min(start + size, stop), writer, headers))
            first = stop
        return pieces

    def _writer(self) -> tuple[Writer, Headers]:
        """Return the writer of a piece; in a mix, every other one says its format in a header.

        So does each that a worker would not recognise without.
        """
        writer, says_format = self._writers[0], False
        if self._is_mixed:
            writer = self._chance.choice(self._writers)
            says_format = self._chance.random() < 0.5  # noqa: PLR2004  # half of them
        return writer, writer.headers if says_format or not writer.is_recognised else ()

    def _choose(
        self, step: StepEvents, pieces: list[Piece], now_ms: int
    ) -> dict[int, tuple[Bad, Any]]:
        """Return the replacement of each bad row, in the order of rows."""
        stops = [piece.stop for piece in pieces]
        chosen = {}
        types = step.facts["type_id"].gather(step.bad)
        events = step.events[step.bad].iter_rows(named=True)
        for row, type_id, event in zip(step.bad, types, events, strict=True):
            piece = pieces[bisect.bisect_right(stops, row)]
            sample = Sample(
                source=self._words.source,
                shape=self._words.shape,
                chance=self._chance,
                now_ms=now_ms,
                events=step.events,
                row=row,
                event=event,
                key_names=self._key_names[type_id],
                unclassified=self._words.unclassified,
            )
            chosen[row] = self._deck.draw(piece.writer.name, sample)
        return chosen

    def _encode(
        self, step: StepEvents, pieces: list[Piece], bads: Mapping[int, tuple[Bad, Any]]
    ) -> list[Pack]:
        """Return the records of all pieces."""
        events = self._words.shape.frame(_edited(step.events, bads))
        lines = _lines(events) if any(piece.writer.uses_lines for piece in pieces) else []
        for row, (bad, made) in bads.items():
            if bad.stage == "line":
                lines[row] = made
        own = [row for row, (bad, _) in bads.items() if bad.stage == "record"]
        packs: list[Pack] = []
        for piece in pieces:
            cuts = own[bisect.bisect_left(own, piece.first) : bisect.bisect_left(own, piece.stop)]
            if not piece.writer.holds_many:
                values = _single_values(piece, events, lines)
                packs.append(self._pack_of_single(step.facts, piece, values, cuts, bads))
                continue
            pack = Pack(piece.partition, [], [])
            first = piece.first
            for stop in (*cuts, piece.stop):
                rows, texts = events[first:stop], lines[first:stop]
                for start, value in self._values(piece.writer, first, rows, texts):
                    _append(pack, self._key(step.facts, start), value, piece.headers)
                    self.truth.partitions[piece.partition].count("records.with_events")
                if stop < piece.stop:
                    _append(pack, self._key(step.facts, stop), *bads[stop][1])
                first = stop + 1
            packs.append(pack)
        return packs

    def _pack_of_single(
        self,
        facts: pl.DataFrame,
        piece: Piece,
        events: list[bytes],
        cuts: list[int],
        bads: Mapping[int, tuple[Bad, Any]],
    ) -> Pack:
        """Return a piece with one record an event."""
        rows = slice(piece.first, piece.stop)
        count = len(events)
        self._check_event(max(map(len, events)))
        if self._words.partitions is None:
            keys: list[bytes | None] = [None] * count
        else:
            keys = self._keys.gather(facts["key_id"][rows]).to_list()
        pack = Pack(piece.partition, keys, cast("list[bytes | None]", events))
        if piece.headers:
            pack.headers = dict.fromkeys(range(count), piece.headers)
        for row in cuts:
            index = row - piece.first
            pack.values[index], headers = bads[row][1]
            pack.headers.pop(index, None)
            if headers:
                pack.headers[index] = headers
        self.truth.partitions[piece.partition].count("records.with_events", count - len(cuts))
        return pack

    def _values(
        self, writer: Writer, first: int, rows: pl.DataFrame, lines: list[bytes]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the values of records that hold these events, and the first row of each.

        There is one record, or more if one would be larger than the source accepts.
        """
        count = rows.height
        if not count:
            return
        value = writer.encode(rows, lines)
        if len(value) <= self._words.source.record_bytes_max:
            yield first, value
            return
        self._check_event(len(value) if count == 1 else 0)
        half = count // 2
        yield from self._values(writer, first, rows[:half], lines[:half])
        yield from self._values(writer, first + half, rows[half:], lines[half:])

    def _check_event(self, event_bytes: int) -> None:
        """Raise GenerateError if a record of one event is larger than the source accepts."""
        source = self._words.source
        if event_bytes > source.record_bytes_max:
            raise GenerateError(
                f"cannot generate events for {source.name}: one alone is an oversized record; got"
                f" {event_bytes} bytes; want at most {source.record_bytes_max}; raise the source's"
                " record_bytes_max"
            )

    def _key(self, facts: pl.DataFrame, row: int) -> bytes | None:
        """Return the key of a record that begins with this row."""
        if self._words.partitions is None:
            return None
        key: int = facts["key_id"][row]
        return self._words.key_texts[key]

    def _note_bad(self, step: StepEvents, bads: Mapping[int, tuple[Bad, Any]]) -> None:
        """Count bad input, and the dead letters that come of it."""
        silent = "unclassified" if self._words.source.unclassified == "count" else ""
        partitions = step.facts["partition"].gather(list(bads))
        kinds = (bad for bad, _ in bads.values())
        for (partition, bad), count in Counter(zip(partitions, kinds, strict=True)).items():
            self.bad[bad.name] += count
            truth = self.truth.partitions[partition]
            _count_bad(truth, bad, count)
            if bad.reason != silent:
                add(truth.dead, {bad.reason: count})


def _count_bad(truth: PartitionTruth, bad: Bad, count: int) -> None:
    """Add bad events or records of one kind to a partition's ledger."""
    truth.count(bad.counted, count)
    if bad.counted.startswith("unreadable."):
        truth.count("records.unreadable", count)
    if bad.outcome == "none":
        return
    truth.count("events.decoded", count)
    if bad.outcome == "malformed":
        truth.count("events.malformed", count)
        if bad.stage == "record":
            truth.count("records.with_events", count)


def _edited(events: pl.DataFrame, bads: Mapping[int, tuple[Bad, Any]]) -> pl.DataFrame:
    """Return the events with the values that bad rows get."""
    rows: dict[str, list[int]] = defaultdict(list)
    values: dict[str, list[Any]] = defaultdict(list)
    for row, (bad, made) in bads.items():
        if bad.stage == "row":
            name, value = made
            rows[name].append(row)
            values[name].append(value)
    return events.with_columns(
        events[name].scatter(at, pl.Series(values[name], dtype=events[name].dtype))
        for name, at in rows.items()
    )


def _single_values(piece: Piece, events: pl.DataFrame, lines: list[bytes]) -> list[bytes]:
    """Return the value of each event of a piece whose records hold one."""
    if piece.writer.uses_lines:
        return lines[piece.first : piece.stop]
    rows = range(piece.first, piece.stop)
    return [piece.writer.encode(events[row : row + 1], []) for row in rows]


def _lines(events: pl.DataFrame) -> list[bytes]:
    """Return each event as JSON."""
    buffer = io.BytesIO()
    events.write_ndjson(buffer)
    lines = buffer.getvalue().split(b"\n")
    lines.pop()
    return lines


def _append(pack: Pack, key: bytes | None, value: bytes | None, headers: Headers) -> None:
    if headers:
        pack.headers[len(pack.values)] = headers
    pack.keys.append(key)
    pack.values.append(value)
