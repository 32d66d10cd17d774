"""Decode: the records of a chunk into one frame of events, in log order.

An event frame has ``partition`` (Int32), ``record`` (UInt32: index into the chunk's records),
``time`` (Int64, ms), ``type`` (String) and one column per declared field. Heartbeats are rows
without type: they move stream time at their place in the log and are nothing else.

One decoder defines what is malformed, on the joined path and record by record alike.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import polars as pl

from tables.chunk import Headers, Run
from tables.heartbeat import HEARTBEAT_HEADER, decode_heartbeat
from tables.layer import Source
from tables.ledger import Ledger
from tables.window import TIME_MS_MAX, TIME_MS_MIN

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_TYPES: dict[str, Any] = {"string": str, "int": _Int64, "bool": bool, "float": float}
_COLUMNS: dict[str, pl.DataType] = {
    "string": pl.String(),
    "int": pl.Int64(),
    "bool": pl.Boolean(),
    "float": pl.Float64(),
}
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclasses.dataclass(slots=True, frozen=True)
class SetAside:
    """A record that goes to a side topic: ``kind`` is late, future or dead; ``reason`` says why."""

    kind: str
    run: int
    index: int
    reason: str


@dataclasses.dataclass(slots=True)
class EventBatch:
    """What a chunk's runs of one source hold.

    ``bounds`` has, per run, its first row in ``frame`` and the row after its last. ``ledgers`` has
    one ledger delta per run, to which the later steps add.
    """

    runs: list[Run]
    frame: pl.DataFrame
    bounds: list[tuple[int, int]]
    ledgers: list[Ledger]
    aside: list[SetAside]


class Decoder:
    """Decodes the JSON records of one source into a struct of only the fields needed."""

    def __init__(self, source: Source, record_bytes_max: int) -> None:
        self._source = source
        self._record_bytes_max = record_bytes_max
        names = {field.name: field for field in source.fields}
        # Times that no calendar can compute are malformed like any wrong type.
        unit = source.time_unit_ms
        bounds = msgspec.Meta(ge=-(-TIME_MS_MIN // unit), le=TIME_MS_MAX // unit)
        fields: list[tuple[str, Any, Any]] = [
            ("time_", Annotated[int, bounds], msgspec.field(name=source.time_field)),
            ("type_", str, msgspec.field(name=source.type_field)),
        ]
        fields += [
            (f"field_{name}", _TYPES[field.type] | None, msgspec.field(name=name, default=None))
            for name, field in names.items()
            if name not in (source.time_field, source.type_field)
        ]
        self._event = msgspec.defstruct("Event", fields, gc=False)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._event)
        self._columns = {
            name: (f"field_{name}", _COLUMNS[field.type]) for name, field in names.items()
        }
        for name, attribute in ((source.time_field, "time_"), (source.type_field, "type_")):
            if name in names:
                self._columns[name] = (attribute, _COLUMNS[names[name].type])

    def decode(self, runs: list[Run]) -> EventBatch:
        """Return the events of ``runs``, which are of this source's topic, in order."""
        events: list[Any] = []
        partitions: list[pl.Series] = []
        records: list[pl.Series] = []
        bounds: list[tuple[int, int]] = []
        ledgers: list[Ledger] = []
        aside: list[SetAside] = []
        for number, run in enumerate(runs):
            first = len(events)
            kept = self._decode_run(number, run, events, ledgers, aside)
            bounds.append((first, len(events)))
            count = len(events) - first
            partitions.append(pl.repeat(run.partition, count, dtype=pl.Int32, eager=True))
            index = pl.int_range(count, dtype=pl.UInt32, eager=True)
            records.append(index if kept is None else pl.Series(kept, dtype=pl.UInt32))
        frame = self._frame(events, partitions, records)
        batch = EventBatch(runs, frame, bounds, ledgers, aside)
        _set_future_aside(batch, self._source.future_skew_ms)
        return batch

    def _decode_run(
        self,
        number: int,
        run: Run,
        events: list[Any],
        ledgers: list[Ledger],
        aside: list[SetAside],
    ) -> list[int] | None:
        """Append the run's events; return the record index of each, None where it is one by one."""
        gaps = run.next_offset - run.first_offset - len(run.values)
        counts: Counter[str] = Counter({"records.gap": gaps})
        ledgers.append(counts)
        sink = (events, counts, aside)
        # A few heartbeats among many events must not cost the events their common decoding.
        holes = [i for i, v in enumerate(run.values) if v is None] if None in run.values else []
        present = [v for v in run.values if v is not None] if holes else run.values
        joined = self._decode_joined(present)
        if joined is None:
            return self._decode_each(number, run, range(len(run.values)), sink)
        counts["records.with_events"] = counts["events.decoded"] = len(joined)
        if not holes:
            events += joined
            return None
        kept: list[int] = []
        for earlier, hole in enumerate(holes):
            start = holes[earlier - 1] + 1 if earlier else 0
            events += joined[start - earlier : hole - earlier]
            kept += range(start, hole)
            kept += self._decode_each(number, run, range(hole, hole + 1), sink)
        events += joined[holes[-1] + 1 - len(holes) :]
        kept += range(holes[-1] + 1, len(run.values))
        return kept

    def _decode_each(
        self,
        number: int,
        run: Run,
        indexes: range,
        sink: tuple[list[Any], Counter[str], list[SetAside]],
    ) -> list[int]:
        """Append the events of these records, one by one; return the record index of each."""
        events, counts, aside = sink
        kept: list[int] = []
        for index in indexes:
            column, event, reason = self._decode_record(
                run.values[index], run.headers.get(index, ())
            )
            counts[f"records.{column}"] += 1
            if column == "with_events":
                counts["events.decoded"] += 1
                counts["events.malformed"] += event is None
            if event is not None:
                events.append(event)
                kept.append(index)
            elif reason:
                aside.append(SetAside("dead", number, index, reason))
        return kept

    def _decode_joined(self, values: Sequence[bytes | None]) -> list[Any] | None:
        """Decode many one-event records at once, or return None where that might not be the same.

        ``decode_lines`` is not line-strict: it is used only where every newline is one of the joins
        and stands between a closing and an opening brace, so that no event can span or share
        records.
        """
        try:
            data = b"\n".join(values)  # type: ignore[arg-type]
        except TypeError:
            return None
        joins = len(values) - 1
        if data.count(b"\n") != joins or data.count(b"}\n{") != joins:
            return None
        if not data.startswith(b"{") or not data.endswith(b"}"):
            return None
        if len(data) > self._record_bytes_max:
            longest = max(map(len, values))  # type: ignore[arg-type]
            if longest > self._record_bytes_max:
                return None
        try:
            events = self._decoder.decode_lines(data)
        except _UNREADABLE:
            return None
        return events if len(events) == len(values) else None

    def _decode_record(self, value: bytes | None, headers: Headers) -> tuple[str, Any, str]:
        """Return the record's ledger column, its event or heartbeat, and why it has none."""
        if value is None:
            return self._decode_empty(headers)
        if len(value) > self._record_bytes_max:
            return "oversized", None, f"{len(value)} bytes; at most {self._record_bytes_max}"
        if not value.strip():
            return "empty", None, ""
        try:
            return "with_events", self._decoder.decode(value), ""
        except msgspec.ValidationError as error:
            return "with_events", None, str(error)
        except _UNREADABLE as error:
            return "unreadable", None, str(error)

    def _decode_empty(self, headers: Headers) -> tuple[str, Any, str]:
        for name, data in headers:
            if name == HEARTBEAT_HEADER:
                try:
                    time_ms = decode_heartbeat(data)
                except ValueError as error:
                    return "unreadable", None, str(error)
                if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
                    return (
                        "unreadable",
                        None,
                        f"heartbeat time {time_ms} is outside years 1 to 9999",
                    )
                return "heartbeat", self._event(time_=time_ms, type_=None), ""
        return "empty", None, ""

    def _frame(
        self, events: list[Any], partitions: list[pl.Series], records: list[pl.Series]
    ) -> pl.DataFrame:
        columns = {
            "partition": pl.concat(partitions),
            "record": pl.concat(records),
            "time": pl.Series([event.time_ for event in events], dtype=pl.Int64),
            "type": pl.Series([event.type_ for event in events], dtype=pl.String),
        }
        for name, (attribute, kind) in self._columns.items():
            columns[name] = pl.Series([getattr(event, attribute) for event in events], dtype=kind)
        frame = pl.DataFrame(columns)
        if self._source.time_unit_ms != 1:
            heartbeat = pl.col("type").is_null()
            scaled = pl.col("time") * self._source.time_unit_ms
            frame = frame.with_columns(
                time=pl.when(heartbeat).then(pl.col("time")).otherwise(scaled)
            )
        return frame


