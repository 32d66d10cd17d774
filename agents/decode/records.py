"""Decode: the records of a chunk into one frame of events, in log order.

docs/formats/records.md defines records and malformed events. One decoder applies these rules to
every format, on every path, for any cutting into chunks::

    runs -> stretches of one format -> events, refusals -> one frame -> its usable times
"""

from __future__ import annotations

from typing import cast

import polars as pl

from agents.decode import formats
from agents.decode.avro_format import frame_id
from agents.decode.decoded_events import DecodedEvents
from agents.decode.event_batch import (
    INDEX_COLUMN,
    NULLED_PREFIX,
    RECORD_SPAN,
    EventBatch,
    SetAside,
)
from agents.decode.json_events import JsonEvents
from agents.decode.run_decoder import RunDecoder, SourceFormats
from agents.decode.schemas import Schemas
from tables.model.layer import Source, needs_registry
from tables.model.ledger import LedgerDelta
from tables.model.window import SECONDS_IN_MS_MAX, TIME_MS_MAX
from tables.record.chunk import Run


class Decoder:
    """Decodes the records of one source, of any format.

    Args:
        source: the source.
        schemas: the schemas of the registry; None if this process has none.
    """

    def __init__(self, source: Source, schemas: Schemas | None = None) -> None:
        self._source = source
        self._json = JsonEvents(source)
        self._formats = SourceFormats(source, *formats.formats_of(source, schemas))
        self._schemas = schemas if needs_registry(source) else None

    async def learn(self, runs: list[Run]) -> None:
        """Wait until the registry's schemas that runs need are known, or known to be missing."""
        if self._schemas is None:
            return
        found = {frame_id(value) for run in runs for value in run.values} - {None}
        if lacking := self._schemas.lacking(cast("set[int]", found)):
            await self._schemas.learn(lacking)

    def decode(self, runs: list[Run]) -> EventBatch:
        """Return the events of ``runs``, which are of this source's topic, in order."""
        events = DecodedEvents(self._json)
        bounds: list[tuple[int, int]] = []
        ledgers: list[LedgerDelta] = []
        for number, run in enumerate(runs):
            first = events.rows
            decoder = RunDecoder(number, run, self._formats, events)
            decoder.decode()
            ledgers.append(decoder.ledger)
            bounds.append((first, events.rows))
        batch = _batch(runs, ledgers, bounds, events)
        _refuse_no_times(batch, self._source)
        _count_nulled(batch, self._source)
        _refuse_future(batch, self._source.future_skew_ms)
        return batch

    def refuse(self, run: Run, reason: str, detail: str) -> EventBatch:
        """Return the batch of a run of one record that is refused as a whole."""
        assert len(run.values) == 1, "one record is refused at a time"
        events = DecodedEvents(self._json)
        decoder = RunDecoder(0, run, self._formats, events)
        decoder.refuse_record(0, "unreadable", reason, detail)
        return _batch([run], [decoder.ledger], [(0, 0)], events)

    def part_of(self, run: Run, item: SetAside) -> tuple[bytes, str]:
        """Return the part of a record that is set aside, and its content type.

        The part is the whole record if it could not be read or is one event, else ``item.events``.
        """
        return self._formats.part_of(run, item)


def _batch(
    runs: list[Run],
    ledgers: list[LedgerDelta],
    bounds: list[tuple[int, int]],
    events: DecodedEvents,
) -> EventBatch:
    parts = [(run.partition, last - first) for run, (first, last) in zip(runs, bounds, strict=True)]
    return EventBatch(runs, events.frame(parts), bounds, ledgers, events.aside)


def _refuse_no_times(batch: EventBatch, source: Source) -> None:
    """Refuse events whose time is a text that is not a time."""
    times = batch.frame["time"]
    if times.null_count():
        nowhere = batch.frame.filter(times.is_null())
        form = "an RFC 3339 text" if source.time_offset else "an RFC 3339 text with offset"
        detail = f"its time is not {form}, of years 1 to 9999"
        batch.refuse(nowhere, "malformed", "out_of_range", detail)
        batch.keep(times.is_not_null())


def _count_nulled(batch: EventBatch, source: Source) -> None:
    """Count the wrong values that became null, of all events that are not malformed."""
    for field in source.nullable:
        nulled = batch.frame[NULLED_PREFIX + field.name]
        for ledger, (first, last) in zip(batch.ledgers, batch.bounds, strict=True):
            ledger.add_nulled(source.name, field.name, int(nulled[first:last].sum() or 0))
        batch.frame = batch.frame.drop(nulled.name)


def _refuse_future(batch: EventBatch, skew_ms: int) -> None:
    """Refuse rows whose time is too far ahead of their record's append time.

    Such a row must not move stream time. A heartbeat so far ahead is unreadable. An append time
    that is absent, or older than Kafka itself, is not a limit.
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
        records = rows[INDEX_COLUMN] // RECORD_SPAN
        found = rows["time"] > pl.Series(limits, dtype=pl.Int64).gather(records)
        ahead.append(found.arg_true() + first)
        for record in records.filter(found & rows["type"].is_null()):
            batch.ledgers[number].add_records("heartbeat", -1)
            batch.ledgers[number].add_records("unreadable", reason="heartbeat")
            detail = "its time is too far ahead"
            aside = SetAside("dead", number, record, None, "heartbeat", detail)
            batch.aside.append(aside)
    if ahead:
        gone = pl.repeat(value=False, n=batch.frame.height, eager=True)
        gone = gone.scatter(pl.concat(ahead), values=True)
        events = batch.frame.filter(gone & batch.frame["type"].is_not_null())
        detail = f"more than {skew_ms} ms ahead of its record; is a producer's clock ahead?"
        batch.refuse(events, "future", "future", detail)
        batch.keep(~gone)
