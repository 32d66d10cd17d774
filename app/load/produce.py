"""Produce: writes the events of files to a topic.

    file --> pieces --> keys --> partitions --> records of one form --> BatchProducer
                           `--> check: would a worker accept them?

An event without key goes to the partition that is next in turn.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from app.cluster.rights import Right
from app.cluster.rights_check import check_rights
from app.kafka.batch_producer import BatchProducer, partition_of
from app.load.event_check import EventCheck
from app.load.event_keys import EventKeys
from app.load.input_file import InputFile
from app.load.input_piece import InputError, Piece
from app.load.replay import settled_ms
from app.load.writers import WRITERS
from tables.model.clock import wall_clock_ms
from tables.model.layer import Map, RecordForm, Source
from tables.model.window import time_text
from tables.record.remembered import Remembered

FORMATS = ("json", "ndjson", "arrow", "csv", "avro")
_COLUMNS = ("arrow", "csv", "avro")
RECORD_EVENTS_MAX = 500
RECORD_BYTES_MAX = 900 * 1024
"""Bytes of a record of many events: Kafka's topics accept a MiB by default, with its frame."""

_PACED_SECONDS = 0.05
_EVENTS_AT_ONCE = 5_000


@dataclasses.dataclass(slots=True)
class Written:
    """The progress of a production.

    ``share`` is the part of all files that has been read, None if it is not known; ``keyless``
    counts events in which the value of the key is missing; ``at_s`` is the time since the start.
    """

    events: int = 0
    records: int = 0
    keyless: int = 0
    share: float | None = None
    at_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Production:
    """The files to write, and how.

    Attributes:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        topic: gets the events; it must exist.
        files: the files, in the order in which they are written.
        form: the form of records, one of ``FORMATS``.
        declared: the format that the map declares for records without a header.
        keys: returns the keys of events; None leaves them out.
        check: checks all events before they are written.
        rate: events a second; 0 is as fast as possible.
        options: security options of aiokafka's clients.
    """

    brokers: str
    topic: str
    files: Sequence[InputFile]
    form: str = "json"
    declared: RecordForm | None = None
    keys: EventKeys | None = None
    check: EventCheck | None = None
    rate: float = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


async def produce(
    plan: Production, written: Written, progress: Callable[[], None] | None = None
) -> None:
    """Write the events of all files; they are acknowledged when it returns.

    Args:
        plan: the files, and how to write them.
        written: counts on while it writes.
        progress: called after each step.

    Raises:
        InputError: a file cannot be read; those before it, and its events so far, are written.
        RightsError: this user may not write to the topic.
        ProducerError: the topic is missing, or records were refused.
        TreasureMapError: no broker answers.
    """
    _check_form(plan)
    await check_rights(
        plan.brokers, plan.options, [Right("topic", plan.topic, ("Write",))],
        cannot=f"cannot write events into {plan.topic}", role="producer", may_lack=True,
    )  # fmt: skip
    begin_s = time.monotonic()
    async with BatchProducer(plan.brokers, plan.topic, options=plan.options) as feed:
        writer = _Writer(plan, feed, written)
        for number, file in enumerate(plan.files):
            pieces = file.pieces()
            while piece := await asyncio.to_thread(next, pieces, None):
                rows = _rows(plan, file, piece)
                for first, last in _steps(len(piece.lines), plan.rate):
                    if plan.rate:
                        due_s = begin_s + written.events / plan.rate
                        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                    some = None if rows is None else rows[first:last]
                    writer.write(piece.lines[first:last], some)
                    await feed.flush()
                    written.at_s = time.monotonic() - begin_s
                    if progress is not None:
                        progress()
                if piece.share is not None:
                    written.share = (number + piece.share) / len(plan.files)
    written.at_s = time.monotonic() - begin_s


async def settle(plan: Production, themap: Map, source: Source, last_ms: int | None) -> int | None:
    """Write the heartbeat after which all windows of written events close; return its time.

    Args:
        plan: how to reach the topic.
        themap: the map.
        source: the source whose topic it is.
        last_ms: the greatest time of an event; None if there is no event, then nothing is written.

    Raises:
        InputError: workers would refuse the heartbeat, as it is too far ahead of the clock.
    """
    if last_ms is None:
        return None
    time_ms = settled_ms(themap, source.name, last_ms, margin_ms=0)
    if time_ms > wall_clock_ms() + source.future_skew_ms:
        raise InputError(
            f"cannot settle {plan.topic}: its longest window ends in the future; got"
            f" {time_text(time_ms)}; want at most the source's future_skew of"
            f" {source.future_skew_ms} ms ahead; leave --settle out: open windows are answered too"
        )
    async with BatchProducer(plan.brokers, plan.topic, options=plan.options) as feed:
        feed.heartbeat(time_ms)
    return time_ms


