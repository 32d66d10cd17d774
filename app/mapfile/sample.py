"""Samples: events of a file, or of a topic's records, as a proposal of a map reads them.

A file is NDJSON, a JSON array, one JSON event, CSV or Parquet, each also as ``.gz``. Its first
events are enough: the readers stop at a number of events and of bytes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import io
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from app.mapfile.sources import RECORD_BYTES_MAX_MAX
from tables.model.errors import TreasureMapError
from tables.record.gzip import GZIP_MAGIC, GzipError, inflate_gzip

EVENTS_MAX = 200_000
"""Events of a sample: shares of nulls and of late events are known to a thousandth."""

BYTES_MAX = 64 << 20
"""Bytes of a sample, inflated; as Python's objects they need some ten times as much memory."""

_BOM = b"\xef\xbb\xbf"
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


def read_sample(path: Path) -> Sample:
    """Return the first events of a file.

    Raises:
        SampleError: it cannot be read, or has no events.
    """
    origin = str(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if is_packed else suffixes)[-1:]
    sample = Sample(origin)
    try:
        if kind == [".parquet"]:
            _read_parquet(sample, path, is_packed=is_packed)
        else:
            data = _head(path, is_packed=is_packed)
            sample.is_cut = len(data) > BYTES_MAX
            data = data[:BYTES_MAX].removeprefix(_BOM)
            (_read_csv if kind == [".csv"] else _read_json)(sample, data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SampleError(f"cannot read {origin}: {reason}; give a file of events") from error
    except (EOFError, zlib.error) as error:
        raise SampleError(f"cannot read {origin}: not whole gzip: {error}") from error
    except pl.exceptions.PolarsError as error:
        raise SampleError(
            f"cannot read {origin} as {kind[0][1:].upper()}: {error}; correct the file or its name"
        ) from error
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
        _add_lines(sample, value, EVENTS_MAX)


def _head(path: Path, *, is_packed: bool) -> bytes:
    """Return the first bytes of a file, inflated, one more than the limit if there are more."""
    with gzip.open(path) if is_packed else path.open("rb") as file:
        return file.read(BYTES_MAX + 1)


def _read_json(sample: Sample, data: bytes) -> None:
    if not sample.is_cut:
        whole = _decoded(data)
        if isinstance(whole, dict):
            sample.events, sample.largest_bytes = [whole], len(data)
            return
        if isinstance(whole, list):
            objects = [one for one in whole if isinstance(one, dict)]
            sample.events, sample.refused = objects[:EVENTS_MAX], len(whole) - len(objects)
            sample.is_cut = len(objects) > EVENTS_MAX
            return
    elif data.lstrip().startswith(b"["):
        raise SampleError(
            f"cannot read {sample.origin}: a JSON array of more than {BYTES_MAX >> 20} MiB; want"
            f" lines: jq -c '.[]' {sample.origin} > events.ndjson"
        )
    else:
        data = data[: data.rfind(b"\n") + 1]
    _add_lines(sample, data, EVENTS_MAX)


def _add_lines(sample: Sample, data: bytes, events_max: int) -> None:
    """Add the events of lines; a line that is not blank and not an object is refused."""
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        if len(sample.events) >= events_max:
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


def _read_csv(sample: Sample, data: bytes) -> None:
    if sample.is_cut:
        data = data[: data.rfind(b"\n") + 1]
    if data.strip():
        frame = pl.read_csv(io.BytesIO(data), infer_schema_length=None, n_rows=EVENTS_MAX + 1)
        _add_frame(sample, frame)


def _read_parquet(sample: Sample, path: Path, *, is_packed: bool) -> None:
    source: Path | io.BytesIO = path
    if is_packed:
        data = _head(path, is_packed=True)
        if len(data) > BYTES_MAX:
            raise SampleError(
                f"cannot read {sample.origin}: more than {BYTES_MAX >> 20} MiB; Parquet is read"
                " from its end; inflate the file with gunzip"
            )
        source = io.BytesIO(data)
    else:
        # Polars' own message of an absent file has no reason in it.
        path.open("rb").close()
    _add_frame(sample, pl.read_parquet(source, n_rows=EVENTS_MAX + 1))


def _add_frame(sample: Sample, frame: pl.DataFrame) -> None:
    """Add the rows of a frame as events; timestamps become the RFC 3339 texts of JSON."""
    sample.is_cut = sample.is_cut or frame.height > EVENTS_MAX
    sample.events = [
        {name: _as_json(value) for name, value in row.items()}
        for row in frame.head(EVENTS_MAX).to_dicts()
    ]


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    if isinstance(value, dt.datetime):
        # A timestamp without zone is UTC (docs/formats/records.md).
        return (value if value.tzinfo else value.replace(tzinfo=dt.UTC)).isoformat()
    return value