def _set_future_aside(batch: EventBatch, skew_ms: int) -> None:
    """Take rows out whose time is too far ahead of their record's append time, and count them.

    Such a row must not move stream time. An event goes to the future topic; a heartbeat counts as
    unreadable.
    """
    for number, run in enumerate(batch.runs):
        if not run.values:
            continue
        first, last = batch.bounds[number]
        rows = batch.frame[first:last]
        newest = rows["time"].max()
        if newest is None or newest <= min(run.append_times_ms) + skew_ms:  # type: ignore[operator]
            continue
        appended = pl.Series(run.append_times_ms, dtype=pl.Int64).gather(rows["record"])
        ahead = rows["time"] > appended + skew_ms
        if not ahead.any():
            continue
        counts = batch.ledgers[number]
        for index, is_event in (
            rows.filter(ahead).select("record", pl.col("type").is_not_null()).rows()
        ):
            if is_event:
                counts["events.future"] = counts.get("events.future", 0) + 1
                batch.aside.append(SetAside("future", number, index, "event time too far ahead"))
            else:
                counts["records.heartbeat"] -= 1
                counts["records.unreadable"] = counts.get("records.unreadable", 0) + 1
                batch.aside.append(SetAside("dead", number, index, "heartbeat too far ahead"))
        _remove_rows(batch, number, ~ahead)


def _remove_rows(batch: EventBatch, number: int, keep: pl.Series) -> None:
    first, last = batch.bounds[number]
    rest = batch.frame[first:last].filter(keep)
    removed = last - first - rest.height
    batch.frame = pl.concat([batch.frame[:first], rest, batch.frame[last:]])
    batch.bounds[number] = (first, last - removed)
    for later in range(number + 1, len(batch.bounds)):
        start, stop = batch.bounds[later]
        batch.bounds[later] = (start - removed, stop - removed)