def _check_form(plan: Production) -> None:
    """Raise InputError if a file has no columns, which records of Arrow and CSV need."""
    lines = [file.name for file in plan.files if file.form in ("lines", "array")]
    if plan.form in _COLUMNS and lines:
        raise InputError(
            f"cannot write {lines[0]} as {plan.form}: got JSON, whose values have no columns; want"
            " CSV or Parquet; give --format json or ndjson"
        )


def _rows(plan: Production, file: InputFile, piece: Piece) -> pl.DataFrame | None:
    """Return the events of a piece as columns, if records have columns.

    Raises:
        InputError: columns hold objects or lists, which CSV does not have.
    """
    if plan.form not in _COLUMNS or piece.rows is None:
        return None
    rows = piece.rows()
    nested = [column.name for column in rows if column.dtype.is_nested()]
    if plan.form == "csv" and nested:
        raise InputError(
            f"cannot write {file.name} as csv: got objects or lists in {nested[0]}; want values in"
            " columns alone; give --format arrow or ndjson"
        )
    return rows


def _steps(events: int, rate: float) -> Iterator[tuple[int, int]]:
    """Cut the events of a piece into steps that are written at once."""
    size = max(1, int(rate * _PACED_SECONDS)) if rate else _EVENTS_AT_ONCE
    for first in range(0, events, min(size, _EVENTS_AT_ONCE)):
        yield first, min(events, first + min(size, _EVENTS_AT_ONCE))


class _Writer:
    """Partitions events and hands their records over."""

    def __init__(self, plan: Production, feed: BatchProducer, written: Written) -> None:
        self._plan = plan
        self._feed = feed
        self._written = written
        self._partition_of: Remembered[bytes, int] = Remembered(
            lambda key: partition_of(key, feed.partitions)
        )
        self._turns = itertools.cycle(range(feed.partitions))
        (found,) = (one for one in WRITERS if one.name == plan.form)
        writer = found.declared(plan.declared)
        self._encode = writer.encode
        self._headers = () if writer.is_recognised else writer.headers

    def write(self, lines: list[bytes], rows: pl.DataFrame | None) -> None:
        """Hand over events, of which ``rows`` are the same if records have columns."""
        keys: list[bytes | None] = [None] * len(lines)
        if self._plan.keys is not None:
            keys = self._plan.keys.of(lines)
        targets = [next(self._turns) if key is None else self._partition_of(key) for key in keys]
        if self._plan.check is not None:
            self._plan.check.take(lines, targets)
        by_partition: dict[int, list[int]] = collections.defaultdict(list)
        for index, target in enumerate(targets):
            by_partition[target].append(index)
        for partition, chosen in by_partition.items():
            own = [keys[index] for index in chosen]
            if self._plan.form == "json":
                self._add(partition, own, [lines[index] for index in chosen])
            elif rows is None:
                self._add_lines(partition, own, [lines[index] for index in chosen])
            else:
                self._add_rows(partition, own, rows[chosen])
        self._written.events += len(lines)
        if self._plan.keys is not None:
            self._written.keyless += keys.count(None)

    def _add(self, partition: int, keys: Sequence[bytes | None], values: Sequence[bytes]) -> None:
        headers = dict.fromkeys(range(len(values)), self._headers) if self._headers else {}
        self._feed.add(partition, keys, values, headers)
        self._written.records += len(values)

    def _add_lines(
        self, partition: int, keys: Sequence[bytes | None], lines: Sequence[bytes]
    ) -> None:
        """Add records of as many lines as one may hold; each has the key of its first."""
        first = size = 0
        for index, line in enumerate(lines):
            full = index - first == RECORD_EVENTS_MAX or size + len(line) > RECORD_BYTES_MAX
            if index > first and full:
                self._add(partition, [keys[first]], [b"\n".join(lines[first:index])])
                first, size = index, 0
            size += len(line) + 1
        self._add(partition, [keys[first]], [b"\n".join(lines[first:])])

    def _add_rows(self, partition: int, keys: Sequence[bytes | None], rows: pl.DataFrame) -> None:
        """Add records of as many rows as one may hold; each has the key of its first."""
        value = self._encode(rows, []) if rows.height <= RECORD_EVENTS_MAX else b""
        if value and (len(value) <= RECORD_BYTES_MAX or rows.height == 1):
            self._add(partition, [keys[0]], [value])
            return
        half = rows.height // 2
        self._add_rows(partition, keys[:half], rows[:half])
        self._add_rows(partition, keys[half:], rows[half:])
