"""Decode: the records of a chunk into one frame of events, in log order.

What a record may be, and what is malformed, stands in docs/formats/records.md. One decoder says so,
whatever the form, the path and the cutting into chunks::

    run    e e e e h e e  A  e E e        e JSON event(s), E broken, h heartbeat, A Arrow
    parts  |------|h|---| A |-----|       JSON of a part is decoded at once, or else one by one
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import polars as pl

from agents.batch import DETAIL_CHARS_MAX, PLACE, EventBatch, SetAside, tally
from agents.decode_arrow import ARROW_START, BROKEN_ARROW, ArrowEvents
from agents.decode_json import Fault, JsonEvents, lines_of
from tables.chunk import Headers, Run
from tables.heartbeat import HEARTBEAT_HEADER, decode_heartbeat
from tables.layer import Source
from tables.ledger import Ledger
from tables.window import TIME_MS_MAX, TIME_MS_MIN

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
class _Sink:
    """What is decoded so far: JSON structs, with Arrow frames at their place between them."""

    events: list[Any] = dataclasses.field(default_factory=list)
    places: list[pl.Series] = dataclasses.field(default_factory=list)
    partitions: list[pl.Series] = dataclasses.field(default_factory=list)
    frames: list[tuple[int, pl.DataFrame]] = dataclasses.field(default_factory=list)
    aside: list[SetAside] = dataclasses.field(default_factory=list)
    rows: int = 0

    def take(self, run: Run, events: Sequence[Any], places: pl.Series) -> None:
        """Take JSON events with their places."""
        self.events += events
        self.places.append(places)
        self.partitions.append(pl.repeat(run.partition, len(events), dtype=pl.Int32, eager=True))
        self.rows += len(events)

    def take_frame(self, frame: pl.DataFrame) -> None:
        """Take an event frame, behind the JSON events so far."""
        self.frames.append((len(self.events), frame))
        self.rows += frame.height


@dataclasses.dataclass(slots=True)
class _Doing:
    """One run while it is decoded: its ledger delta, and where events and refusals go."""

    number: int
    run: Run
    counts: Ledger
    sink: _Sink

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
        sink = _Sink()
        bounds: list[tuple[int, int]] = []
        ledgers: list[Ledger] = []
        for number, run in enumerate(runs):
            first = sink.rows
            counts: Ledger = {}
            tally(counts, "records.gap", run.next_offset - run.first_offset - len(run.values))
            ledgers.append(counts)
            self._decode_run(_Doing(number, run, counts, sink))
            bounds.append((first, sink.rows))
        batch = EventBatch(runs, self._frame(sink), bounds, ledgers, sink.aside)
        _refuse_no_times(batch)
        _refuse_future(batch, self._source.future_skew_ms)
        return batch

    def refuse(self, run: Run, reason: str, detail: str) -> EventBatch:
        """Return the batch of a run of one record that is refused as a whole."""
        assert len(run.values) == 1, "what is refused is one record"
        doing = _Doing(0, run, {}, _Sink())
        tally(doing.counts, "records.gap", run.next_offset - run.first_offset - 1)
        doing.refuse_record(0, "unreadable", reason, detail)
        frame = self._frame(doing.sink)
        return EventBatch([run], frame, [(0, 0)], [doing.counts], doing.sink.aside)

    def part_of(self, run: Run, item: SetAside) -> tuple[bytes, str]:
        """Return the value of what is set aside of a record, and its content type.

        That is the whole record where it has one event or could not be read, else those lines, or
        those rows.
        """
        value, headers = run.values[item.record] or b"", run.headers.get(item.record, ())
        form = _form(value, headers)
        if item.events is None:
            return value, _content_type(headers) or _NAMES.get(form, "")
        if form == "arrow":
            return self._arrow.select(value, item.events), _NAMES["arrow"]
        if self._json.is_document(value, form):
            return value, _NAMES["json"]
        lines = lines_of(value)
        return b"\n".join(lines[place] for place in item.events), _NAMES["lines"]

    def _decode_run(self, doing: _Doing) -> None:
        run = doing.run
        plain = not run.headers and None not in run.values
        if plain and self._decode_many(doing, 0, run.values):
            return
        for first, last, form in _parts(run):
            if form in ("arrow", "unknown", "none"):
                for index in range(first, last):
                    self._decode_other(doing, index, form)
            # A value that is said to be one JSON document may not be taken for lines.
            elif form == "json" or not self._decode_many(doing, first, run.values[first:last]):
                self._decode_each(doing, range(first, last), form)

    def _decode_many(self, doing: _Doing, first: int, values: list[bytes | None]) -> bool:
        """Decode records of JSON at once, from index ``first`` on; tell whether that was done."""
        found = self._json.decode_many(cast("list[bytes]", values)) if values else None
        if found is None:
            return False
        events, per_record = found
        tally(doing.counts, "records.with_events", len(values))
        tally(doing.counts, "events.decoded", len(events))
        doing.sink.take(doing.run, events, _places(first, len(values), per_record))
        return True

    def _decode_each(self, doing: _Doing, indexes: range, form: str) -> None:
        """Decode records of JSON line by line."""
        events: list[Any] = []
        places: list[int] = []
        for index in indexes:
            value = doing.run.values[index]
            assert value is not None, "tombstones are parts of their own"
            if len(value) > self._source.record_bytes_max:
                doing.refuse_record(index, *self._oversized(value))
                continue
            if not value.strip():
                doing.refuse_record(index, *_EMPTY)
                continue
            tally(doing.counts, "records.with_events")
            faults: dict[str, tuple[list[int], str]] = {}
            for place, event in enumerate(self._json.decode_each(value, form)):
                tally(doing.counts, "events.decoded")
                if isinstance(event, Fault):
                    faults.setdefault(event.reason, ([], event.detail))[0].append(place)
                else:
                    events.append(event)
                    places.append(index * PLACE + place)
            for reason, (at, detail) in faults.items():
                doing.refuse_events(index, tuple(at), reason, detail)
        doing.sink.take(doing.run, events, pl.Series(places, dtype=pl.UInt64))

    def _decode_other(self, doing: _Doing, index: int, form: str) -> None:
        """Decode one record that is no JSON."""
        value, headers = doing.run.values[index] or b"", doing.run.headers.get(index, ())
        if form == "none":
            found = self._decode_empty(doing.run.values[index], headers)
            if isinstance(found, tuple):
                doing.refuse_record(index, *found)
                return
            tally(doing.counts, "records.heartbeat")
            doing.sink.take(doing.run, [found], pl.Series([index * PLACE], dtype=pl.UInt64))
        elif len(value) > self._source.record_bytes_max:
            doing.refuse_record(index, *self._oversized(value))
        elif form == "unknown":
            detail = f"got {_content_type(headers)!r}; want one of {', '.join(CONTENT_TYPES)}"
            doing.refuse_record(index, "unreadable", "content_type", detail)
        else:
            self._decode_arrow(doing, index, value)

    def _decode_arrow(self, doing: _Doing, index: int, value: bytes) -> None:
        try:
            frame, reasons = self._arrow.decode(value)
        except BROKEN_ARROW as error:
            doing.refuse_record(index, "unreadable", "arrow", str(error)[:DETAIL_CHARS_MAX])
            return
        if not frame.height:
            doing.refuse_record(index, "empty", "empty", "no rows")
            return
        tally(doing.counts, "records.with_events")
        tally(doing.counts, "events.decoded", frame.height)
        places = pl.int_range(frame.height, dtype=pl.UInt64, eager=True) + index * PLACE
        frame = frame.with_columns(partition=pl.lit(doing.run.partition, pl.Int32), place=places)
        if reasons is not None:
            for reason in reasons.drop_nulls().unique().sort():
                at = (reasons == reason).fill_null(value=False).arg_true()
                doing.refuse_events(index, tuple(at), reason, _NOT_EVENTS[reason])
            frame = frame.filter(reasons.is_null())
        doing.sink.take_frame(frame)

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

    def _oversized(self, value: bytes) -> tuple[str, str, str]:
        limit = self._source.record_bytes_max
        return "oversized", "oversized", f"got {len(value)} bytes; want at most {limit}"

    def _frame(self, sink: _Sink) -> pl.DataFrame:
        """Return the JSON events as a frame, with the Arrow frames at their places."""
        places = pl.concat(sink.places) if sink.places else pl.Series(dtype=pl.UInt64)
        partitions = pl.concat(sink.partitions) if sink.places else pl.Series(dtype=pl.Int32)
        json = self._json.frame(sink.events, places, partitions)
        if not sink.frames:
            return json
        pieces, done = [], 0
        for at, frame in sink.frames:
            pieces += [json[done:at], frame.select(json.columns)]
            done = at
        return pl.concat([*pieces, json[done:]])


def _parts(run: Run) -> Iterator[tuple[int, int, str]]:
    """Cut a run into stretches of one form: ``[first, last)`` and the form."""
    first, before = 0, ""
    for index, value in enumerate(run.values):
        form = _form(value, run.headers.get(index, ()))
        if form != before:
            if index > first:
                yield first, index, before
            first, before = index, form
    if first < len(run.values):
        yield first, len(run.values), before


def _form(value: bytes | None, headers: Headers) -> str:
    if not value:
        return "none"
    for name, data in headers:
        if name.lower() == CONTENT_TYPE:
            return _form_of_type(data)
    return "arrow" if value.startswith(ARROW_START) else ""


def _places(first: int, records: int, per_record: list[int] | None) -> pl.Series:
    """Return the places of events, of which each record has one or as many as given."""
    if per_record is None:
        return pl.int_range(first, first + records, dtype=pl.UInt64, eager=True) * PLACE
    places: list[int] = []
    for index, count in enumerate(per_record, first):
        places += range(index * PLACE, index * PLACE + count)
    return pl.Series(places, dtype=pl.UInt64)


@functools.lru_cache(1_024)
def _form_of_type(media_type: bytes) -> str:
    name = media_type.split(b";")[0].strip().lower().decode("latin-1")
    return CONTENT_TYPES.get(name, "unknown")


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

    Such a row must not move stream time. A heartbeat so far ahead is unreadable.
    """
    ahead = pl.repeat(value=False, n=batch.frame.height, eager=True)
    for number, run in enumerate(batch.runs):
        first, last = batch.bounds[number]
        rows = batch.frame[first:last]
        newest = rows["time"].max()
        if newest is None or cast("int", newest) <= min(run.append_times_ms) + skew_ms:
            continue
        appended = pl.Series(run.append_times_ms, dtype=pl.Int64).gather(rows["place"] // PLACE)
        found = rows["time"] > appended + skew_ms
        ahead = ahead.scatter(found.arg_true() + first, values=True)
        for place in rows.filter(found & rows["type"].is_null())["place"]:
            counts, detail = batch.ledgers[number], "its time is too far ahead"
            tally(counts, "records.heartbeat", -1)
            tally(counts, "records.unreadable")
            tally(counts, "unreadable.heartbeat")
            aside = SetAside("dead", number, place // PLACE, None, "heartbeat", detail)
            batch.aside.append(aside)
    if ahead.any():
        events = batch.frame.filter(ahead & batch.frame["type"].is_not_null())
        batch.refuse(events, "future", "future", f"more than {skew_ms} ms ahead of its record")
        batch.keep(~ahead)
