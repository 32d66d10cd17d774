"""Decode: the records of a chunk into one frame of events, in log order.

What a record may be, and what is malformed, stands in docs/formats/records.md. One decoder says so,
whatever the form, the path and the cutting into chunks::

    run    e e e e h e e  A A  e E e      e JSON event(s), E broken, h heartbeat, A Arrow
    parts  |------|h|---| |-| |-----|     a part is decoded at once, but for what is broken
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, cast

import polars as pl

from agents.decode.arrow_events import ARROW_START, BROKEN_ARROW, ArrowEvents
from agents.decode.event_batch import DETAIL_CHARS_MAX, PLACE, EventBatch, SetAside, tally
from agents.decode.json_events import Fault, JsonEvents, lines_of
from tables.model.layer import Source
from tables.model.ledger import Ledger
from tables.model.window import SECONDS_IN_MS_MAX, TIME_MS_MAX, TIME_MS_MIN
from tables.record.chunk import Headers, RecordFault, Run
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat
from tables.record.remembered import Remembered
from tables.state.block import repeated
from tables.state.cell import in_order

CONTENT_TYPE = "content-type"
CONTENT_TYPES = {
    "application/json": "json",
    "application/x-ndjson": "lines",
    "application/vnd.apache.arrow.stream": "arrow",
}
"""By media type, the form of a value; without the header the bytes tell."""

_NAMES = {form: name for name, form in CONTENT_TYPES.items()}
_EMPTY = ("empty", "empty", "nothing but white space")
_NOT_EVENTS = {
    "missing": "time or type is null or absent",
    "wrong_type": "a declared field is of another type",
    "out_of_range": "a number or a time that its column or its source cannot hold",
    "not_finite": "a float that is not a number, or infinite",
}


@dataclasses.dataclass(slots=True)
class _DecodedEvents:
    """What is decoded so far: JSON structs, with Arrow frames at their place between them."""

    events: list[Any] = dataclasses.field(default_factory=list)
    places: list[pl.Series] = dataclasses.field(default_factory=list)
    frames: list[tuple[int, pl.DataFrame]] = dataclasses.field(default_factory=list)
    aside: list[SetAside] = dataclasses.field(default_factory=list)
    rows: int = 0

    def place(self, places: pl.Series) -> None:
        """Take the places of the JSON events that were added last."""
        self.places.append(places)
        self.rows += places.len()

    def take_frame(self, frame: pl.DataFrame) -> None:
        """Take an event frame, behind the JSON events so far."""
        self.frames.append((len(self.events), frame))
        self.rows += frame.height


@dataclasses.dataclass(slots=True)
class _RunDecoder:
    """One run while it is decoded: its ledger delta, and where events and refusals go."""

    number: int
    run: Run
    counts: Ledger
    sink: _DecodedEvents

    def refuse_record(self, index: int, column: str, reason: str, detail: str) -> None:
        """Count a record in its column, and by reason where it is unreadable; set it aside."""
        tally(self.counts, f"records.{column}")
        if column == "unreadable":
            tally(self.counts, f"unreadable.{reason}")
        self.sink.aside.append(SetAside("dead", self.number, index, None, reason, detail))

    def refuse_events(self, index: int, at: tuple[int, ...], reason: str, detail: str) -> None:
        """Count events of one record as malformed, and set them aside."""
        tally(self.counts, "events.malformed", len(at))
        tally(self.counts, f"malformed.{reason}", len(at))
        self.sink.aside.append(SetAside("dead", self.number, index, at, reason, detail))


class Decoder:
    """Decodes the records of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._json = JsonEvents(source)
        self._arrow = ArrowEvents(source)

    def decode(self, runs: list[Run]) -> EventBatch:
        """Return the events of ``runs``, which are of this source's topic, in order."""
        sink = _DecodedEvents()
        bounds: list[tuple[int, int]] = []
        ledgers: list[Ledger] = []
        for number, run in enumerate(runs):
            first = sink.rows
            counts: Ledger = {}
            tally(counts, "records.gap", run.next_offset - run.first_offset - len(run.values))
            ledgers.append(counts)
            self._decode_run(_RunDecoder(number, run, counts, sink))
            bounds.append((first, sink.rows))
        parts = [
            (run.partition, last - first) for run, (first, last) in zip(runs, bounds, strict=True)
        ]
        batch = EventBatch(runs, self._frame(sink, parts), bounds, ledgers, sink.aside)
        _refuse_no_times(batch)
        _refuse_future(batch, self._source.future_skew_ms)
        return batch

    def refuse(self, run: Run, reason: str, detail: str) -> EventBatch:
        """Return the batch of a run of one record that is refused as a whole."""
        assert len(run.values) == 1, "what is refused is one record"
        doing = _RunDecoder(0, run, {}, _DecodedEvents())
        tally(doing.counts, "records.gap", run.next_offset - run.first_offset - 1)
        doing.refuse_record(0, "unreadable", reason, detail)
        frame = self._frame(doing.sink, [(run.partition, 0)])
        return EventBatch([run], frame, [(0, 0)], [doing.counts], doing.sink.aside)

    def part_of(self, run: Run, item: SetAside) -> tuple[bytes, str]:
        """Return the value of what is set aside of a record, and its content type.

        That is the whole record where it has one event or could not be read, else those lines, or
        those rows.
        """
        value, headers = run.values[item.record] or b"", run.headers.get(item.record, ())
        form = _form(value, headers) if item.record not in run.faults else ""
        if item.events is None:
            return value, _content_type(headers) or _NAMES.get(form, "")
        if form == "arrow":
            return self._arrow.select(value, item.events), _NAMES["arrow"]
        if self._json.is_document(value, form):
            return value, _NAMES["json"]
        lines = lines_of(value)
        return b"\n".join(lines[place] for place in item.events), _NAMES["lines"]

    def _decode_run(self, doing: _RunDecoder) -> None:
        for first, last, form in self._parts(doing.run):
            if form == "arrow":
                self._decode_arrow(doing, range(first, last))
            elif form in ("unknown", "none", "fault"):
                for index in range(first, last):
                    self._decode_other(doing, index, form)
            else:
                self._decode_json(doing, range(first, last), form)

    def _parts(self, run: Run) -> Iterator[tuple[int, int, str]]:
        """Cut a run into stretches of one form: ``[first, last)`` and the form."""
        values = run.values
        plain = bool(values) and not run.headers and not run.faults and None not in values
        if plain and not cast("bytes", values[0]).startswith(ARROW_START):
            yield 0, len(values), ""
        else:
            yield from _parts(run)

    def _decode_json(self, doing: _RunDecoder, indexes: range, form: str) -> None:
        """Decode records of JSON: all at once, and one by one what is not plain."""
        values = cast("list[bytes]", doing.run.values[indexes.start : indexes.stop])
        has_lines = form == "lines" or (not form and b"\n" in values[0])
        if has_lines and self._json.are_plain(values):
            self._decode_lines(doing, indexes, form)
            return
        sink, index = doing.sink, indexes.start
        for found in self._json.decode_many(values, sink.events):
            self._place(doing, index, indexes.start + found)
            index = indexes.start + found + 1
            self._decode_record(doing, index - 1, form)
        self._place(doing, index, indexes.stop)

    def _place(self, doing: _RunDecoder, first: int, last: int) -> None:
        """Take note that the records of these indexes were one event each."""
        tally(doing.counts, "records.with_events", last - first)
        tally(doing.counts, "events.decoded", last - first)
        doing.sink.place(pl.int_range(first, last, dtype=pl.UInt64, eager=True) * PLACE)

    def _decode_lines(self, doing: _RunDecoder, indexes: range, form: str) -> None:
        """Decode records of which most hold lines of events."""
        places: list[range] = []
        for index in indexes:
            value = cast("bytes", doing.run.values[index])
            count = self._json.decode_lines(value, doing.sink.events)
            if count:
                tally(doing.counts, "records.with_events")
                tally(doing.counts, "events.decoded", count)
                places.append(range(index * PLACE, index * PLACE + count))
            else:
                doing.sink.place(_joined(places))
                places = []
                self._decode_record(doing, index, form)
        doing.sink.place(_joined(places))

    def _decode_record(self, doing: _RunDecoder, index: int, form: str) -> None:
        """Decode one record line by line; without a content type it may be of any form."""
        value = doing.run.values[index]
        assert value is not None, "tombstones are parts of their own"
        if not form and value.startswith(ARROW_START):
            self._decode_arrow(doing, range(index, index + 1))
            return
        if len(value) > self._source.record_bytes_max:
            doing.refuse_record(index, *self._oversized(len(value)))
            return
        if not value.strip():
            doing.refuse_record(index, *_EMPTY)
            return
        tally(doing.counts, "records.with_events")
        places: list[int] = []
        faults: dict[str, tuple[list[int], str]] = {}
        for place, event in enumerate(self._json.decode_each(value, form)):
            tally(doing.counts, "events.decoded")
            if isinstance(event, Fault):
                faults.setdefault(event.reason, ([], event.detail))[0].append(place)
            else:
                doing.sink.events.append(event)
                places.append(index * PLACE + place)
        for reason, (at, detail) in faults.items():
            doing.refuse_events(index, tuple(at), reason, detail)
        doing.sink.place(pl.Series(places, dtype=pl.UInt64))

    def _decode_arrow(self, doing: _RunDecoder, indexes: range) -> None:
        """Decode records of Arrow, neighbours of one schema at once."""
        pieces: list[tuple[int, pl.DataFrame]] = []
        for index in indexes:
            value = doing.run.values[index] or b""
            if len(value) > self._source.record_bytes_max:
                doing.refuse_record(index, *self._oversized(len(value)))
                continue
            try:
                columns = self._arrow.read(value)
            except BROKEN_ARROW as error:
                doing.refuse_record(index, "unreadable", "arrow", str(error)[:DETAIL_CHARS_MAX])
                continue
            if not columns.height:
                doing.refuse_record(index, "empty", "empty", "no rows")
                continue
            tally(doing.counts, "records.with_events")
            tally(doing.counts, "events.decoded", columns.height)
            if pieces and pieces[-1][1].schema != columns.schema:
                self._take_arrow(doing, pieces)
                pieces = []
            pieces.append((index, columns))
        if pieces:
            self._take_arrow(doing, pieces)

    def _take_arrow(self, doing: _RunDecoder, pieces: list[tuple[int, pl.DataFrame]]) -> None:
        """Take records of one schema; each piece is a record's index and columns."""
        places = pl.concat(
            pl.int_range(index * PLACE, index * PLACE + piece.height, dtype=pl.UInt64, eager=True)
            for index, piece in pieces
        )
        frame, reasons = self._arrow.events(pl.concat([p for _, p in pieces], rechunk=True))
        frame = frame.with_columns(place=places)
        if reasons is not None:
            refused = places.to_frame("place").with_columns(reason=reasons).drop_nulls()
            groups = refused.group_by(pl.col("place") // PLACE, "reason").agg(at=pl.col("place"))
            for index, reason, at in in_order(groups, ["place", "reason"]).iter_rows():
                events = tuple(place % PLACE for place in at)
                doing.refuse_events(index, events, reason, _NOT_EVENTS[reason])
            frame = frame.filter(reasons.is_null())
        doing.sink.take_frame(frame)

    def _decode_other(self, doing: _RunDecoder, index: int, form: str) -> None:
        """Decode one record that is neither JSON nor Arrow."""
        value, headers = doing.run.values[index], doing.run.headers.get(index, ())
        if form == "fault":
            doing.refuse_record(index, *self._fault(doing.run.faults[index]))
        elif form == "none":
            found = self._decode_empty(value, headers)
            if isinstance(found, tuple):
                doing.refuse_record(index, *found)
                return
            tally(doing.counts, "records.heartbeat")
            doing.sink.events.append(found)
            doing.sink.place(pl.Series([index * PLACE], dtype=pl.UInt64))
        elif len(value or b"") > self._source.record_bytes_max:
            doing.refuse_record(index, *self._oversized(len(value or b"")))
        else:
            detail = f"got {_content_type(headers)!r}; want one of {', '.join(CONTENT_TYPES)}"
            doing.refuse_record(index, "unreadable", "content_type", detail)

    def _decode_empty(self, value: bytes | None, headers: Headers) -> Any:
        """Return a heartbeat's struct, or why there is none."""
        data = next((data for name, data in headers if name == HEARTBEAT_HEADER), None)
        if data is None:
            return _EMPTY if value is not None else ("tombstone", "tombstone", "no value")
        try:
            time_ms = decode_heartbeat(data)
        except ValueError as error:
            return "unreadable", "heartbeat", str(error)
        if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
            return "unreadable", "heartbeat", f"time {time_ms} is outside years 1 to 9999"
        return self._json.heartbeat(time_ms)

    def _fault(self, fault: RecordFault) -> tuple[str, str, str]:
        """Return the column, the reason and the detail of a record that could not be read."""
        if fault.reason == "cut" and fault.size > self._source.record_bytes_max:
            return self._oversized(fault.size)
        reason = "batch" if fault.reason == "cut" else fault.reason
        return "unreadable", reason, fault.detail[:DETAIL_CHARS_MAX]

    def _oversized(self, size: int) -> tuple[str, str, str]:
        limit = self._source.record_bytes_max
        return "oversized", "oversized", f"got {size} bytes; want at most {limit}"

    def _frame(self, sink: _DecodedEvents, parts: list[tuple[int, int]]) -> pl.DataFrame:
        """Return the JSON events as a frame, with the Arrow frames at their places.

        ``parts`` has, for each run, its partition and how many rows it has.
        """
        places = pl.concat(sink.places) if sink.places else pl.Series(dtype=pl.UInt64)
        frame = self._json.frame(sink.events, places)
        if sink.frames:
            json, pieces, done = frame, [], 0
            for at, piece in sink.frames:
                pieces += [json[done:at], piece.select(json.columns)]
                done = at
            frame = pl.concat([*pieces, json[done:]])
        partitions = [repeated(partition, rows, pl.Int32) for partition, rows in parts]
        return frame.insert_column(0, pl.concat(partitions).alias("partition"))


def _joined(places: list[range]) -> pl.Series:
    """Return all places, one after the other."""
    # A range costs 4 us to begin with, a number on its own 30 ns.
    if sum(map(len, places)) < 100 * len(places) or not places:
        return pl.Series(list(itertools.chain(*places)), dtype=pl.UInt64)
    return pl.concat(
        pl.int_range(some.start, some.stop, dtype=pl.UInt64, eager=True) for some in places
    )


def _form(value: bytes | None, headers: Headers) -> str:
    if not value:
        return "none"
    for name, data in headers:
        if name.lower() == CONTENT_TYPE:
            return _form_of_type(data)
    return "arrow" if value.startswith(ARROW_START) else ""


def _parts(run: Run) -> Iterator[tuple[int, int, str]]:
    first, before = 0, ""
    for index, value in enumerate(run.values):
        faulty = index in run.faults
        form = "fault" if faulty else _form(value, run.headers.get(index, ()))
        if form != before:
            if index > first:
                yield first, index, before
            first, before = index, form
    if first < len(run.values):
        yield first, len(run.values), before


def _find_form(media_type: bytes) -> str:
    name = media_type.split(b";")[0].strip().lower().decode("latin-1")
    return CONTENT_TYPES.get(name, "unknown")


_form_of_type: Remembered[bytes, str] = Remembered(_find_form)


def _content_type(headers: Headers) -> str:
    found = next((data for name, data in headers if name.lower() == CONTENT_TYPE), b"")
    return found.decode("latin-1")[:DETAIL_CHARS_MAX]


def _refuse_no_times(batch: EventBatch) -> None:
    """Take out events whose time is a text that is no time."""
    times = batch.frame["time"]
    if times.null_count():
        nowhere = batch.frame.filter(times.is_null())
        detail = "its time is no RFC 3339 text with offset, of years 1 to 9999"
        batch.refuse(nowhere, "malformed", "out_of_range", detail)
        batch.keep(times.is_not_null())


def _refuse_future(batch: EventBatch, skew_ms: int) -> None:
    """Take rows out whose time is too far ahead of their record's append time.

    Such a row must not move stream time. A heartbeat so far ahead is unreadable. A record whose
    append time is none, or from before there was Kafka, has nothing to be ahead of.
    """
    ahead: list[pl.Series] = []
    for number, run in enumerate(batch.runs):
        first, last = batch.bounds[number]
        rows = batch.frame[first:last]
        newest = rows["time"].max()
        if newest is None or cast("int", newest) <= min(run.append_times_ms) + skew_ms:
            continue
        limits = [
            skew_ms + at if SECONDS_IN_MS_MAX <= at < TIME_MS_MAX else TIME_MS_MAX
            for at in run.append_times_ms
        ]
        found = rows["time"] > pl.Series(limits, dtype=pl.Int64).gather(rows["place"] // PLACE)
        ahead.append(found.arg_true() + first)
        for place in rows.filter(found & rows["type"].is_null())["place"]:
            counts, detail = batch.ledgers[number], "its time is too far ahead"
            tally(counts, "records.heartbeat", -1)
            tally(counts, "records.unreadable")
            tally(counts, "unreadable.heartbeat")
            aside = SetAside("dead", number, place // PLACE, None, "heartbeat", detail)
            batch.aside.append(aside)
    if ahead:
        gone = pl.repeat(value=False, n=batch.frame.height, eager=True)
        gone = gone.scatter(pl.concat(ahead), values=True)
        events = batch.frame.filter(gone & batch.frame["type"].is_not_null())
        detail = f"more than {skew_ms} ms ahead of its record; is a producer's clock ahead?"
        batch.refuse(events, "future", "future", detail)
        batch.keep(~gone)
