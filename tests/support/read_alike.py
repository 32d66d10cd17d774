"""The events of records as the worker takes them, and as verify's plain rules do.

Rows are by event: ``(record, index)``; faults of records that cannot be read have index -1.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from agents.decode.event_batch import ID_COLUMN, INDEX_COLUMN, RECORD_SPAN
from agents.decode.records import Decoder
from agents.decode.schemas import Schemas
from app.verify.arrow import ArrowRows
from app.verify.avro import SchemaOf
from app.verify.records import Event, Record, RecordReader
from tables.model.layer import Source
from tests.support.common import run_of

NOW_MS = -1
"""No append time: no event is in the future."""

At = tuple[int, int]


def worker_reads(
    source: Source, values: list[bytes], schemas: Schemas | None = None
) -> tuple[dict[At, Any], dict[At, str]]:
    """Return the rows that the worker takes, and the reason of every other one."""
    decoder = Decoder(source, schemas)
    run = run_of(list(values), topic=source.topic, append_time_ms=NOW_MS)
    batch = decoder.decode([run])
    names = [field.name for field in source.fields]
    frame = batch.frame
    if source.id_field is not None:
        frame = frame.with_columns(pl.col(ID_COLUMN).fill_null(""))
    else:
        frame = frame.with_columns(pl.lit("").alias(ID_COLUMN))
    rows = {
        divmod(row[0], RECORD_SPAN): row[1:]
        for row in frame[INDEX_COLUMN, "time", "type", ID_COLUMN, *names].iter_rows()
    }
    reasons = {
        (item.record, index): item.reason for item in batch.aside for index in item.events or (-1,)
    }
    _check_letters(decoder, run, batch.aside)
    return rows, reasons


def _check_letters(decoder: Decoder, run: Any, aside: list[Any]) -> None:
    """Check that the part of a record in a dead letter has the same events, for the same reason."""
    for item in aside:
        value, content_type = decoder.part_of(run, item)
        # A row of nothing but tabs is a broken one among others, and alone an empty record.
        if item.events is None or not value.strip():
            continue
        again = run_of([value], topic=run.topic, append_time_ms=NOW_MS)
        again.headers = {0: (("content-type", content_type.encode()),)} if content_type else {}
        found = decoder.decode([again])
        assert found.frame.height == 0, value
        assert [(one.reason, one.events) for one in found.aside] == [
            (item.reason, tuple(range(len(item.events))))
        ], value


def verify_reads(
    source: Source, values: list[bytes], schema_of: SchemaOf | None = None
) -> tuple[dict[At, Any], dict[At, Any]]:
    """Return the rows that verify takes, and the possible reasons of every other one."""
    reader = RecordReader(source, ArrowRows(source), schema_of)
    names = [field.name for field in source.fields]
    rows: dict[At, Any] = {}
    reasons: dict[At, Any] = {}
    for record, value in enumerate(values):
        content = reader.read(Record(record, NOW_MS, value), many=lambda: False)
        if content.reason:
            reasons[record, -1] = frozenset({content.reason})
        for index, found in enumerate(content.events):
            if isinstance(found, Event):
                own = (found.fields.get(name) for name in names)
                rows[record, index] = (found.time_ms, found.type, found.id, *own)
            else:
                reasons[record, index] = found
    return rows, reasons


def check_alike(
    source: Source,
    values: list[bytes],
    schemas: Schemas | None = None,
    schema_of: SchemaOf | None = None,
) -> tuple[int, set[str]]:
    """Check that both take the same; return the number of events, and the worker's reasons."""
    rows, reasons = worker_reads(source, values, schemas)
    wanted, possible = verify_reads(source, values, schema_of)
    assert rows == wanted
    assert reasons.keys() == possible.keys()
    assert [at for at, reason in reasons.items() if reason not in possible[at]] == []
    return len(rows), set(reasons.values())
