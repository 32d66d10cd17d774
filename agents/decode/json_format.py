"""JSON as a format of records: one document per record, lines of events, or either of them.

A document is one event or, if the source has arrays, also an array of events.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import polars as pl

from agents.decode.event_batch import RECORD_SPAN
from agents.decode.json_events import JsonEvents, are_utf8, array_fault, elements_of, lines_of
from agents.decode.record_format import RecordFormat, RunResults
from agents.decode.struct_events import add_structs
from tables.model.layer import Source

_JSON_TYPE, _NDJSON_TYPE = "application/json", "application/x-ndjson"


class JsonDecoder:
    """Decodes the JSON records of one source: ``lines`` of events, documents, or if None either.

    A value that may be either is one document if all of it is one, an event or not.
    """

    def __init__(self, source: Source, *, lines: bool | None) -> None:
        self._json = JsonEvents(source)
        self._lines = lines
        self._has_arrays = source.arrays and lines is not True
        self._selected: tuple[bytes, list[bytes] | None] = b"", None

    def decode(self, run: RunResults, first: int, values: list[bytes]) -> None:
        """Decode records: all at once, but one by one those that are not one event each."""
        self._selected = b"", None
        has_lines = b"\n" in values[0] if self._lines is None else self._lines
        is_array = self._elements(values[0]) is not None
        if (has_lines or is_array) and are_utf8(values):
            decode = self._json.decode_array if is_array else self._json.decode_lines
            self._decode_several(run, first, values, decode)
            return
        done = 0
        for found in self._json.decode_many(values, run.events.structs):
            _add_each(run, first + done, first + found)
            done = found + 1
            self._decode_record(run, first + found, values[found])
        _add_each(run, first + done, first + len(values))

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return the document, or these of the lines; those of an array become lines too.

        The events of the value are kept until the next decoding: a record may need many letters.
        """
        known, lines = self._selected
        if known != value:
            lines = self._elements(value)
            if lines is None and not self._is_document(value):
                lines = lines_of(value)
            self._selected = value, lines
        if lines is None:
            return value, _JSON_TYPE
        # Between the texts of JSON a line feed is as good as any other blank.
        return b"\n".join(lines[event].replace(b"\n", b" ") for event in events), _NDJSON_TYPE

    def _decode_several(
        self,
        run: RunResults,
        first: int,
        values: list[bytes],
        decode: Callable[[bytes, list[object]], int],
    ) -> None:
        """Decode records of which most hold several events, all of which ``decode`` returns."""
        indexes: list[range] = []
        for index, value in enumerate(values, first):
            count = decode(value, run.events.structs)
            if count:
                first_event = index * RECORD_SPAN
                indexes.append(range(first_event, first_event + count))
            else:
                _add_lines(run, indexes)
                indexes = []
                self._decode_record(run, index, value)
        _add_lines(run, indexes)

    def _decode_record(self, run: RunResults, index: int, value: bytes) -> None:
        """Decode one record event by event; without a content type it may be of any format."""
        if self._lines is None and run.decode_by_magic(index, value):
            return
        if not value.strip():
            run.refuse_blank(index)
            return
        events = self._events(value)
        if not events:
            run.refuse_record(index, "empty", "empty", "an array without events")
            return
        if self._has_arrays and len(events) == 1 and (detail := array_fault(events[0])):
            run.ledger.add_decoded(1, 1)
            run.refuse_events(index, (0,), "json", detail)
            return
        indexes = add_structs(run, index, map(self._json.decode_one, events))
        run.events.add_indexes(pl.Series(indexes, dtype=pl.UInt64))

    def _events(self, value: bytes) -> list[bytes]:
        """Return the texts of a value's events."""
        elements = self._elements(value)
        if elements is not None:
            return elements
        return [value] if self._is_document(value) else lines_of(value)

    def _elements(self, value: bytes) -> list[bytes] | None:
        """Return the texts of the events in an array; None for any other value."""
        return elements_of(value) if self._has_arrays else None

    def _is_document(self, value: bytes) -> bool:
        """Return whether a value is one JSON document rather than lines."""
        return self._json.is_document(value) if self._lines is None else not self._lines


def _add_each(run: RunResults, first: int, last: int) -> None:
    """Count the records of these indexes, which were one event each, and add their indexes."""
    run.ledger.add_decoded(last - first, last - first)
    run.events.add_indexes(pl.int_range(first, last, dtype=pl.UInt64, eager=True) * RECORD_SPAN)


def _add_lines(run: RunResults, indexes: list[range]) -> None:
    """Count records whose lines were all events; each range has the event indexes of one record."""
    if not indexes:
        return
    events = sum(map(len, indexes))
    run.ledger.add_decoded(len(indexes), events)
    # A range of any length costs 4 us, a single number 30 ns.
    if events < 100 * len(indexes):
        run.events.add_indexes(pl.Series(list(itertools.chain(*indexes)), dtype=pl.UInt64))
        return
    run.events.add_indexes(
        pl.concat(
            pl.int_range(some.start, some.stop, dtype=pl.UInt64, eager=True) for some in indexes
        )
    )


JSON = RecordFormat("json", _JSON_TYPE, functools.partial(JsonDecoder, lines=False))
NDJSON = RecordFormat("ndjson", _NDJSON_TYPE, functools.partial(JsonDecoder, lines=True))
JSON_OR_LINES = RecordFormat("json or ndjson", "", functools.partial(JsonDecoder, lines=None))
"""The format of a value that neither a header nor its first bytes identify; it may be empty."""
