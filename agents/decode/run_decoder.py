"""Decode one run: the format of each record, and its events or the reason of its refusal.

run         e e e e h e e  A A  e E e      e JSON event(s), E broken, h heartbeat, A Arrow
stretches   |------|h|---| |-| |-----|     a stretch is decoded at once, but for its E
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast

from agents.decode.decoded_events import DecodedEvents
from agents.decode.event_batch import DETAIL_CHARS_MAX, SetAside
from agents.decode.record_format import FormatDecoder, RecordFormat
from tables.model.layer import Source
from tables.model.ledger import LedgerDelta, RecordColumn
from tables.model.window import TIME_MS_MAX, TIME_MS_MIN
from tables.record.chunk import Headers, RecordFault, Run
from tables.record.gzip import GZIP_MAGIC, GzipError, inflate_gzip
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat
from tables.record.remembered import Remembered

CONTENT_TYPE = "content-type"


class SourceFormats:
    """The decoders of one source, by the content type or first bytes that identify a format.

    Args:
        source: the source of the records.
        formats: all formats that a header or first bytes identify.
        otherwise: the format of a value that neither of them identifies.
    """

    def __init__(
        self, source: Source, formats: Sequence[RecordFormat], otherwise: RecordFormat
    ) -> None:
        self.record_bytes_max = source.record_bytes_max
        self.content_types = [form.content_type for form in formats]
        self._otherwise = otherwise.decoder(source)
        decoders = [(form, form.decoder(source)) for form in formats]
        self._by_content_type = {form.content_type: decoder for form, decoder in decoders}
        self._by_magic = {magic: decoder for form, decoder in decoders for magic in form.magics}
        self._magics = tuple(self._by_magic)
        self._packed = (GZIP_MAGIC,) if source.compression == "gzip" else ()
        self._content_types: dict[FormatDecoder | None, str] = {
            decoder: form.content_type for form, decoder in decoders
        }
        self._of_header: Remembered[bytes, FormatDecoder | None] = Remembered(self._find)

    def stretches(self, run: Run) -> Iterator[tuple[int, int, FormatDecoder | None]]:
        """Cut a run into stretches: the records ``[first, last)``, and the decoder of their format.

        None stands for records that could not be read, have no value, are of another format, or
        are packed.
        """
        values = run.values
        plain = bool(values) and not run.headers and not run.faults and None not in values
        # The decoder finds later values that begin with a magic, because they are not JSON.
        if plain and not cast("bytes", values[0]).startswith(self._magics + self._packed):
            yield 0, len(values), self._otherwise
            return
        forms = (self._of(run, index, value) for index, value in enumerate(values))
        last = 0
        for form, some in itertools.groupby(forms):
            first, last = last, last + len(list(some))
            yield first, last, form

    def by_magic(self, value: bytes) -> FormatDecoder | None:
        """Return the decoder of the format that the first bytes identify, if they identify one."""
        if not value.startswith(self._magics):
            return None
        return next(self._by_magic[magic] for magic in self._magics if value.startswith(magic))

    def part_of(self, run: Run, item: SetAside) -> tuple[bytes, str]:
        """Return the part of a record that is set aside, and its content type if one is known.

        The part is the whole record if it could not be read, else ``item.events``.
        """
        value, headers = run.values[item.record], run.headers.get(item.record, ())
        if item.events is None or value is None:
            form = self._of(run, item.record, value)
            return value or b"", _content_type(headers) or self._content_types.get(form, "")
        if self.is_packed(value):
            value = bytes(inflate_gzip(value, self.record_bytes_max)[0])
        form = self.of_value(headers, value)
        assert form is not None, "a record with events has a format"
        return form.select(value, item.events)

    def is_packed(self, value: bytes) -> bool:
        """Return whether a value has to be inflated first."""
        return value.startswith(self._packed)

    def of_value(self, headers: Headers, value: bytes) -> FormatDecoder | None:
        """Return the decoder of a value that is not packed; None if its content type is unknown."""
        for name, data in headers:
            if name.lower() == CONTENT_TYPE:
                return self._of_header(data)
        return self.by_magic(value) or self._otherwise

    def _of(self, run: Run, index: int, value: bytes | None) -> FormatDecoder | None:
        if index in run.faults or not value or self.is_packed(value):
            return None
        return self.of_value(run.headers.get(index, ()), value)

    def _find(self, media_type: bytes) -> FormatDecoder | None:
        name = media_type.split(b";")[0].strip().lower().decode("latin-1")
        return self._by_content_type.get(name)


class RunDecoder:
    """Decodes one run; the decoders of formats report the events and refusals of each record to it.

    Attributes:
        events: the chunk's events, to which those of the run are added.
        ledger: the counts of the run.
    """

    def __init__(
        self, number: int, run: Run, formats: SourceFormats, events: DecodedEvents
    ) -> None:
        self._number = number
        self._run = run
        self._formats = formats
        self.events = events
        self.ledger = LedgerDelta()
        self.ledger.add_records("gap", run.next_offset - run.first_offset - len(run.values))

    def decode(self) -> None:
        """Decode all records."""
        for first, last, form in self._formats.stretches(self._run):
            if form is not None:
                self._decode_values(form, first, last)
                continue
            for index in range(first, last):
                value = self._run.values[index]
                if index in self._run.faults:
                    self._refuse_faulty(index, self._run.faults[index])
                elif not value:
                    self._decode_empty(index)
                elif self._formats.is_packed(value):
                    self._decode_packed(index, value)
                else:
                    self._refuse_unknown(index)

    def decode_by_magic(self, index: int, value: bytes) -> bool:
        """Decode a record if its first bytes identify a format; return whether they do."""
        if self._formats.is_packed(value):
            self._decode_packed(index, value)
            return True
        form = self._formats.by_magic(value)
        if form is not None:
            form.decode(self, index, [value])
        return form is not None

    def refuse_record(self, index: int, column: RecordColumn, reason: str, detail: str) -> None:
        """Count a record in its column, and by reason if it is unreadable; set it aside."""
        self.ledger.add_records(column, reason=reason)
        self._set_aside(index, None, reason, detail)

    def refuse_events(self, index: int, at: tuple[int, ...], reason: str, detail: str) -> None:
        """Count events of one record as malformed, and set them aside.

        Args:
            index: the record.
            at: the indexes of the events in it.
            reason: one of the malformed reasons of docs/formats/records.md.
            detail: says more to people, in at most DETAIL_CHARS_MAX characters of the record.
        """
        self.ledger.add_events("malformed", len(at), reason)
        self._set_aside(index, at, reason, detail)

    def _set_aside(self, index: int, at: tuple[int, ...] | None, reason: str, detail: str) -> None:
        self.events.aside.append(SetAside("dead", self._number, index, at, reason, detail))

    def _decode_values(self, form: FormatDecoder, first: int, last: int) -> None:
        """Decode the records of one format, and refuse those that are too large."""
        values = cast("list[bytes]", self._run.values[first:last])
        limit = self._formats.record_bytes_max
        if max(map(len, values)) <= limit:
            form.decode(self, first, values)
            return
        begin = 0
        for at, value in enumerate(values):
            if len(value) > limit:
                if at > begin:
                    form.decode(self, first + begin, values[begin:at])
                self._refuse_oversized(first + at, len(value))
                begin = at + 1
        if begin < len(values):
            form.decode(self, first + begin, values[begin:])

    def _decode_packed(self, index: int, value: bytes) -> None:
        """Inflate one record, so that no more than one is in memory, and decode it."""
        limit = self._formats.record_bytes_max
        if len(value) > limit:
            self._refuse_oversized(index, len(value))
            return
        try:
            inflated, is_whole = inflate_gzip(value, limit)
        except GzipError as error:
            self.refuse_record(index, "unreadable", "gzip", str(error))
            return
        value = bytes(inflated)
        form = self._formats.of_value(self._run.headers.get(index, ()), value)
        if not is_whole:
            detail = f"got gzip of more than {limit} bytes; want at most {limit}"
            self.refuse_record(index, "oversized", "oversized", detail)
        elif self._formats.is_packed(value):
            self.refuse_record(index, "unreadable", "gzip", "compressed twice")
        elif not value:
            self._decode_empty(index)
        elif form is None:
            self._refuse_unknown(index)
        else:
            form.decode(self, index, [value])

    def _decode_empty(self, index: int) -> None:
        """Decode a record without bytes: a heartbeat, a tombstone, or nothing."""
        headers = self._run.headers.get(index, ())
        data = next((data for name, data in headers if name == HEARTBEAT_HEADER), None)
        if data is None:
            if self._run.values[index] is None:
                self.refuse_record(index, "tombstone", "tombstone", "no value")
            else:
                self.refuse_blank(index)
            return
        try:
            time_ms = decode_heartbeat(data)
        except ValueError as error:
            self.refuse_record(index, "unreadable", "heartbeat", str(error))
            return
        if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
            detail = f"time {time_ms} is outside years 1 to 9999"
            self.refuse_record(index, "unreadable", "heartbeat", detail)
            return
        self.ledger.add_records("heartbeat")
        self.events.add_heartbeat(index, time_ms)

    def refuse_blank(self, index: int) -> None:
        """Refuse a record that is empty or only white space."""
        self.refuse_record(index, "empty", "empty", "nothing but white space")

    def _refuse_faulty(self, index: int, fault: RecordFault) -> None:
        if fault.reason == "cut" and fault.size > self._formats.record_bytes_max:
            self._refuse_oversized(index, fault.size)
            return
        reason = "batch" if fault.reason == "cut" else fault.reason
        self.refuse_record(index, "unreadable", reason, fault.detail[:DETAIL_CHARS_MAX])

    def _refuse_unknown(self, index: int) -> None:
        size = len(self._run.values[index] or b"")
        if size > self._formats.record_bytes_max:
            self._refuse_oversized(index, size)
            return
        said = _content_type(self._run.headers.get(index, ()))
        detail = f"got {said!r}; want one of {', '.join(self._formats.content_types)}"
        self.refuse_record(index, "unreadable", "content_type", detail)

    def _refuse_oversized(self, index: int, size: int) -> None:
        detail = f"got {size} bytes; want at most {self._formats.record_bytes_max}"
        self.refuse_record(index, "oversized", "oversized", detail)


def _content_type(headers: Headers) -> str:
    found = next((data for name, data in headers if name.lower() == CONTENT_TYPE), b"")
    return found.decode("latin-1")[:DETAIL_CHARS_MAX]
