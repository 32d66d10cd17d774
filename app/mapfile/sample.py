"""Samples: events of a file, or of a topic's records, as a proposal of a map reads them.

The first events of a file are enough: no more are taken than a number of events and of bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from app.mapfile.sources import RECORD_BYTES_MAX_MAX
from tables.model.errors import TreasureMapError
from tables.record.gzip import GZIP_MAGIC, GzipError, inflate_gzip

EVENTS_MAX = 200_000
"""Events of a sample: shares of nulls and of late events are known to a thousandth."""

BYTES_MAX = 64 << 20
"""Bytes of a sample, inflated; as Python's objects they need some ten times as much memory."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class SampleError(TreasureMapError):
    """A sample from which no map can be proposed."""


class OutOfRange:
    """Stands for a JSON number that no float can hold."""


Event = dict[str, Any]


@dataclasses.dataclass(slots=True)
class Sample:
    """The events of a sample, in their order.

    ``origin`` names its file or topic. ``refused`` counts lines or records that are not JSON
    objects. ``starts`` has the index of the first event of each partition: there is an order only
    inside of one. ``partitions`` is the topic's number of them, None for a file. ``is_cut`` says
    that there are more events; ``largest_bytes`` is the size of the largest record, inflated.
    ``has_arrays`` says that records are arrays of events, ``is_packed`` that values are gzip.
    ``assumed_utc`` names values whose times have no zone in the file, and were read as UTC.
    """

    origin: str
    events: list[Event] = dataclasses.field(default_factory=list)
    refused: int = 0
    starts: list[int] = dataclasses.field(default_factory=lambda: [0])
    partitions: int | None = None
    is_cut: bool = False
    largest_bytes: int = 0
    has_arrays: bool = False
    is_packed: bool = False
    assumed_utc: frozenset[str] = frozenset()


def sample_of_file(origin: str, pieces: Iterable[tuple[list[bytes], frozenset[str]]]) -> Sample:
    """Return the sample of a file: its first events.

    Args:
        origin: names the file.
        pieces: the JSON text of each event, and the names whose times were assumed to be in UTC.

    Raises:
        SampleError: there are no events.
    """
    sample, size = Sample(origin), 0
    for lines, assumed_utc in pieces:
        _add_lines(sample, lines)
        sample.assumed_utc |= assumed_utc
        size += sum(map(len, lines))
        sample.is_cut = sample.is_cut or size > BYTES_MAX
        if sample.is_cut:
            break
    if not sample.events:
        raise SampleError(
            f"cannot propose a map: {origin} has no events; got {sample.refused} lines that are not"
            " JSON objects; want a JSON object a line, a JSON array of objects, CSV (.csv) or"
            " Parquet (.parquet)"
        )
    return sample


def sample_of_records(origin: str, partitions: Iterable[list[bytes]]) -> Sample:
    """Return the sample of a topic's records: by partition, the values of its last records.

    Raises:
        SampleError: no record is JSON.
    """
    sample = Sample(origin, starts=[], partitions=0)
    count = 0
    for values in partitions:
        count += 1
        sample.starts.append(len(sample.events))
        for value in values:
            _add_record(sample, value)
    sample.partitions = count
    if not sample.events:
        raise SampleError(
            f"cannot propose a map: {origin} has no JSON events; got {sample.refused} records or"
            " lines that are not JSON objects; give a file with --sample, or wait for events"
        )
    return sample


def _add_record(sample: Sample, value: bytes) -> None:
    """Add the events of a record: a document, an array of them, or lines; perhaps packed."""
    if value.startswith(GZIP_MAGIC):
        try:
            value = bytes(inflate_gzip(value, RECORD_BYTES_MAX_MAX)[0])
        except GzipError:
            sample.refused += 1
            return
        sample.is_packed = True
    sample.largest_bytes = max(sample.largest_bytes, len(value))
    whole = _decoded(value)
    if isinstance(whole, dict):
        sample.events.append(whole)
    elif isinstance(whole, list):
        objects = [one for one in whole if isinstance(one, dict)]
        sample.events += objects
        sample.refused += len(whole) - len(objects)
        sample.has_arrays = True
    else:
        _add_lines(sample, value.split(b"\n"))


def _add_lines(sample: Sample, lines: Iterable[bytes]) -> None:
    """Add the events of lines; a line that is not blank and not an object is refused."""
    for line in lines:
        if not line.strip():
            continue
        if len(sample.events) >= EVENTS_MAX:
            sample.is_cut = True
            return
        event = _decoded(line)
        if isinstance(event, dict):
            sample.events.append(event)
            sample.largest_bytes = max(sample.largest_bytes, len(line))
        else:
            sample.refused += 1


def _float(text: str) -> float | OutOfRange:
    number = float(text)
    return number if math.isfinite(number) else OutOfRange()


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=_float)


def _decoded(data: bytes) -> Any:
    """Return the value of a JSON text; None if it is not JSON, as for null."""
    try:
        data.decode()
        return _decoder.decode(data)
    except _UNREADABLE:
        return None
