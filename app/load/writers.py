"""Writers of record formats: events of a load as the values of records.

There is one for each format that a worker decodes (``agents/decode/formats.py``).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import polars as pl

from agents.decode import formats
from app.load.avro_container import avro_container, has_avro_names
from tables.model.layer import RecordForm, Source
from tables.record.chunk import Headers

MIXED = "mixed"
"""The name of a load of every format."""

Encode = Callable[[pl.DataFrame, list[bytes]], bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Writer:
    """Writes events in one format.

    Attributes:
        name: the format's name.
        events_per_process: events a second that one process of a load is given by
            ``--processes auto``; see docs/OPERATING.md.
        encode: the value of a record of some events, given their rows and, if ``uses_lines``, each
            as JSON too. Of a format that ``uses_lines`` and holds one event, that is the JSON.
        uses_lines: whether the format writes each event as JSON, which bad input can break.
        holds_many: whether a record may hold more than one event.
        fits: returns whether it can write the events of a source.
        is_recognised: whether a worker recognises its records without a header.
        encode_of: returns the ``encode`` of a source that declares options of the format.
    """

    name: str
    events_per_process: int
    encode: Encode
    uses_lines: bool
    holds_many: bool = True
    fits: Callable[[Source], bool] = lambda _: True
    is_recognised: bool = True
    encode_of: Callable[[RecordForm], Encode] | None = None

    def declared(self, form: RecordForm | None) -> Writer:
        """Return the writer of a source that declares a format, which may have options."""
        if form is None:
            return self
        is_own = self.name == form.name
        encode = self.encode_of(form) if is_own and self.encode_of else self.encode
        return dataclasses.replace(self, encode=encode, is_recognised=is_own)

    @property
    def headers(self) -> Headers:
        """The header that says the format."""
        (content_type,) = (f.content_type for f in formats.FORMATS if f.name == self.name)
        return (("content-type", content_type.encode()),)


def arrow_stream(frame: pl.DataFrame) -> bytes:
    """Return a frame as an Arrow IPC stream that every Arrow library reads."""
    buffer = io.BytesIO()
    # LZ4 needs half the time of ZSTD; the record batch is compressed once more by Kafka.
    frame.write_ipc_stream(buffer, compression="lz4", compat_level=pl.CompatLevel.oldest())
    return buffer.getvalue()


def csv_text(frame: pl.DataFrame, form: RecordForm | None = None) -> bytes:
    """Return a frame as CSV, behind a row of names unless ``form`` declares the columns."""
    if form is None or not form.columns:
        return frame.write_csv(separator=form.delimiter if form else ",").encode()
    rows = frame.select(
        pl.col(name) if name in frame.columns else pl.lit(None).alias(name) for name in form.columns
    )
    return rows.write_csv(separator=form.delimiter, include_header=False).encode()


def _lines(_: pl.DataFrame, lines: list[bytes]) -> bytes:
    return b"\n".join(lines)


WRITERS: tuple[Writer, ...] = (
    Writer("json", 300_000, _lines, uses_lines=True, holds_many=False),
    Writer("ndjson", 400_000, _lines, uses_lines=True),
    Writer("arrow", 500_000, lambda rows, _: arrow_stream(rows), uses_lines=False),
    Writer(
        "csv", 500_000, lambda rows, _: csv_text(rows), uses_lines=False, is_recognised=False,
        fits=lambda source: all(len(path) == 1 for path in source.paths),
        encode_of=lambda form: lambda rows, _: csv_text(rows, form),
    ),
    Writer(
        "avro", 100_000, lambda rows, _: avro_container(rows), uses_lines=False,
        fits=has_avro_names,
    ),
)  # fmt: skip


def names() -> list[str]:
    """Return the formats that a load may have, that of every one included."""
    return [*(writer.name for writer in WRITERS), MIXED]


def writers_of(name: str) -> tuple[Writer, ...]:
    """Return the writers of a load's format, one of :func:`names`."""
    return tuple(writer for writer in WRITERS if name in (writer.name, MIXED))


def writers_for(name: str, source: Source) -> tuple[Writer, ...]:
    """Return the writers of a load of a source: in a mix, those that can write its events."""
    return tuple(
        writer.declared(source.format)
        for writer in writers_of(name)
        if name != MIXED or writer.fits(source)
    )


def events_per_process(name: str) -> int:
    """Return how many events a second one process is given, if the load has this format."""
    return min(writer.events_per_process for writer in writers_of(name))


def record_events_max(name: str, batch: int) -> int:
    """Return the most events of a record of a load whose records may have up to ``batch``."""
    return batch if any(writer.holds_many for writer in writers_of(name)) else 1
